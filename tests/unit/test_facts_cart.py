"""The cart as a fold of its operations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal as D
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.facts.cart import LIMIT, CartState, fold_cart
from shared.facts.rows import CartLine, CartOp

START = datetime(2025, 1, 1, tzinfo=UTC)
DAY = 86_400


def op(number: int, kind: str, *items: tuple, at: float = 0, order: str | None = None) -> CartOp:
    lines = [CartLine(item[0], *(D(str(x)) if x is not None else None for x in item[1:])) for item in items]
    return CartOp(START + timedelta(seconds=at), UUID(int=number), kind, order, lines)


def contents(ops: list[CartOp], at: float = DAY) -> dict[str, D]:
    cart = fold_cart(ops, START + timedelta(seconds=at))
    return {item.product_id: item.quantity for item in cart.items}


def test_added_and_removed_count_in_the_order_of_their_time_not_of_arrival() -> None:
    ops = [op(1, "remove", ("p", 1), at=20), op(2, "add", ("p", 2), at=10), op(3, "add", ("q", 1), at=30)]
    assert contents(ops) == {"p": D(1), "q": D(1)}


def test_removed_without_a_quantity_takes_everything_away() -> None:
    assert contents([op(1, "add", ("p", 3), at=1), op(2, "remove", ("p",), at=2)]) == {}


def test_cart_viewed_replaces_everything() -> None:
    ops = [op(1, "add", ("p", 3), at=1), op(2, "view", ("q", 2), at=2), op(3, "add", ("p", 1), at=3)]
    assert contents(ops) == {"q": D(2), "p": D(1)}


def test_an_order_takes_out_what_it_bought() -> None:
    ops = [op(1, "add", ("p", 3), ("q", 1), at=1), op(2, "order", ("p", 2), ("x", 9), at=2, order="o-1")]
    assert contents(ops) == {"p": D(1), "q": D(1)}


def test_two_reports_of_one_order_take_out_once() -> None:
    ops = [
        op(1, "add", ("p", 1), at=1),
        op(2, "order", ("p", 1), at=2, order="o-1"),
        op(3, "add", ("p", 1), at=3),
        op(4, "order", ("p", 1), at=4, order="o-1"),
    ]
    assert contents(ops) == {"p": D(1)}
    assert contents([*ops, op(5, "order", ("p", 1), at=5, order="o-2")]) == {}


def test_what_was_added_thirty_days_ago_lies_there_no_more() -> None:
    ops = [op(1, "add", ("p", 1), at=0), op(2, "add", ("q", 1), at=DAY)]
    assert contents(ops, at=30 * DAY - 1) == {"p": D(1), "q": D(1)}
    assert contents(ops, at=30 * DAY) == {"q": D(1)}
    assert contents(ops, at=31 * DAY) == {}


def test_only_the_latest_operations_count() -> None:
    ops = [op(i, "add", (f"p-{i}", 1), at=i) for i in range(LIMIT + 2)]
    assert set(contents(ops)) == {f"p-{i}" for i in range(2, LIMIT + 2)}


def test_the_total_counts_what_has_a_price() -> None:
    cart = fold_cart([op(1, "add", ("p", 2, "1.50"), ("q", 5), at=1)], START + timedelta(days=1))
    assert cart.total == D("3.00")


def test_the_cart_knows_when_each_thing_was_put_there_last() -> None:
    ops = [op(1, "add", ("p", 1), at=1), op(2, "add", ("p", 1), at=5), op(3, "remove", ("p", 1), at=9)]
    cart = fold_cart(ops, START + timedelta(days=1))
    assert cart.items[0].added_at == START + timedelta(seconds=5)
    assert cart.changed_at == START + timedelta(seconds=9)


products = st.sampled_from(["p", "q", "r"])
quantities = st.sampled_from([None, D(1), D(2), D("0.5")])


@st.composite
def operations(draw: st.DrawFn) -> list[CartOp]:
    ops = []
    for number in range(draw(st.integers(0, 18))):
        kind = draw(st.sampled_from(["add", "add", "add", "remove", "view", "order", "order"]))
        items = [
            CartLine(draw(products), draw(quantities), draw(st.sampled_from([None, D(10)])), draw(st.sampled_from([{}, {"name": "x"}])))
            for _ in range(draw(st.integers(0 if kind == "view" else 1, 3)))
        ]  # fmt: skip
        at = START + timedelta(hours=draw(st.integers(0, 40 * 24)))
        ops.append(CartOp(at, UUID(int=number), kind, draw(st.sampled_from(["o-1", "o-2"])) if kind == "order" else None, items))
    return ops


@settings(max_examples=400)
@given(ops=operations(), later=st.integers(0, 45 * 24))
def test_one_operation_after_the_other_gives_the_same_cart_as_all_at_once(ops: list[CartOp], later: int) -> None:
    """Also after some are left out because they cannot matter any more, and however long one waits."""
    state = CartState()
    ordered = sorted(ops, key=lambda one: (one.at, one.id))
    for number, one in enumerate(ordered, 1):
        assert not state.is_late(one)
        state, cart = state.after(one, one.at)
        assert cart == fold_cart(ordered[:number], one.at)
    end = (ordered[-1].at if ordered else START) + timedelta(hours=later)
    assert state.cart(end) == fold_cart(ops, end)


@settings(max_examples=200)
@given(ops=operations(), split=st.integers(0, 18), later=st.integers(0, 45 * 24))
def test_a_cart_folded_from_rows_goes_on_like_one_that_was_kept(ops: list[CartOp], split: int, later: int) -> None:
    ordered = sorted(ops, key=lambda one: (one.at, one.id))
    known, rest = ordered[:split], ordered[split:]
    state = CartState.of(known, known[-1].at)[0] if known else CartState()
    for one in rest:
        state = state.after(one, one.at)[0]
    end = (ordered[-1].at if ordered else START) + timedelta(hours=later)
    assert state.cart(end) == fold_cart(ops, end)


def test_what_cannot_matter_any_more_is_not_kept() -> None:
    state = CartState()
    for number in range(300):
        moment = START + timedelta(minutes=number)
        state = state.after(op(2 * number, "add", ("p", 1), at=60 * number), moment)[0]
        state = state.after(op(2 * number + 1, "remove", ("p", 1), at=60 * number + 1), moment + timedelta(seconds=1))[0]
    assert state.ops == []
    assert state.count == 600


def test_an_operation_that_is_not_after_the_last_is_late() -> None:
    state = CartState().after(op(5, "add", ("p", 1), at=10), START + timedelta(seconds=10))[0]
    assert state.is_late(op(4, "add", ("p", 1), at=10))
    assert state.is_late(op(6, "add", ("p", 1), at=9))
    assert not state.is_late(op(6, "add", ("p", 1), at=10))
