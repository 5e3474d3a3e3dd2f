"""Small words of the rule language: shares, money, re-entry, windows of the week, moments to wait for.

Each is a pydantic type, so that the published schema and the errors come from one place. Local times are of the person's
zone; an hour that a clock change skips or repeats is read as the later of its two meanings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, ClassVar, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, RootModel, WithJsonSchema, field_validator

from shared.conditions.fields import Duration, Strict, refusal
from shared.conditions.values import moment_of, number_of
from shared.durations import DurationError, format_duration, parse_duration
from shared.windows import FULL_WEEKDAYS, Window, at_local, clock_time


def _share(value: Any) -> Decimal:
    text = str(value).strip()
    try:
        share = Decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except InvalidOperation:
        raise refusal(f"is a share such as 10% or 0.1, not {value!r}") from None
    if isinstance(value, bool) or not share.is_finite() or not 0 <= share <= 1:
        raise refusal(f"is a share from 0% to 100%, not {value!r}")
    return share


Share = Annotated[
    Decimal,
    BeforeValidator(_share),
    WithJsonSchema({"type": ["string", "number"], "title": "Share", "examples": ["10%", 0.1]}),
]


# ── re-entry ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Again:
    """When a person may enter again. `after` None: `always` or `never`, as `allowed` says."""

    allowed: bool
    after: timedelta | None = None

    @classmethod
    def read(cls, text: Any) -> Again:
        """From `never`, `always` or `after 7d`; raises a validation error."""
        words = str(text).split(maxsplit=1)
        if text in ("never", "always"):
            return cls(allowed=text == "always")
        if len(words) == 2 and words[0] == "after":
            try:
                return cls(allowed=True, after=parse_duration(words[1]))
            except DurationError as error:
                raise refusal(str(error)) from error
        raise refusal(f"is never, always or after <duration> such as after 7d, not {text!r}")

    def __str__(self) -> str:
        if self.after is not None:
            return f"after {format_duration(self.after)}"
        return "always" if self.allowed else "never"


AgainField = Annotated[
    Again,
    BeforeValidator(lambda value: value if isinstance(value, Again) else Again.read(value)),
    WithJsonSchema(
        {"type": "string", "pattern": "^(never|always|after .+)$", "examples": ["never", "always", "after 7d"]}
    ),
]


# ── what success is worth ─────────────────────────────────────────────────────────────────────────────────────────────
_SHARE_SCHEMA = {"type": ["number", "string"]}
VALUE_FORMS = ("order_total", "cart_total", "mean_order")


def _worth(value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        if len(value) != 1 or next(iter(value)) not in VALUE_FORMS:
            raise refusal(f"is an amount, or one of {', '.join(VALUE_FORMS)} with a share such as {{cart_total: 0.3}}")
        form, share = next(iter(value.items()))
        return {form: str(_share(share))}
    amount = number_of(value)
    if amount is None or amount < 0:
        raise refusal(f"is an amount of money of 0 or more, or a share such as {{cart_total: 0.3}}, not {value!r}")
    return {"money": str(amount)}


Worth = Annotated[
    dict[str, str],
    BeforeValidator(_worth),
    WithJsonSchema(
        {
            "title": "Worth",
            "anyOf": [
                {"type": "number", "minimum": 0},
                *(
                    {
                        "type": "object",
                        "properties": {form: _SHARE_SCHEMA},
                        "required": [form],
                        "additionalProperties": False,
                    }
                    for form in VALUE_FORMS
                ),
            ],
        }
    ),
]


# ── moments to wait for ───────────────────────────────────────────────────────────────────────────────────────────────
_UNTIL = re.compile(
    rf"(?:(?P<next>next )?(?P<day>{'|'.join(FULL_WEEKDAYS)}|tomorrow) )?(?P<time>\d{{1,2}}:\d\d)", re.ASCII
)


class TraitMoment(Strict):
    """A date in a trait, some days away from it, at a time of day in the person's zone."""

    trait: str = Field(min_length=1, max_length=200)
    days: int = Field(default=0, ge=-3650, le=3650, strict=True)
    at: str = Field(default="09:00", examples=["09:00"])

    @field_validator("at")
    @classmethod
    def _is_time(cls, text: str) -> str:
        clock_time(text)
        return text

    def moment(self, value: Any, zone: ZoneInfo) -> datetime | None:
        """The UTC moment for a trait's value; None if the value is no date."""
        found = moment_of(value)
        if found is None:
            return None
        if isinstance(found, datetime) and "at" not in self.model_fields_set:
            return found.astimezone(UTC) + timedelta(days=self.days)
        day = found.astimezone(zone).date() if isinstance(found, datetime) else found
        return at_local(day + timedelta(days=self.days), clock_time(self.at) or time(), zone)


class LocalMoment(RootModel[str]):
    """`10:00`, `tomorrow 10:00`, `tuesday 10:00` (today counts) or `next tuesday 10:00` (today does not)."""

    FORMS: ClassVar[str] = '"10:00", "tomorrow 10:00", "tuesday 10:00" or "next tuesday 10:00"'

    @field_validator("root", mode="before")
    @classmethod
    def _of_a_form(cls, value: Any) -> Any:
        match = _UNTIL.fullmatch(str(value).strip().lower())
        if not match or (match["next"] and match["day"] == "tomorrow"):
            raise refusal(f"is {cls.FORMS}, or {{trait: …, days: …}}, not {value!r}")
        clock_time(match["time"])
        return str(value).strip().lower()

    def after(self, moment: datetime, zone: ZoneInfo) -> datetime:
        """The first such moment later than `moment`."""
        match = _UNTIL.fullmatch(self.root)
        assert match is not None
        of_day, today = clock_time(match["time"]) or time(), moment.astimezone(zone).date()
        first = 1 if match["next"] or match["day"] == "tomorrow" else 0
        last = 1 if match["day"] == "tomorrow" else 8
        for offset in range(first, last + 1):
            day = today + timedelta(days=offset)
            if match["day"] in (None, "tomorrow") or day.weekday() == FULL_WEEKDAYS.index(match["day"]):
                if (found := at_local(day, of_day, zone)) > moment:
                    return found
        raise AssertionError("a week has every weekday")


Kind = Literal["marketing", "transactional"]
__all__ = [
    "Again",
    "AgainField",
    "Duration",
    "Kind",
    "LocalMoment",
    "Share",
    "TraitMoment",
    "Window",
    "Worth",
    "at_local",
    "clock_time",
]
