"""`days_since_order`: how long the last order lies back."""

from __future__ import annotations

from datetime import timedelta

from shared.conditions.counting import orders_counted
from shared.conditions.fields import NumberComparison
from shared.conditions.model import Leaf, Look, Moment
from shared.conditions.sql.builder import Bounds, Statement
from shared.conditions.sql.comparing import number_test
from shared.conditions.sql.orders import figures, over_figures
from shared.facts.model import Facts


class DaysSinceOrder(Leaf):
    """Whole days (of 24 hours) between the last order and the moment; absent without an order."""

    name = "days_since_order"
    parameters_type = NumberComparison
    examples = ({"gte": 180}, {"between": [30, 60]})
    parameters: NumberComparison

    def look(self, facts: Facts, moment: Moment) -> Look:
        orders = orders_counted(facts, moment)
        last = orders[-1].at if orders else None
        days = None if last is None else (moment.at - last) // timedelta(days=1)
        return Look(self.parameters.accepts(days), {"days": days, "last": last})

    def sql(self, statement: Statement) -> Bounds:
        days = f"floor(extract(epoch FROM {statement.at} - f.last) / 86400)"
        test = number_test(statement, days, self.parameters)
        return over_figures(statement, figures(statement), test, others=False)
