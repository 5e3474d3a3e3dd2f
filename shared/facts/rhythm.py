"""A customer's own rhythm of ordering."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from fractions import Fraction
from itertools import pairwise

from shared.facts.model import Order

LEAST_ORDERS = 3
TIMES = Fraction(3, 2)
MARGIN = timedelta(days=7)


def counted(orders: Iterable[Order]) -> list[Order]:
    """The orders that count in figures, oldest first: their money is known and they were not cancelled."""
    return sorted(
        (order for order in orders if order.total is not None and not order.cancelled),
        key=lambda order: (order.at, order.key),
    )


def median_gap(orders: Iterable[Order]) -> timedelta | None:
    """The median time between one order and the next; None with fewer than three orders."""
    moments = [order.at for order in counted(orders)]
    if len(moments) < LEAST_ORDERS:
        return None
    return _doubled_median(moments) / 2


def _doubled_median(moments: list[datetime]) -> timedelta:
    """Twice the median gap: a sum of two gaps, so that comparing with it rounds nothing."""
    gaps = sorted(later - earlier for earlier, later in pairwise(moments))
    return gaps[(len(gaps) - 1) // 2] + gaps[len(gaps) // 2]


def later_than_own_rhythm(orders: Iterable[Order], at: datetime) -> bool:
    """Whether at `at` the last order is longer ago than 1.5 times the median gap, and than that gap by 7 days."""
    moments = [order.at for order in counted(orders) if order.at <= at]
    if len(moments) < LEAST_ORDERS:
        return False
    silence, doubled_gap = at - moments[-1], _doubled_median(moments)
    return TIMES.denominator * 2 * silence > TIMES.numerator * doubled_gap and 2 * (silence - MARGIN) > doubled_gap
