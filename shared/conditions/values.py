"""How a value from an event or a trait is read as a number, a text, a moment: the same for Python and for the columns
(`folded`, `number`) that the SQL reading compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

_PLAIN_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?", re.ASCII)
DATE_LENGTH = len("2024-12-31")


def number_of(value: Any) -> Decimal | None:
    """The value as a decimal: a number, or a text that is a plain one (`"25.00"`). Booleans and NaN are none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return Decimal(value)
    if isinstance(value, (float, Decimal)):
        number = Decimal(repr(value)) if isinstance(value, float) else value
        return number if number.is_finite() else None
    if isinstance(value, str) and _PLAIN_NUMBER.fullmatch(value):
        return Decimal(value)
    return None


def folded_of(value: Any) -> str | None:
    """The value as a case-folded text: texts, booleans (`true`), numbers in plain digits. None for the rest.

    Texts lose the NUL that PostgreSQL cannot store.
    """
    if isinstance(value, str):
        return value.casefold().replace("\x00", "")
    if isinstance(value, bool):
        return "true" if value else "false"
    number = number_of(value)
    return None if number is None else plain(number)


def plain(number: Decimal) -> str:
    """Digits without exponent and without trailing zeros: `1500`, `0.5`."""
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def moment_of(value: Any) -> datetime | date | None:
    """A text that begins with an ISO date, as date (nothing behind it) or aware datetime (no zone: UTC); else None."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return value
    if not isinstance(value, str) or len(value) < DATE_LENGTH or value[4] != "-" or value[7] != "-":
        return None
    try:
        if len(value) == DATE_LENGTH:
            return date.fromisoformat(value)
        parsed = datetime.fromisoformat(value.upper())
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def instant_of(moment: datetime | date) -> datetime:
    """A date counts from its midnight in UTC."""
    return moment if isinstance(moment, datetime) else datetime.combine(moment, time(), UTC)


def values_at(mapping: Mapping[str, Any], path: str) -> Iterator[Any]:
    """What lies at `path`: the key of that name, else dotted steps into mappings and through every element of lists.

    Nothing for an absent value; null counts as absent.
    """
    found = [mapping[path]] if path in mapping else list(_walk(mapping, path.split(".")))
    return (value for value in found if value is not None)


def _walk(value: Any, steps: list[str]) -> Iterator[Any]:
    if isinstance(value, list):
        for element in value:
            yield from _walk(element, steps)
    elif not steps:
        yield value
    elif isinstance(value, Mapping) and steps[0] in value:
        yield from _walk_last(value[steps[0]], steps[1:])


def _walk_last(value: Any, steps: list[str]) -> Iterator[Any]:
    # A list at the end of the path is one value (for `contains`); on the way it means each of its elements.
    if steps:
        yield from _walk(value, steps)
    else:
        yield value


def jsonable(value: Any) -> Any:
    """A copy of `value` that JSON can carry: decimals and ids as texts, times in ISO 8601 with Z."""
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [jsonable(item) for item in items]
    return value
