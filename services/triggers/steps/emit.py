"""`emit`: an event of the product's own about this person; other rules may start on it (at most five hops)."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from services.triggers.filling import filled, unknown_roots
from services.triggers.steps.base import Answer, Here, Next, Step
from shared.conditions.fields import Strict, refusal
from shared.events import MAX_HOPS, internal_event, own_name


class Parameters(Strict):
    """`{event: Loyalty Invited, properties: {…}}`; properties may use `{{ event.… }}` and `{{ person.… }}`."""

    event: str = Field(min_length=1, max_length=200)
    properties: dict[str, Any] = {}

    @field_validator("event")
    @classmethod
    def _not_ours(cls, name: str) -> str:
        if own_name(name) or name.startswith("Order "):
            raise refusal(f"{name} is published by Dripline or the shop itself: take another name")
        return name

    @field_validator("properties")
    @classmethod
    def _known_paths(cls, properties: dict[str, Any]) -> dict[str, Any]:
        if strange := unknown_roots(properties):
            raise refusal(f"{strange[0]} is not known here: paths begin with event, person or run")
        return properties


class Emit(Step):
    key = "emit"
    parameters_type = Parameters
    parameters: Parameters
    examples = [{"event": "Loyalty Invited", "properties": {"category": "{{ event.category }}"}}]

    @classmethod
    def template(cls, value: Any) -> str:
        found = value.get("event") if isinstance(value, dict) else ""
        return found if isinstance(found, str) else ""

    def begin(self, here: Here) -> Answer:
        run, wanted = here.run, self.parameters
        if run.hops >= MAX_HOPS:
            here.seen.append(
                {"emit": wanted.event, "hops": run.hops, "left_out": "too many events of our own in a row"}
            )
        elif not run.ghost:
            properties = {**filled(wanted.properties, here), "run_id": str(run.id), "rule": here.rule.name}
            here.effects.append(
                internal_event(
                    wanted.event,
                    key=f"{run.id}/{self.id}",
                    origin=run.origin,
                    at=here.now,
                    properties=properties,
                    hops=run.hops + 1,
                )
            )
        return Next()
