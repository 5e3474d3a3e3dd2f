"""The cart: a fold of its operations in the order of their time.

Of a person's operations those of the last 30 days count, and of these the latest 500. *Added* adds, *Removed* takes away,
*Cart Viewed* replaces everything, an order takes out what it bought. Two reports of one order take out what it bought once.

What becomes of a product depends on the operations that name it and on the last *Cart Viewed*, on nothing else: so a cart at
work folds anew only the products that an operation names, wherever in time it comes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from heapq import nlargest
from uuid import UUID

import msgspec

from shared.facts.model import Cart, CartItem
from shared.facts.rows import CartLine, CartOp

LIFETIME = timedelta(days=30)
LIMIT = 500
ZERO, ONE = Decimal(0), Decimal(1)


def in_force(ops: Iterable[CartOp], at: datetime) -> list[CartOp]:
    """The operations that count at `at`, in order: those of the last 30 days, of these the latest 500."""
    start = at - LIFETIME
    return sorted((op for op in ops if start < op.at <= at), key=order_of)[-LIMIT:]


def order_of(op: CartOp) -> tuple[datetime, UUID]:
    """Operations are folded in this order."""
    return op.at, op.id


class _Lying(msgspec.Struct):
    """A product in the cart. `first`: the place (time, id, line) of what put it there; `since`: the operations that matter
    to it since it was last absent; `amount`: price times quantity."""

    item: CartItem
    first: tuple[datetime, UUID, int]
    since: set[UUID]
    amount: Decimal


def _put(there: _Lying | None, op: CartOp, line: int, item: CartLine) -> _Lying | None:
    quantity = ONE if item.quantity is None else item.quantity
    if quantity <= 0:
        return there
    if there is None:
        lying = CartItem(
            product_id=item.product_id, quantity=quantity, price=item.price, added_at=op.at, product=item.product
        )
        return _Lying(lying, (op.at, op.id, line), {op.id}, ZERO)
    known = there.item
    known.quantity += quantity
    known.price = known.price if item.price is None else item.price
    known.added_at = op.at
    known.product = {**known.product, **item.product}
    there.since.add(op.id)
    return there


def _take(there: _Lying | None, op: CartOp, quantity: Decimal | None) -> _Lying | None:
    if there is None or quantity is None or there.item.quantity <= quantity:
        return None
    there.item.quantity -= quantity
    there.since.add(op.id)
    return there


def _left_to_take(taken: dict[str, Decimal | None], key: str, quantity: Decimal | None) -> Decimal | None:
    """What this report of an order takes out beyond the earlier ones (None: all that lies there)."""
    before = taken.get(key, ZERO)
    if before is None:
        return ZERO
    if quantity is None:
        taken[key] = None
        return None
    taken[key] = max(before, quantity)
    return max(ZERO, quantity - before)


def _fold_product(product_id: str, ops: Iterable[CartOp], view: CartOp | None) -> _Lying | None:
    """What lies in the cart of one product. `ops`: all that name it, in order; `view`: the last *Cart Viewed* of all."""
    there: _Lying | None = None
    taken: dict[str, Decimal | None] = {}
    for op in ops:
        gone = view is not None and order_of(op) < order_of(view)
        if gone and op.kind != "order":
            continue
        for line, item in enumerate(op.items):
            if item.product_id != product_id:
                continue
            if op.kind in ("add", "view"):
                there = _put(there, op, line, item)
            elif op.kind == "remove":
                there = _take(there, op, item.quantity)
            else:
                left = _left_to_take(taken, op.order_key or str(op.id), item.quantity)
                if left is None or left > 0:
                    there = _take(there, op, left)
    if there is not None and there.item.price is not None:
        there.amount = there.item.quantity * there.item.price
    return there


class CartState(msgspec.Struct, omit_defaults=True):
    """The operations that can still matter, as they are kept with a person's cached state.

    Whatever cannot change any cart from now on is left out: for every later moment, and whatever operations come after
    `last`, folding this equals folding all operations. An operation that is *not* after `last` needs all of them again.
    `ops` are pairs of (running number, operation); `count` is the highest running number: the latest 500 count.
    """

    count: int = 0
    last_at: datetime | None = None
    last_id: UUID | None = None
    ops: list[tuple[int, CartOp]] = []


class CartFold:
    """A cart at work: takes in operations, shows the cart, and says what to keep."""

    def __init__(self, state: CartState) -> None:
        self._count, self._last_at, self._last_id = state.count, state.last_at, state.last_id
        self._ops = list(state.ops)
        self._naming: dict[str, list[CartOp]] = {}
        self._views: list[CartOp] = []
        for _, op in self._ops:
            self._enter(op)
        self._lying: dict[str, _Lying] = {}
        self._stale = set(self._naming)
        self.complete = False  # nothing was left out: an operation that comes late can be put in its place

    @classmethod
    def of(cls, ops: Iterable[CartOp], at: datetime) -> CartFold:
        """All operations anew, as of `at`."""
        counted = in_force(ops, at)
        fold = cls(CartState())
        if counted:
            fold = cls(CartState(len(counted), counted[-1].at, counted[-1].id, list(enumerate(counted, 1))))
        fold.complete = True
        return fold

    @property
    def last(self) -> tuple[datetime, UUID] | None:
        """Time and id of the last operation."""
        return None if self._last_at is None or self._last_id is None else (self._last_at, self._last_id)

    def is_late(self, op: CartOp) -> bool:
        """Whether `op` does not come after everything that was folded."""
        return self.last is not None and order_of(op) <= self.last

    def take(self, op: CartOp, at: datetime) -> None:
        """One more operation, learned at `at`; it must not be late."""
        self._count += 1
        self._last_at, self._last_id = order_of(op)
        self._ops.append((self._count, op))
        self._enter(op)
        self._outdate(op)
        self._forget(at)

    def insert(self, op: CartOp, at: datetime) -> None:
        """One more operation that comes late; only while nothing was left out."""
        assert self.complete
        place = bisect_left(self._ops, order_of(op), key=lambda pair: order_of(pair[1]))
        ops = [known for _, known in self._ops]
        ops.insert(place, op)
        self._count = len(ops)
        self._ops = list(enumerate(ops, 1))
        self._enter(op)
        self._outdate(op)
        self._forget(at)

    def cart(self, at: datetime, most: int | None = None) -> Cart:
        """The cart at `at`, which is not before what was folded; with `most`, of its items the latest ones."""
        self._forget(at)
        lying = list(self._folded().values())
        total = sum((it.amount for it in lying), ZERO)
        changed_at = self._last_at if self._last_at is not None and self._last_at > at - LIFETIME else None
        if most is not None and len(lying) > most:
            lying = nlargest(most, lying, key=lambda it: (it.item.added_at, it.first))[::-1]
        else:
            lying.sort(key=lambda it: it.first)
        return Cart(items=[it.item for it in lying], total=total, changed_at=changed_at)

    @property
    def unchanged_until(self) -> datetime | None:
        """The moment from which the cart may change by itself, because something becomes too old; None: never."""
        oldest = self._ops[0][1].at if self._ops else self._last_at
        return None if oldest is None else oldest + LIFETIME

    def state(self, at: datetime) -> CartState:
        """What must be kept."""
        self._forget(at)
        matter: dict[UUID, set[str]] = {}
        for product, it in self._folded().items():
            for op_id in it.since:
                matter.setdefault(op_id, set()).add(product)
        ops: list[tuple[int, CartOp]] = []
        for number, op in self._ops:
            if op.kind == "order":
                ops.append((number, op))  # a second report of this order must find what it took out
            elif (products := matter.get(op.id)) is not None:
                ops.append((number, _only(op, products)))
        return CartState(self._count, self._last_at, self._last_id, ops)

    def _folded(self) -> dict[str, _Lying]:
        """What lies there, by product."""
        view = self._views[-1] if self._views else None
        for product in self._stale:
            there = _fold_product(product, self._naming.get(product, ()), view)
            if there is None:
                self._lying.pop(product, None)
            else:
                self._lying[product] = there
        self._stale.clear()
        return self._lying

    def _enter(self, op: CartOp) -> None:
        for product in {item.product_id for item in op.items}:
            insort(self._naming.setdefault(product, []), op, key=order_of)
        if op.kind == "view":
            insort(self._views, op, key=order_of)

    def _outdate(self, op: CartOp) -> None:
        self._stale.update(self._naming if op.kind == "view" else (item.product_id for item in op.items))

    def _forget(self, at: datetime) -> None:
        """Drops what is too old or too long ago. When the last *Cart Viewed* goes, nothing before it is left."""
        start, least = at - LIFETIME, self._count - LIMIT
        gone = 0
        while gone < len(self._ops) and (self._ops[gone][0] <= least or self._ops[gone][1].at <= start):
            gone += 1
        for _, op in self._ops[:gone]:
            for product in {item.product_id for item in op.items}:
                self._naming[product].pop(0)
                self._stale.add(product)
                if not self._naming[product]:
                    del self._naming[product]
            if op.kind == "view":
                self._views.pop(0)
        del self._ops[:gone]


def _only(op: CartOp, products: set[str]) -> CartOp:
    if len(products) == len(op.items):
        return op
    return CartOp(op.at, op.id, op.kind, op.order_key, [item for item in op.items if item.product_id in products])
