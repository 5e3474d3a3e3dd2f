"""Windows of the week: the days and hours, where a person lives, in which a rule may speak."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from shared.conditions.fields import Strict, refusal

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
FULL_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_CLOCK = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)", re.ASCII)


def clock_time(text: Any) -> time | None:
    """`09:00` → the time of day; `24:00` is midnight at the end of the day and given as None."""
    match = _CLOCK.fullmatch(str(text).strip())
    if not match or (match[1] == "24" and match[2] != "00"):
        raise refusal(f'is a time of day such as "09:00", not {text!r}')
    return None if match[1] == "24" else time(int(match[1]), int(match[2]))


def at_local(day: date, moment: time, zone: ZoneInfo) -> datetime:
    """The UTC moment at which the wall clock of `zone` shows `moment` on `day`."""
    return max(datetime.combine(day, moment, zone).replace(fold=fold).astimezone(UTC) for fold in (0, 1))


def _days(value: Any) -> frozenset[int]:
    days: set[int] = set()
    for part in value if isinstance(value, (list, tuple)) else [value]:
        first, dots, last = str(part).strip().lower().partition("..")
        low, high = _weekday(first), _weekday(last if dots else first)
        days |= {(low + i) % 7 for i in range((high - low) % 7 + 1)}
    if not days:
        raise refusal("names no day: write for example [mon..fri]")
    return frozenset(days)


def _weekday(name: str) -> int:
    for names in (WEEKDAYS, FULL_WEEKDAYS):
        if name in names:
            return names.index(name)
    raise refusal(f"knows the days {', '.join(WEEKDAYS)} and ranges such as mon..fri, not {name!r}")


class Window(Strict):
    """Days and hours, in the person's zone, in which steps may speak: `{days: [mon..fri], hours: "09:00-21:00"}`."""

    days: Annotated[
        frozenset[int],
        BeforeValidator(_days),
        WithJsonSchema({"type": "array", "items": {"type": "string"}, "examples": [["mon..fri"], ["sat", "sun"]]}),
    ] = frozenset(range(7))
    hours: str = Field(default="00:00-24:00", examples=["09:00-21:00", "22:00-02:00"])

    @field_validator("hours")
    @classmethod
    def _two_times(cls, text: str) -> str:
        first, dash, last = text.partition("-")
        if not dash:
            raise refusal(f'is a span such as "09:00-21:00", not {text!r}')
        if clock_time(first) == clock_time(last):
            raise refusal("begins and ends at the same time")
        return text

    def opens(self, moment: datetime, zone: ZoneInfo) -> datetime:
        """The first moment from `moment` on that lies in the window; `moment` itself if it does."""
        today = moment.astimezone(zone).date()
        candidates = (max(moment, begin) for begin, end in self._spans(today, zone) if end > moment)
        return next(candidates)

    def _spans(self, today: date, zone: ZoneInfo) -> list[tuple[datetime, datetime]]:
        """The spans from yesterday's to the day a week and a day ahead, in order; a span over midnight is its first day's."""
        first, last = (clock_time(part) for part in self.hours.split("-"))
        over_midnight = last is None or (first is not None and last <= first)
        spans = []
        for offset in range(-1, 9):
            day = today + timedelta(days=offset)
            if day.weekday() in self.days:
                end_day = day + timedelta(days=1) if over_midnight else day
                spans.append((at_local(day, first or time(), zone), at_local(end_day, last or time(), zone)))
        return spans
