"""`orders`: figures over the person's orders."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic import model_validator

from shared.conditions.counting import orders_counted
from shared.conditions.fields import Duration, NumberComparison, Strict, refusal
from shared.conditions.model import Leaf, Look, Moment
from shared.conditions.sql.builder import Bounds, Statement, Test, both
from shared.conditions.sql.comparing import number_test
from shared.conditions.sql.orders import figures, over_figures
from shared.conditions.sql.orders import refunds_alone as refunds_alone_sql
from shared.facts.model import Facts


class Last(Strict):
    """When the last order was: `before` T − d (or just then), `within` (T − d, T]."""

    before: Duration | None = None
    within: Duration | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Last:
        if not self.model_fields_set:
            raise refusal("asks nothing: give before or within")
        return self


class Parameters(Strict):
    """Money is less what was refunded, in the shop's currency."""

    count: NumberComparison | None = None
    total: NumberComparison | None = None
    average: NumberComparison | None = None
    last: Last | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Parameters:
        if not self.model_fields_set:
            raise refusal("asks nothing: give count, total, average or last")
        return self


class Orders(Leaf):
    """All that is named must hold. Without an order count and total are 0, average and last are absent."""

    name = "orders"
    parameters_type = Parameters
    examples = (
        {"count": {"gte": 2}},
        {"total": {"gt": 10000}, "average": {"lt": 2000}},
        {"last": {"before": "30d"}},
        {"count": {"eq": 0}},
    )
    parameters: Parameters

    def look(self, facts: Facts, moment: Moment) -> Look:
        asked, orders = self.parameters, orders_counted(facts, moment)
        spent = sum((order.total - order.refunded for order in orders if order.total is not None), Decimal(0))
        total = spent - refunds_alone(facts, moment)
        last = orders[-1].at if orders else None
        looked_at: dict[str, Any] = {"count": len(orders), "total": total, "last": last}
        holds = asked.count is None or asked.count.accepts(len(orders))
        holds = holds and (asked.total is None or asked.total.accepts(total))
        if asked.average is not None:
            looked_at["average"] = (spent / len(orders)).quantize(Decimal("0.01")) if orders else None
            holds = holds and bool(orders) and average_accepted(asked.average, spent, len(orders))
        if asked.last is not None:
            holds = holds and last is not None
            if last is not None and asked.last.before is not None:
                holds = holds and last <= moment.at - asked.last.before
            if last is not None and asked.last.within is not None:
                holds = holds and last > moment.at - asked.last.within
        return Look(holds, looked_at)

    def sql(self, statement: Statement) -> Bounds:
        asked, rows = self.parameters, figures(statement)
        tests = []
        if asked.total is not None:
            rows = statement.once(
                "SELECT profile, coalesce(n, 0) AS n, coalesce(spent, 0) AS spent, last, "
                "coalesce(spent, 0) - coalesce(refunded, 0) AS total "
                f"FROM {rows} o FULL JOIN {refunds_alone_sql(statement)} r USING (profile)"
            )
            tests.append(number_test(statement, "f.total", asked.total))
        if asked.count is not None:
            tests.append(number_test(statement, "f.n", asked.count))
        if asked.average is not None:
            tests += [Test("(f.n > 0)"), number_test(statement, "f.spent", asked.average, times="f.n")]
        if asked.last is not None:
            tests += _last_tests(statement, asked.last)
        nobody = Facts(profile=UUID(int=0), nodes=[])
        return over_figures(statement, rows, both(tests), others=self.look(nobody, statement.moment).holds)


def refunds_alone(facts: Facts, moment: Moment) -> Decimal:
    """What was refunded of orders that nobody reported; it lowers what the person spent all the same."""
    return sum(
        (
            refund.amount
            for refund in facts.refunds
            if refund.amount is not None and refund.at <= moment.at and refund.learned_at <= moment.at
        ),
        Decimal(0),
    )


def average_accepted(comparison: NumberComparison, total: Decimal, count: int) -> bool:
    """Whether total ÷ count meets the comparison, without rounding: the operands are multiplied instead."""
    widened = {
        operator: [one * count for one in operand] if isinstance(operand, list) else operand * count
        for operator, operand in comparison.given.items()
    }
    return NumberComparison.model_validate(widened).accepts(total)


def _last_tests(statement: Statement, last: Last) -> list[Test]:
    tests = [Test("(f.last IS NOT NULL)")]
    for sign, duration in (("<=", last.before), (">", last.within)):
        if duration is not None:
            edge = statement.parameter(statement.moment.at - duration, "timestamptz")
            tests.append(Test(f"coalesce(f.last {sign} {edge}, false)"))
    return tests
