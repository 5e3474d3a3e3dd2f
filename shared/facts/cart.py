"""The cart: a fold of its operations in the order of their time.

Of a person's operations those of the last 30 days count, and of these the latest 500. *Added* adds, *Removed* takes away,
*Cart Viewed* replaces everything, an order takes out what it bought. Two reports of one order take out what it bought once.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

import msgspec

from shared.facts.model import Cart, CartItem
from shared.facts.rows import CartLine, CartOp

LIFETIME = timedelta(days=30)
LIMIT = 500
ZERO, ONE = Decimal(0), Decimal(1)


class _Lying(msgspec.Struct):
    """A product while folding. `since`: places of the operations that matter to it since it was last absent."""

    quantity: Decimal
    price: Decimal | None
    added_at: datetime
    product: dict
    since: list[int]


def in_force(ops: Iterable[CartOp], at: datetime) -> list[CartOp]:
    """The operations that count at `at`, in order: those of the last 30 days, of these the latest 500."""
    start = at - LIFETIME
    return sorted((op for op in ops if start < op.at <= at), key=order_of)[-LIMIT:]


def order_of(op: CartOp) -> tuple[datetime, UUID]:
    return op.at, op.id


def fold_cart(ops: Iterable[CartOp], at: datetime) -> Cart:
    """The cart at `at`. `changed_at` is the time of the last operation, whether or not anything lies in it."""
    counted = in_force(ops, at)
    return _Folding(counted).cart(counted[-1].at if counted else None)


class _Folding:
    """What lies in the cart after operations that are taken in one by one, in their order."""

    def __init__(self, ops: Iterable[CartOp]) -> None:
        self.lying: dict[str, _Lying] = {}
        self._taken: dict[tuple[str, str], Decimal | None] = {}
        self._count = 0
        for op in ops:
            self.take(op)

    def take(self, op: CartOp) -> None:
        """One more operation."""
        place, self._count = self._count, self._count + 1
        if op.kind == "view":
            self.lying = {}
        for item in op.items:
            if op.kind in ("add", "view"):
                _put(self.lying, place, op, item)
            elif op.kind == "remove":
                _take(self.lying, place, item.product_id, item.quantity)
            else:
                key = (op.order_key or str(op.id), item.product_id)
                if (left := _left_to_take(self._taken, key, item.quantity)) is None or left > 0:
                    _take(self.lying, place, item.product_id, left)

    def cart(self, changed_at: datetime | None) -> Cart:
        items = [
            CartItem(product_id=key, quantity=it.quantity, price=it.price, added_at=it.added_at, product=it.product)
            for key, it in self.lying.items()
        ]
        total = sum((it.quantity * it.price for it in items if it.price is not None), ZERO)
        return Cart(items=items, total=total, changed_at=changed_at)


def _put(lying: dict[str, _Lying], place: int, op: CartOp, item: CartLine) -> None:
    quantity = ONE if item.quantity is None else item.quantity
    if quantity <= 0:
        return
    there = lying.get(item.product_id)
    if there is None:
        lying[item.product_id] = _Lying(quantity, item.price, op.at, item.product, [place])
        return
    there.quantity += quantity
    there.price = there.price if item.price is None else item.price
    there.added_at = op.at
    there.product = {**there.product, **item.product}
    there.since.append(place)


def _take(lying: dict[str, _Lying], place: int, product_id: str, quantity: Decimal | None) -> None:
    there = lying.get(product_id)
    if there is None:
        return
    if quantity is None or there.quantity <= quantity:
        del lying[product_id]
    else:
        there.quantity -= quantity
        there.since.append(place)


def _left_to_take(
    taken: dict[tuple[str, str], Decimal | None], key: tuple[str, str], quantity: Decimal | None
) -> Decimal | None:
    """What this report of an order takes out beyond the earlier ones (None: all that lies there)."""
    before = taken.get(key, ZERO)
    if before is None:
        return ZERO
    if quantity is None:
        taken[key] = None
        return None
    taken[key] = max(before, quantity)
    return max(ZERO, quantity - before)


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
    """A cart at work: takes in operations that are not late, shows the cart, and says what to keep."""

    def __init__(self, state: CartState) -> None:
        self._count, self._last_at, self._last_id = state.count, state.last_at, state.last_id
        self._ops = list(state.ops)
        self._folding: _Folding | None = None
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
        self._forget(at)
        if self._folding is not None:
            self._folding.take(op)

    def insert(self, op: CartOp, at: datetime) -> None:
        """One more operation that comes late; only while nothing was left out."""
        assert self.complete
        ops = [known for _, known in self._ops]
        insort(ops, op, key=order_of)
        self._count = len(ops)
        self._ops = list(enumerate(ops, 1))
        self._folding = None
        self._forget(at)

    def cart(self, at: datetime) -> Cart:
        """The cart at `at`, which is not before what was folded."""
        self._forget(at)
        changed_at = self._last_at if self._last_at is not None and self._last_at > at - LIFETIME else None
        return self._folded().cart(changed_at)

    @property
    def unchanged_until(self) -> datetime | None:
        """The moment from which the cart may change by itself, because something becomes too old; None: never."""
        oldest = min((op.at for _, op in self._ops), default=self._last_at)
        return None if oldest is None else oldest + LIFETIME

    def state(self, at: datetime) -> CartState:
        """What must be kept."""
        self._forget(at)
        matter: dict[int, set[str]] = {}
        for product, it in self._folded().lying.items():
            for place in it.since:
                matter.setdefault(place, set()).add(product)
        ops: list[tuple[int, CartOp]] = []
        for place, (number, op) in enumerate(self._ops):
            if op.kind == "order":
                ops.append((number, op))  # a second report of this order must find what it took out
            elif (products := matter.get(place)) is not None:
                ops.append((number, _only(op, products)))
        return CartState(self._count, self._last_at, self._last_id, ops)

    def _folded(self) -> _Folding:
        if self._folding is None:
            self._folding = _Folding(op for _, op in self._ops)
        return self._folding

    def _forget(self, at: datetime) -> None:
        """Drops what is too old or too long ago; then everything is folded anew."""
        start, least = at - LIFETIME, self._count - LIMIT
        if self._ops and (self._ops[0][0] <= least or self._ops[0][1].at <= start):
            self._ops = [pair for pair in self._ops if pair[0] > least and pair[1].at > start]
            self._folding = None


def _only(op: CartOp, products: set[str]) -> CartOp:
    if len(products) == len(op.items):
        return op
    return CartOp(op.at, op.id, op.kind, op.order_key, [item for item in op.items if item.product_id in products])
