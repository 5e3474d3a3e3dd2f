"""`later_than_own_rhythm`: the customer has waited longer with the next order than is usual for them."""

from __future__ import annotations

from pydantic import RootModel, StrictBool

from shared.conditions.counting import orders_counted
from shared.conditions.model import Leaf, Look, Moment
from shared.conditions.sql.builder import Bounds, Statement, Test
from shared.conditions.sql.orders import counted_orders, over_figures
from shared.facts.model import Facts
from shared.facts.rhythm import LEAST_ORDERS, MARGIN, TIMES, later_than_own_rhythm, median_gap


class Parameters(RootModel[StrictBool]):
    """true: they are late; false: they are not, or have too few orders to have a rhythm."""


class LaterThanOwnRhythm(Leaf):
    """Needs three orders; days since the last > 1.5 × the median gap, and > it by seven days."""

    name = "later_than_own_rhythm"
    parameters_type = Parameters
    examples = (True,)
    parameters: Parameters

    def look(self, facts: Facts, moment: Moment) -> Look:
        orders = orders_counted(facts, moment)
        gap = median_gap(orders)
        looked_at = {
            "orders": len(orders),
            "median_gap_days": None if gap is None else round(gap.total_seconds() / 86400, 2),
            "last": orders[-1].at if orders else None,
        }
        return Look(later_than_own_rhythm(orders, moment.at) is self.parameters.root, looked_at)

    def sql(self, statement: Statement) -> Bounds:
        gaps = (
            "SELECT m.profile, o.at, "
            "extract(epoch FROM o.at - lag(o.at) OVER (PARTITION BY m.profile ORDER BY o.at)) AS gap "
            f"{counted_orders(statement)}"
        )
        # The lower and the upper middle: twice the median, as in shared.facts.rhythm.
        rows = statement.once(
            "SELECT profile, max(at) AS last, percentile_disc(0.5) WITHIN GROUP (ORDER BY gap) "
            "+ percentile_disc(0.5) WITHIN GROUP (ORDER BY gap DESC) AS doubled_gap "
            f"FROM ({gaps}) g GROUP BY profile HAVING count(*) >= {LEAST_ORDERS}"
        )
        silence = f"extract(epoch FROM {statement.at} - f.last)"
        late = (
            f"({2 * TIMES.denominator} * {silence} > {TIMES.numerator} * f.doubled_gap "
            f"AND 2 * ({silence} - {int(MARGIN.total_seconds())}) > f.doubled_gap)"
        )
        bounds = over_figures(statement, rows, Test(late), others=False)
        return bounds if self.parameters.root else bounds.negated()
