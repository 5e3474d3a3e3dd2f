"""`later_than_own_rhythm`: the customer has waited longer with the next order than is usual for them."""

from __future__ import annotations

from pydantic import RootModel, StrictBool

from shared.conditions.counting import orders_counted
from shared.conditions.model import Leaf, Look, Moment
from shared.facts.model import Facts
from shared.facts.rhythm import later_than_own_rhythm, median_gap


class Parameters(RootModel[StrictBool]):
    """true: they are late; false: they are not, or have too few orders to have a rhythm."""


class LaterThanOwnRhythm(Leaf):
    """Needs three orders; days since the last > 1.5 × the median gap, and > it by seven days."""

    name = "later_than_own_rhythm"
    parameters_type = Parameters
    examples = (True,)
    parameters: Parameters

    def look(self, facts: Facts, moment: Moment) -> Look:
        times = [order.at for order in orders_counted(facts, moment)]
        gap = median_gap(times)
        looked_at = {
            "orders": len(times),
            "median_gap_days": None if gap is None else round(gap.total_seconds() / 86400, 2),
            "last": times[-1] if times else None,
        }
        return Look(later_than_own_rhythm(times, moment.at) is self.parameters.root, looked_at)
