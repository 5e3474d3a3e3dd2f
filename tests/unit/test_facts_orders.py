"""Orders from several reports, refunds, and the customer's own rhythm."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal as D
from uuid import UUID

import pytest

from shared.facts.model import Order, OrderLine, Refund
from shared.facts.orders import fold_order, take_back_alone
from shared.facts.rhythm import later_than_own_rhythm, median_gap
from shared.facts.rows import OrderReport, RefundRow, ReportLine

START = datetime(2025, 1, 1, tzinfo=UTC)
BROWSER, SERVER = UUID(int=1), UUID(int=2)


def report(
    number: int, *, trust: int = 2, at: float = 0, learned: float = 0, kind: str = "completed", **more: object
) -> OrderReport:
    return OrderReport(
        order_key="o-1",
        event=UUID(int=100 + number),
        node=SERVER if trust >= 2 else BROWSER,
        kind=kind,
        trust=trust,
        at=START + timedelta(hours=at),
        learned_at=START + timedelta(hours=learned),
        **more,  # type: ignore[arg-type]
    )


def refund(number: int, amount: str | None, *, key: str | None = None, lines: tuple = (), at: float = 1) -> RefundRow:
    return RefundRow(
        order_key="o-1",
        event=UUID(int=200 + number),
        node=SERVER,
        refund_key=key or f"r-{number}",
        trust=2,
        at=START + timedelta(hours=at),
        learned_at=START + timedelta(hours=at),
        amount=None if amount is None else D(amount),
        lines=[ReportLine(product, D(quantity)) for product, quantity in lines],
    )


def test_the_better_source_says_what_the_order_is_and_the_first_says_when_it_was_learned() -> None:
    browser = report(1, trust=0, at=0, learned=0, lines=[ReportLine("p", D(1))])
    server = report(2, at=1, learned=9, total=D("99.90"), channel="web", history=True)
    order = fold_order([browser, server], []).order
    assert order is not None
    assert (order.node, order.total, order.channel) == (SERVER, D("99.90"), "web")
    assert order.learned_at == START
    assert order.history is False
    assert [line.product_id for line in order.lines] == ["p"]


def test_money_is_known_only_from_a_source_that_may_state_it() -> None:
    order = fold_order([report(1, trust=0)], []).order
    assert order is not None
    assert order.total is None


def test_an_update_changes_the_total_and_not_the_time() -> None:
    order = fold_order([report(1, total=D(10)), report(2, at=50, kind="updated", total=D(12))], []).order
    assert order is not None
    assert (order.total, order.at) == (D(12), START)


def test_a_cancelled_order_keeps_its_total_and_is_cancelled() -> None:
    order = fold_order([report(1, total=D(10)), report(2, at=5, kind="cancelled")], []).order
    assert order is not None
    assert (order.cancelled, order.total) == (True, D(10))


def test_a_public_cancellation_cancels_nothing_that_the_server_reported() -> None:
    order = fold_order([report(1, total=D(10)), report(2, trust=0, at=5, kind="cancelled")], []).order
    assert order is not None
    assert order.cancelled is False


def test_refunds_add_up_and_lines_come_back() -> None:
    lines = [ReportLine("p", D(2), D(5)), ReportLine("q", D(1), D(7))]
    order = fold_order(
        [report(1, total=D(17), lines=lines)], [refund(1, "5", lines=(("p", 1),)), refund(2, "7", lines=(("q", 1),))]
    ).order
    assert order is not None
    assert order.refunded == D(12)
    assert [line.returned for line in order.lines] == [D(1), D(1)]


def test_a_refund_without_an_amount_is_of_everything() -> None:
    order = fold_order([report(1, total=D(17), lines=[ReportLine("p", D(2))])], [refund(1, None)]).order
    assert order is not None
    assert (order.refunded, order.lines[0].returned) == (D(17), D(2))


def goods(*named: tuple[str, int, int]) -> list[ReportLine]:
    return [ReportLine(product, D(quantity), D(price)) for product, quantity, price in named]


def test_a_refund_that_names_goods_and_no_amount_is_worth_what_the_order_says_of_them() -> None:
    lines = goods(("p", 2, 5), ("q", 1, 7))
    order = fold_order([report(1, total=D(17), lines=lines)], [refund(1, None, lines=(("p", 1),))]).order
    assert order is not None
    assert (order.refunded, [line.returned for line in order.lines]) == (D(5), [D(1), D(0)])


def test_goods_that_come_back_twice_are_worth_no_more_than_was_bought() -> None:
    lines = goods(("p", 2, 5), ("q", 1, 7))
    back = [refund(1, None, lines=(("p", 1),)), refund(2, None, lines=(("p", 2),), at=2)]
    order = fold_order([report(1, total=D(17), lines=lines)], back).order
    assert order is not None
    assert order.refunded == D(10)


def test_goods_of_a_discounted_order_bring_back_no_more_than_was_paid() -> None:
    lines = goods(("p", 2, 5), ("q", 1, 7))
    back = [refund(1, "4", lines=(("q", 1),)), refund(2, None, lines=(("p", 2),))]
    order = fold_order([report(1, total=D(12), lines=lines)], back).order
    assert order is not None
    assert order.refunded == D(12)


def test_what_a_browser_says_of_prices_brings_back_no_money() -> None:
    browser = report(1, trust=0, lines=goods(("p", 1, 17)))
    order = fold_order([browser, report(2, total=D(17))], [refund(1, None, lines=(("p", 1),))]).order
    assert order is not None
    assert (order.refunded, order.lines[0].returned) == (D(0), D(1))


def test_a_refund_of_everything_beside_one_of_goods_is_of_the_whole_order() -> None:
    order = fold_order(
        [report(1, total=D(17), lines=goods(("p", 2, 5), ("q", 1, 7)))],
        [refund(1, None, lines=(("p", 1),)), refund(2, None)],
    ).order
    assert order is not None
    assert order.refunded == D(17)


def test_two_reports_of_one_refund_are_one_refund() -> None:
    order = fold_order([report(1, total=D(17))], [refund(1, "5", key="r"), refund(2, "6", key="r", at=2)]).order
    assert order is not None
    assert order.refunded == D(6)


def test_a_refund_may_come_without_its_order() -> None:
    found = fold_order([], [refund(1, "5", lines=(("p", 2),))])
    assert found.order is None
    assert [(it.amount, it.lines[0].quantity) for it in found.refunds] == [(D(5), D(2))]
    assert found.owners == {SERVER}


def test_a_refund_without_its_order_takes_goods_from_the_latest_orders_before_it() -> None:
    def order(key: str, days: int) -> Order:
        moment = START + timedelta(days=days)
        return Order(
            key=key, node=SERVER, at=moment, learned_at=moment, lines=[OrderLine(product_id="p", quantity=D(2))]
        )

    orders = [order("a", 1), order("b", 2), order("later", 9)]
    back = Refund(
        key="r",
        order_key="c",
        node=SERVER,
        at=START + timedelta(days=5),
        learned_at=START,
        lines=[OrderLine(product_id="p", quantity=D(3))],
    )
    take_back_alone(orders, [back])
    assert {one.key: one.lines[0].returned for one in orders} == {"a": D(1), "b": D(2), "later": D(0)}


def bought(*days: float, total: str | None = "10", cancelled: bool = False) -> list[Order]:
    return [
        Order(
            key=f"{cancelled}{total}{day}",
            node=SERVER,
            at=START + timedelta(days=day),
            learned_at=START,
            total=None if total is None else D(total),
            cancelled=cancelled,
        )
        for day in days
    ]


def test_the_own_rhythm_is_the_median_gap_and_needs_three_orders() -> None:
    assert median_gap(bought(0, 10)) is None
    assert median_gap(bought(0, 10, 40)) == timedelta(days=20)
    assert median_gap(bought(0, 10, 110, 120)) == timedelta(days=10)


def test_cancelled_orders_and_those_without_money_make_no_rhythm() -> None:
    assert median_gap([*bought(0, 10), *bought(20, cancelled=True), *bought(30, total=None)]) is None


@pytest.mark.parametrize(("days", "late"), [(60, False), (60 + 30, False), (60 + 45, False), (60 + 46, True)])
def test_later_than_own_rhythm_is_half_as_long_again(days: float, late: bool) -> None:
    assert later_than_own_rhythm(bought(0, 30, 60), START + timedelta(days=days)) is late


def test_with_a_short_rhythm_a_week_more_is_needed() -> None:
    orders = bought(0, 2, 4)
    assert not later_than_own_rhythm(orders, START + timedelta(days=4 + 9))
    assert later_than_own_rhythm(orders, START + timedelta(days=4 + 9.1))
