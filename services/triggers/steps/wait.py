"""`wait`: for a time, until a moment of the week, or until some days from a date in a trait."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import field_validator

from services.triggers.language import LocalMoment, TraitMoment
from services.triggers.steps.base import Answer, End, Here, Next, Step, Wait
from shared.conditions.fields import Duration, Strict


class Parameters(Strict):
    """A duration, or `{until: "next tuesday 10:00"}`, or `{until: {trait: renewal_date, days: -7}}`."""

    duration: Duration | None = None
    until: LocalMoment | TraitMoment | None = None

    @field_validator("until", mode="before")
    @classmethod
    def _by_form(cls, value: Any) -> Any:
        return TraitMoment.model_validate(value) if isinstance(value, dict) else LocalMoment.model_validate(value)


class WaitStep(Step):
    """The run goes on when the time has come; at once if it is past."""

    key = "wait"
    short = "duration"
    parameters_type = Parameters
    parameters: Parameters
    examples = ["3d", {"until": "next tuesday 10:00"}, {"until": {"trait": "renewal_date", "days": -7}}]

    def begin(self, here: Here) -> Answer:
        return self._wait(here, here.now)

    def moved(self, here: Here) -> Answer:
        answer = self._wait(here, here.run.since or here.now)
        return answer if isinstance(answer, (Wait, End)) else Wait(here.now)  # it has waited long enough

    def _wait(self, here: Here, since: datetime) -> Answer:
        """`since`: when the step began."""
        until = self.parameters.until
        if isinstance(until, LocalMoment):
            return Wait(until.after(since, here.zone))
        if isinstance(until, TraitMoment):
            value = here.facts.traits.get(until.trait)
            here.seen.append({"trait": until.trait, "looked_at": value})
            due = until.moment(value, here.zone)
            if due is None:
                return End(
                    f"there is no date in {until.trait} to wait for" if value is None else f"{until.trait} is no date"
                )
            return Wait(due) if due > here.now else Next()
        return Wait(since + self.parameters.duration) if self.parameters.duration else Next()
