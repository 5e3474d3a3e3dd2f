"""A customer's own rhythm of ordering."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from statistics import median

from shared.facts.model import Order

LEAST_ORDERS = 3
TIMES = 1.5
MARGIN = timedelta(days=7)


def counted(orders: Iterable[Order]) -> list[Order]:
    """The orders that count in figures, oldest first: their money is known and they were not cancelled."""
    return sorted(
        (order for order in orders if order.total is not None and not order.cancelled), key=lambda order: (order.at, order.key)
    )


def median_gap(orders: Iterable[Order]) -> timedelta | None:
    """The median time between one order and the next; None with fewer than three orders."""
    moments = [order.at for order in counted(orders)]
    if len(moments) < LEAST_ORDERS:
        return None
    return timedelta(seconds=median((b - a).total_seconds() for a, b in zip(moments, moments[1:], strict=False)))


def later_than_own_rhythm(orders: Iterable[Order], at: datetime) -> bool:
    """Whether at `at` the last order is longer ago than 1.5 times the median gap, and than that gap by 7 days."""
    known = [order for order in counted(orders) if order.at <= at]
    gap = median_gap(known)
    if gap is None:
        return False
    silence = at - known[-1].at
    return silence > gap * TIMES and silence > gap + MARGIN
