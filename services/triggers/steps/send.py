"""`send`: a message is wanted. The channel is chosen by dispatch, unless named here."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pydantic import Field

from services.triggers.guards import guard_of
from services.triggers.run import OpenIntent
from services.triggers.steps.base import Answer, Here, Mention, Next, Step, Wait
from shared.channels import ADDRESS_KIND
from shared.conditions.errors import joined
from shared.conditions.fields import Duration, Strict
from shared.events import Intended
from shared.ids import message_id

# How long a message may still be sent: through a night's quiet hours; a transactional one through a provider's bad day.
LATE = {"marketing": timedelta(days=1), "transactional": timedelta(days=3)}


class Cascade(Strict):
    """The next channel, when the first showed no effect for this long."""

    after: Duration


class Parameters(Strict):
    """A template's name, or `{template, offer, channels, cascade, late}`."""

    template: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    offer: str | None = Field(default=None, min_length=1, max_length=100)
    channels: list[str] | None = Field(default=None, min_length=1, max_length=20, examples=[sorted(ADDRESS_KIND)])
    cascade: Cascade | None = None
    late: Duration | None = None


class Send(Step):
    """Publishes an intent; outside the rule's window it waits for it first."""

    key = "send"
    short = "template"
    parameters_type = Parameters
    parameters: Parameters
    examples = [
        "cart-reminder",
        {"template": "cart-last-call", "offer": "cart5", "channels": ["push", "email"], "late": "2h"},
    ]

    @classmethod
    def template(cls, value: Any) -> str:
        found = value.get("template") if isinstance(value, dict) else value
        return found if isinstance(found, str) else ""

    @property
    def mentions(self) -> tuple[Mention, ...]:
        named = self.parameters
        at = joined(self.pointer, "template") if self.spelled_out else self.pointer
        found = [Mention("template", named.template, at)]
        if named.offer is not None:
            found.append(Mention("offer", named.offer, joined(self.pointer, "offer")))
        return tuple(found)

    def begin(self, here: Here) -> Answer:
        window = here.rule.window
        if window is not None and (opens := window.opens(here.now, here.zone)) > here.now:
            return Wait(opens)
        intent = self._intent(here)
        here.effects.append(intent)
        here.run.intents.append(OpenIntent(message=intent.message, until=intent.valid_until))
        return Next()

    def resume(self, here: Here) -> Answer:
        return self.begin(here)

    def moved(self, here: Here) -> Answer:
        return self.begin(here)  # it waited for the window to open

    def _valid_until(self, here: Here) -> datetime:
        late, window = self.parameters.late, here.rule.window
        if late is not None:
            return here.now + late
        until = here.now + LATE[here.rule.kind]
        # A night that ends outside the window is not over before the window opens.
        if window is not None and (opens := window.opens(until, here.zone)) > until:
            return opens + LATE[here.rule.kind]
        return until

    def _intent(self, here: Here) -> Intended:
        run, rule, wanted = here.run, here.rule, self.parameters
        event = run.event
        return Intended(
            message=message_id(run.id, self.id),
            run=run.id,
            run_version=run.number,
            rule=run.rule,
            rule_name=rule.name,
            rule_version=run.version,
            kind=rule.kind,
            topic=rule.topic,
            step=self.id,
            template=wanted.template,
            profile=here.facts.profile,
            origin=run.origin,
            entered_at=run.entered_at,
            decided_at=here.now,
            valid_until=self._valid_until(here),
            guard=guard_of(rule, run),
            ghost=run.ghost,
            channels=wanted.channels,
            offer=wanted.offer or run.offer,
            value=dict(rule.value) if rule.value else None,
            goal_within=rule.goal.within.total_seconds() if rule.goal else None,
            cascade_after=wanted.cascade.after.total_seconds() if wanted.cascade else None,
            collect=rule.collect.total_seconds() if rule.collect else 0.0,
            priority=rule.priority,
            window=rule.document.get("window"),
            event={
                "id": str(event.id),
                "name": event.name,
                "occurred_at": event.occurred_at.isoformat(),
                "properties": event.properties,
            }
            if event
            else {},
            addressed=run.addressed,
            hops=run.hops,
        )
