"""`wait_for`: until an event comes (then …), or a time has passed without it (else …)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from services.triggers.guards import about_the_address
from services.triggers.steps.base import Answer, Happened, Here, Into, Step, Wait
from shared.conditions import match_holds, parse_match
from shared.conditions.fields import Duration, Strict
from shared.conditions.where import Where


class Parameters(Strict):
    """`{event: Order Completed, where: {…}, for: 3d, then: […], else: […]}`."""

    event: str = Field(max_length=200)
    where: Where | None = None
    for_: Duration = Field(alias="for")


class WaitFor(Step):
    """The event counts if it was learned after the step began and no later than `for` after that."""

    key = "wait_for"
    branch_names = ("then", "else")
    parameters_type = Parameters
    parameters: Parameters
    examples = [{"event": "Order Completed", "for": "3d", "then": [{"stop": "bought"}], "else": [{"send": "reminder"}]}]

    def __init__(self, value: Any, *args: Any) -> None:
        super().__init__(value, *args)
        self.match = parse_match({key: value[key] for key in ("event", "where") if key in value}, self.pointer)

    @classmethod
    def template(cls, value: Any) -> str:
        found = value.get("event") if isinstance(value, dict) else ""
        return found if isinstance(found, str) else ""

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.match.event})

    def begin(self, here: Here) -> Answer:
        return Wait(here.now + self.parameters.for_)

    def moved(self, here: Here) -> Answer:
        return Wait((here.run.since or here.now) + self.parameters.for_)

    def resume(self, here: Here) -> Answer:
        return Into("else")

    def hear(self, here: Here, happened: Happened) -> Answer | None:
        event, since = happened.event, here.run.since
        assert since is not None
        if event.history or not match_holds(self.match, event.name, event.properties):
            return None
        if not since < happened.moment <= since + self.parameters.for_ or not about_the_address(here.run, event):
            return None
        here.seen.append({"event": event.name, "id": str(event.id), "learned_at": event.learned_at.isoformat()})
        return Into("then")
