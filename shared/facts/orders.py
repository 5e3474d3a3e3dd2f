"""Orders: what several reports and refunds say together.

The winning report is the greatest by (trust, time, id): it names the node to which the order counts, and says whether the
order is cancelled. What it leaves out (a total, the lines) is taken from the next report that states it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from shared.facts.model import Order, OrderLine, Refund
from shared.facts.rows import OrderReport, RefundRow, ReportLine

ZERO = Decimal(0)


class Folded(NamedTuple):
    """One order key: the order if any report is known, else its refunds by themselves. `winner`: the winning report."""

    order: Order | None
    refunds: list[Refund]
    winner: OrderReport | None

    @property
    def owners(self) -> set[UUID]:
        """The nodes whose people have it among their facts."""
        return {self.order.node} if self.order is not None else {refund.node for refund in self.refunds}


def _rank(report: OrderReport | RefundRow) -> tuple:
    return report.trust, report.at, report.event


def fold_order(reports: Sequence[OrderReport], refunds: Sequence[RefundRow]) -> Folded:
    """All reports and refunds of one order key."""
    counted = _distinct(refunds)
    if not reports:
        return Folded(None, [_alone(refund) for refund in counted], None)
    ranked = sorted(reports, key=_rank, reverse=True)
    winner = ranked[0]
    completed = [report for report in ranked if report.kind == "completed"] or ranked
    best = [report for report in completed if report.trust == completed[0].trust]
    learned_first = min(completed, key=lambda report: (report.learned_at, report.event))
    total = next((r.total for r in ranked if r.states_money and r.total is not None), None)
    lines = next((r.lines for r in ranked if r.lines), [])
    order = Order(
        key=winner.order_key,
        node=winner.node,
        at=min(report.at for report in best),
        learned_at=learned_first.learned_at,
        total=total,
        refunded=refunded(counted, total, next((r.lines for r in ranked if r.states_money and r.lines), [])),
        cancelled=winner.kind == "cancelled",
        history=learned_first.history,
        channel=next((r.channel for r in ranked if r.channel), None),
        lines=with_returns(lines, counted),
    )
    return Folded(order, [], winner)


def _distinct(refunds: Iterable[RefundRow]) -> list[RefundRow]:
    """Two reports of one refund are one refund: the greatest by (trust, time, id) counts."""
    best: dict[str, RefundRow] = {}
    for refund in refunds:
        there = best.get(refund.refund_key)
        if there is None or _rank(refund) > _rank(there):
            best[refund.refund_key] = refund
    return sorted(best.values(), key=lambda refund: (refund.at, refund.refund_key))


def _alone(row: RefundRow) -> Refund:
    return Refund(
        key=row.refund_key,
        order_key=row.order_key,
        node=row.node,
        at=row.at,
        learned_at=row.learned_at,
        amount=row.amount,
        history=row.history,
        lines=[_line(line) for line in row.lines],
    )


def refunded(refunds: Sequence[RefundRow], total: Decimal | None, lines: Iterable[ReportLine]) -> Decimal:
    """The sum of the refunds of an order of `total`.

    One that names goods and no amount is worth what the order says of them, but all together no more than was paid; one
    that names neither is of the whole order.

    :param lines: the order's, from a source that may state money
    """
    paid = ZERO if total is None else total
    if any(refund.amount is None and not refund.lines for refund in refunds):
        return paid
    stated = sum((refund.amount for refund in refunds if refund.amount is not None), ZERO)
    left, worth = [_line(line) for line in lines], ZERO
    for refund in refunds:
        for returned in refund.lines:
            price = _take_back(left, returned.product_id, returned.quantity)
            worth += price if refund.amount is None else ZERO
    return stated + min(worth, max(paid - stated, ZERO))


def _line(line: ReportLine) -> OrderLine:
    return OrderLine(product_id=line.product_id, quantity=line.quantity, price=line.price, product=line.product)


def with_returns(lines: Iterable[ReportLine], refunds: Iterable[RefundRow]) -> list[OrderLine]:
    """The lines with what came back: a refund's own lines, or everything where it names neither lines nor amount."""
    result = [_line(line) for line in lines]
    for refund in refunds:
        if not refund.lines and refund.amount is None:
            for line in result:
                line.returned = line.quantity
        for returned in refund.lines:
            _take_back(result, returned.product_id, returned.quantity)
    return result


def _take_back(lines: list[OrderLine], product_id: str, quantity: Decimal) -> Decimal:
    """Returns what these lines say that the goods cost."""
    worth = ZERO
    for line in lines:
        if line.product_id == product_id and quantity > 0:
            back = min(quantity, line.quantity - line.returned)
            line.returned += back
            quantity -= back
            worth += ZERO if line.price is None else back * line.price
    return worth


def take_back_alone(orders: Iterable[Order], refunds: Iterable[Refund]) -> None:
    """Refunds that name no known order take their goods back from the person's latest orders before them (in place)."""
    latest_first = sorted(orders, key=order_of, reverse=True)
    for refund in refunds:
        for returned in refund.lines:
            left = returned.quantity
            for order in latest_first:
                if order.at <= refund.at and left > 0:
                    before = sum((line.returned for line in order.lines), ZERO)
                    _take_back(order.lines, returned.product_id, left)
                    left -= sum((line.returned for line in order.lines), ZERO) - before


def order_of(order: Order) -> tuple:
    """Orders are listed in this order: oldest first."""
    return order.at, order.key


def refund_order_of(refund: Refund) -> tuple:
    """Refunds are listed in this order, however they were put together: oldest first."""
    return refund.at, refund.order_key, refund.key
