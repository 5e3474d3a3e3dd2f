"""The cart by its definition: every operation in order, everything anew each time. What `shared.facts.cart` keeps at work
must give the same."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

import msgspec

from shared.facts.cart import LIFETIME, LIMIT
from shared.facts.model import Cart, CartItem
from shared.facts.rows import CartLine, CartOp

ZERO, ONE = Decimal(0), Decimal(1)


class _Lying(msgspec.Struct):
    quantity: Decimal
    price: Decimal | None
    added_at: datetime
    product: dict


def fold_cart(ops: Iterable[CartOp], at: datetime) -> Cart:
    """The cart at `at`: of the operations of the last 30 days the latest 500. `changed_at`: time of the last of them."""
    counted = sorted((op for op in ops if at - LIFETIME < op.at <= at), key=lambda op: (op.at, op.id))[-LIMIT:]
    lying: dict[str, _Lying] = {}
    taken: dict[tuple[str, str], Decimal | None] = {}
    for op in counted:
        if op.kind == "view":
            lying = {}
        for item in op.items:
            if op.kind in ("add", "view"):
                _put(lying, op, item)
            elif op.kind == "remove":
                _take(lying, item.product_id, item.quantity)
            else:
                _take_for_order(lying, taken, op, item)
    items = [
        CartItem(product_id=key, quantity=it.quantity, price=it.price, added_at=it.added_at, product=it.product)
        for key, it in lying.items()
    ]
    total = sum((it.quantity * it.price for it in items if it.price is not None), ZERO)
    return Cart(items=items, total=total, changed_at=counted[-1].at if counted else None)


def _put(lying: dict[str, _Lying], op: CartOp, item: CartLine) -> None:
    quantity = ONE if item.quantity is None else item.quantity
    if quantity <= 0:
        return
    there = lying.get(item.product_id)
    if there is None:
        lying[item.product_id] = _Lying(quantity, item.price, op.at, item.product)
        return
    there.quantity += quantity
    there.price = there.price if item.price is None else item.price
    there.added_at = op.at
    there.product = {**there.product, **item.product}


def _take(lying: dict[str, _Lying], product_id: str, quantity: Decimal | None) -> None:
    there = lying.get(product_id)
    if there is None:
        return
    if quantity is None or there.quantity <= quantity:
        del lying[product_id]
    else:
        there.quantity -= quantity


def _take_for_order(
    lying: dict[str, _Lying], taken: dict[tuple[str, str], Decimal | None], op: CartOp, item: CartLine
) -> None:
    """Of an order that is reported twice, what the second report names beyond the first."""
    key = (op.order_key or str(op.id), item.product_id)
    before = taken.get(key, ZERO)
    if before is None:
        return
    if item.quantity is None:
        taken[key] = None
        _take(lying, item.product_id, None)
        return
    taken[key] = max(before, item.quantity)
    if item.quantity > before:
        _take(lying, item.product_id, item.quantity - before)
