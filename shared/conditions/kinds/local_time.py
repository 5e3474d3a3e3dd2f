"""`local_time`: what the clock on the person's wall says."""

from __future__ import annotations

from datetime import datetime, time
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from shared.conditions.fields import Strict, refusal
from shared.conditions.model import Leaf, Look, Moment
from shared.conditions.sql.builder import Bounds, Statement
from shared.conditions.sql.zones import zone_bounds
from shared.facts.model import Facts

MIDNIGHT_AT_THE_END = "24:00"


def _time(value: Any) -> time:
    if isinstance(value, time):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        raise refusal('is a number to YAML: write the time in quotes, such as "09:00"')
    try:
        hours, minutes = str(value).split(":")
        if len(minutes) != 2 or len(hours) > 2 or not (hours + minutes).isascii():
            raise ValueError(value)
        return time() if value == MIDNIGHT_AT_THE_END else time(int(hours), int(minutes))
    except ValueError:
        raise refusal(f'is no time of day: write for example "09:00", not {value!r}') from None


TimeOfDay = Annotated[
    time,
    BeforeValidator(_time),
    WithJsonSchema({"type": "string", "pattern": "^([01]?[0-9]|2[0-3]):[0-5][0-9]$|^24:00$", "title": "Time of day"}),
]


class Parameters(Strict):
    """From the first time on and before the second; the window may reach over midnight."""

    between: list[TimeOfDay] = Field(min_length=2, max_length=2)

    @model_validator(mode="after")
    def _is_window(self) -> Parameters:
        if self.between[0] == self.between[1]:
            raise refusal("begins and ends at the same time", field="between")
        return self


class LocalTime(Leaf):
    """In the person's zone, else the shop's."""

    name = "local_time"
    parameters_type = Parameters
    examples = ({"between": ["09:00", "21:00"]}, {"between": ["22:00", "06:00"]})
    parameters: Parameters

    def look(self, facts: Facts, moment: Moment) -> Look:
        zone = moment.zone_of(facts)
        looked_at = {"zone": zone.key, "local_time": moment.at.astimezone(zone).strftime("%H:%M")}
        return Look(self.holds_in(zone, moment.at), looked_at)

    def holds_in(self, zone: ZoneInfo, at: datetime) -> bool:
        """Whether the moment is within the window in that zone."""
        start, end = self.parameters.between
        local = at.astimezone(zone).time()
        return start <= local < end if start < end else local >= start or local < end

    def sql(self, statement: Statement) -> Bounds:
        return zone_bounds(statement, lambda zone: self.holds_in(zone, statement.moment.at))
