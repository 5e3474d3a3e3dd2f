"""Numbers from events: anything a client may send, as Decimal or as an error that names the field."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from shared.errors import Permanent

# Far above any price or quantity, and far below what would make sums inexact (Decimal computes with 28 digits).
MOST = Decimal(10) ** 12
# More decimals than any currency has; what binary fractions leave behind them is rounded away.
QUANTUM = Decimal("0.000001")


def decimal_of(value: Any, pointer: str, *, least: Decimal | None = None) -> Decimal | None:
    """The number that `value` says; None for null.

    :raises Permanent: naming `pointer`, for what is not a number, is below `least`, or is larger than 10¹²
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        raise Permanent(f"{pointer} must be a number", pointer)
    if isinstance(value, int):
        if abs(value) > 10**12:
            raise Permanent(f"{pointer} is larger than {MOST:f}", pointer)
        number = Decimal(value)
    else:
        text = repr(value) if isinstance(value, float) else str(value).strip()
        if len(text) > 40:
            raise Permanent(f"{pointer} is not a plain number", pointer)
        try:
            number = Decimal(text)
        except InvalidOperation:
            raise Permanent(f"{pointer} must be a number", pointer) from None
        if not number.is_finite() or abs(number) > MOST:
            raise Permanent(f"{pointer} is larger than {MOST:f}", pointer)
        if number.as_tuple().exponent < -6:  # type: ignore[operator]  # finite: the exponent is a number
            number = number.quantize(QUANTUM)
    if least is not None and number < least:
        raise Permanent(f"{pointer} must not be below {least}", pointer)
    return number
