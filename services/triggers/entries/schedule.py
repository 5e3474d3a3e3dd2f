"""`enter: {schedule: "0 9 * * *", among: …}`: at moments of the shop's calendar, everybody who meets the condition."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal
from zoneinfo import ZoneInfo

from croniter import croniter
from pydantic import Field, field_validator

from services.triggers.entries.base import Entry
from shared.conditions.fields import Strict, refusal


class Parameters(Strict):
    """By the calendar: `{schedule: "0 9 * * *", among: {days_since_order: {gte: 180}}}`."""

    schedule: str = Field(max_length=200, description="five fields of cron, in the shop's zone", examples=["0 9 * * *"])
    among: dict[str, Any] = Field(title="Condition", description="who is meant")

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, text: str) -> str:
        if len(text.split()) != 5 or not croniter.is_valid(text):
            raise refusal(
                f'is a cron line of five fields such as "0 9 * * *" (minute hour day month weekday), not {text!r}'
            )
        try:
            next_moment(text, datetime(2024, 1, 1, tzinfo=UTC), ZoneInfo("UTC"))
        except ValueError:
            raise refusal(f"{text!r} never comes") from None
        return text


class ScheduleEntry(Entry):
    """Entered by everybody who meets `among` at a moment of the schedule."""

    key = "schedule"
    condition_key = "among"
    trigger: ClassVar[Literal["event", "schedule"]] = "schedule"
    parameters_type = Parameters
    parameters: Parameters
    examples = [{"schedule": "0 9 * * *", "among": {"days_since_order": {"gte": 180}}}]

    def next_after(self, moment: datetime, zone: ZoneInfo) -> datetime:
        """The first moment of the schedule later than `moment`; the wall clock of `zone` counts."""
        return next_moment(self.parameters.schedule, moment, zone)


def next_moment(cron: str, moment: datetime, zone: ZoneInfo) -> datetime:
    """The first moment of the cron line later than `moment`, in UTC. Raises ValueError when it never comes."""
    found: datetime = croniter(cron, moment.astimezone(zone), max_years_between_matches=8).get_next(datetime)
    return found.astimezone(UTC)
