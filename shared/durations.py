"""Durations as people write them: ISO 8601 (`PT1H`, `P3D`) and the short form (`1h`, `3d`, `1h30m`).

Weeks, days, hours, minutes and seconds only: a day is 24 hours. Years and months have no fixed length and are refused.
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

LONGEST = timedelta(days=36_525)  # a century: what is longer is a slip of the pen, and would leave the calendar

_NUMBER = r"([0-9]{1,9}(?:[.,][0-9]{1,6})?)"
_ISO = re.compile(rf"P(?:{_NUMBER}W)?(?:{_NUMBER}D)?(?:T(?:{_NUMBER}H)?(?:{_NUMBER}M)?(?:{_NUMBER}S)?)?", re.ASCII)
_SHORT = re.compile(
    rf"(?:{_NUMBER}w)? ?(?:{_NUMBER}d)? ?(?:{_NUMBER}h)? ?(?:{_NUMBER}m(?:in)?)? ?(?:{_NUMBER}s)?",
    re.ASCII | re.IGNORECASE,
)
_CALENDAR = re.compile(r"P[0-9.,]+[YM].*|[0-9.,]+ ?(?:y|mo|years?|months?)", re.IGNORECASE)
# Microseconds of a week, a day, an hour, a minute, a second.
_UNITS = (604_800_000_000, 86_400_000_000, 3_600_000_000, 60_000_000, 1_000_000)


class DurationError(ValueError):
    """The text is no duration; the message says what to write instead."""


def parse_duration(text: Any) -> timedelta:
    """The duration that `text` means, from 0 to a century; a timedelta is taken as it is.

    :raises DurationError: it is no text, no duration, too long, or of years or months
    """
    if isinstance(text, timedelta):
        return _bounded(text, text)
    if not isinstance(text, str):
        raise DurationError(f"a duration is a text with a unit, such as 1h, 3d or PT1H, not {text!r}")
    written = text.strip()
    match = _ISO.fullmatch(written.upper()) or _SHORT.fullmatch(written)
    amounts = match.groups() if match else ()
    if not any(amounts):
        raise DurationError(_advice(text))
    microseconds = sum(Decimal(a.replace(",", ".")) * unit for a, unit in zip(amounts, _UNITS, strict=True) if a)
    try:
        return _bounded(timedelta(microseconds=int(microseconds)), text)
    except OverflowError:
        raise DurationError(f"{text!r} is longer than a century") from None


def format_duration(duration: timedelta) -> str:
    """ISO 8601, the shortest form: `PT1H`, `P3D`, `P1DT30M`, `PT0S`. Takes no negative duration."""
    if duration < timedelta(0):
        raise ValueError(f"a duration is not negative: {duration}")
    hours, rest = divmod(duration.seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    fraction = f".{duration.microseconds:06d}".rstrip("0") if duration.microseconds else ""
    time = "".join(
        f"{amount}{unit}"
        for amount, unit in ((hours, "H"), (minutes, "M"), (f"{seconds}{fraction}", "S"))
        if amount not in (0, "0")
    )
    return (
        "P" + (f"{duration.days}D" if duration.days else "") + ("T" + time if time else "" if duration.days else "T0S")
    )


def _advice(text: str) -> str:
    if _CALENDAR.fullmatch(text.strip()):
        return f"{text!r} counts in years or months, which have no fixed length: write days, such as 30d or P30D"
    return f"{text!r} is no duration: write 20s, 5m, 1h, 3d, 2w, 1h30m, or ISO 8601 such as PT1H or P3D"


def _bounded(duration: timedelta, text: object) -> timedelta:
    if duration < timedelta(0):
        raise DurationError(f"{text!r} is negative")
    if duration > LONGEST:
        raise DurationError(f"{text!r} is longer than a century")
    return duration
