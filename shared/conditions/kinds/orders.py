"""`orders`: figures over the person's orders."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from pydantic import model_validator

from shared.conditions.counting import orders_counted
from shared.conditions.fields import Duration, NumberComparison, Strict, refusal
from shared.conditions.model import Leaf, Look, Moment
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
        total = sum((order.total - order.refunded for order in orders if order.total is not None), Decimal(0))
        last = orders[-1].at if orders else None
        looked_at: dict[str, Any] = {"count": len(orders), "total": total, "last": last}
        holds = asked.count is None or asked.count.accepts(len(orders))
        holds = holds and (asked.total is None or asked.total.accepts(total))
        if asked.average is not None:
            looked_at["average"] = (total / len(orders)).quantize(Decimal("0.01")) if orders else None
            holds = holds and bool(orders) and average_accepted(asked.average, total, len(orders))
        if asked.last is not None:
            holds = holds and last is not None
            if last is not None and asked.last.before is not None:
                holds = holds and last <= moment.at - asked.last.before
            if last is not None and asked.last.within is not None:
                holds = holds and last > moment.at - asked.last.within
        return Look(holds, looked_at)


def average_accepted(comparison: NumberComparison, total: Decimal, count: int) -> bool:
    """Whether total ÷ count meets the comparison, without rounding: the operands are multiplied instead."""
    widened = {
        operator: [one * count for one in operand] if isinstance(operand, list) else operand * count
        for operator, operand in comparison.given.items()
    }
    return NumberComparison.model_validate(widened).accepts(total)
