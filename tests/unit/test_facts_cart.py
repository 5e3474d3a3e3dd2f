"""The cart as a fold of its operations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal as D
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.facts.cart import LIMIT, CartFold, CartState
from shared.facts.rows import CartLine, CartOp
from tests.reference.cart_fold import fold_cart

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
            CartLine(
                draw(products),
                draw(quantities),
                draw(st.sampled_from([None, D(10)])),
                draw(st.sampled_from([{}, {"name": "x"}])),
            )
            for _ in range(draw(st.integers(0 if kind == "view" else 1, 3)))
        ]
        at = START + timedelta(hours=draw(st.integers(0, 40 * 24)))
        ops.append(
            CartOp(
                at, UUID(int=number), kind, draw(st.sampled_from(["o-1", "o-2"])) if kind == "order" else None, items
            )
        )
    return ops


@settings(max_examples=400)
@given(ops=operations(), kept=st.sets(st.integers(1, 18)), later=st.integers(0, 45 * 24))
def test_one_operation_after_the_other_gives_the_same_cart_as_all_at_once(
    ops: list[CartOp], kept: set[int], later: int
) -> None:
    """Also where it was kept in between, without what cannot matter any more, and however long one waits."""
    cart = CartFold(CartState())
    ordered = sorted(ops, key=lambda one: (one.at, one.id))
    for number, one in enumerate(ordered, 1):
        assert not cart.is_late(one)
        cart.take(one, one.at)
        assert cart.cart(one.at) == fold_cart(ordered[:number], one.at)
        if number in kept:
            cart = CartFold(cart.state(one.at))
    end = (ordered[-1].at if ordered else START) + timedelta(hours=later)
    assert cart.cart(end) == fold_cart(ops, end)


@settings(max_examples=200)
@given(ops=operations(), split=st.integers(0, 18), later=st.integers(0, 45 * 24))
def test_a_cart_folded_from_rows_goes_on_like_one_that_was_kept(ops: list[CartOp], split: int, later: int) -> None:
    ordered = sorted(ops, key=lambda one: (one.at, one.id))
    known, rest = ordered[:split], ordered[split:]
    cart = CartFold.of(known, known[-1].at) if known else CartFold(CartState())
    for one in rest:
        cart.take(one, one.at)
    end = (ordered[-1].at if ordered else START) + timedelta(hours=later)
    assert cart.cart(end) == fold_cart(ops, end)


def test_what_cannot_matter_any_more_is_not_kept() -> None:
    cart = CartFold(CartState())
    for number in range(300):
        cart.take(op(2 * number, "add", ("p", 1), at=60 * number), START + timedelta(minutes=number))
        cart.take(
            op(2 * number + 1, "remove", ("p", 1), at=60 * number + 1), START + timedelta(minutes=number, seconds=1)
        )
    state = cart.state(START + timedelta(hours=5))
    assert state.ops == []
    assert state.count == 600


def test_of_many_operations_the_latest_are_counted_one_by_one_too() -> None:
    cart, ops = CartFold(CartState()), [op(i, "add", (f"p-{i % 7}", 1), at=i) for i in range(LIMIT + 40)]
    for one in ops:
        cart.take(one, one.at)
    assert cart.cart(ops[-1].at) == fold_cart(ops, ops[-1].at)
    assert CartFold(cart.state(ops[-1].at)).cart(ops[-1].at) == fold_cart(ops, ops[-1].at)


def test_an_operation_that_is_not_after_the_last_is_late() -> None:
    cart = CartFold(CartState())
    cart.take(op(5, "add", ("p", 1), at=10), START + timedelta(seconds=10))
    assert cart.is_late(op(4, "add", ("p", 1), at=10))
    assert cart.is_late(op(6, "add", ("p", 1), at=9))
    assert not cart.is_late(op(6, "add", ("p", 1), at=10))


@settings(max_examples=200)
@given(ops=operations(), later=st.integers(0, 45 * 24))
def test_what_comes_late_is_put_in_its_place(ops: list[CartOp], later: int) -> None:
    """In the order of their numbers, which is not that of their times; learned when all of them have occurred."""
    end = START + timedelta(days=40)
    cart = CartFold.of([], end)
    for one in ops:
        if cart.is_late(one):
            cart.insert(one, end)
        else:
            cart.take(one, end)
    assert cart.cart(end) == fold_cart(ops, end)
    state = cart.state(end)
    assert CartFold(state).cart(end + timedelta(hours=later)) == fold_cart(ops, end + timedelta(hours=later))
