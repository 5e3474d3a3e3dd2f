"""What success of a message is worth, in the shop's currency."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from shared.conditions.values import number_of
from shared.facts.model import Facts

DEFAULT_SHARE = Decimal("0.3")
# What an order is taken to be worth before anybody ordered anything; changed at /v1/caps.
ASSUMED_ORDER = Decimal(1000)
CENT = Decimal("0.01")


class Worth(msgspec.Struct, frozen=True):
    """`origin` says in words what it was made from."""

    value: Decimal
    origin: str


def worth(form: Mapping[str, str] | None, facts: Facts | None, event: Mapping[str, Any], shop_mean: Decimal) -> Worth:
    """The value that a rule states: `{money}`, or a share of `{cart_total}`, `{order_total}` or `{mean_order}`.

    Without one 30 % of the mean order: the person's own, the shop's for somebody who never ordered.

    :param event: properties of the entry event, whose order is the one of `order_total`
    """
    kind, text = next(iter((form or {"mean_order": str(DEFAULT_SHARE)}).items()))
    number = Decimal(text)
    if kind == "money":
        return Worth(number, "stated by the rule")
    basis, what = _basis(kind, facts, event, shop_mean)
    return Worth((number * basis).quantize(CENT), f"{number:%} of {what}".replace(".000000%", "%"))


def _basis(kind: str, facts: Facts | None, event: Mapping[str, Any], shop_mean: Decimal) -> tuple[Decimal, str]:
    if kind == "cart_total":
        return (facts.cart.total if facts else Decimal(0)), "what lies in the cart"
    if kind == "order_total":
        named = (number_of(event.get(name)) for name in ("total", "revenue", "value"))
        return next((amount for amount in named if amount is not None), Decimal(0)), "the order"
    paid = [
        order.total - order.refunded for order in (facts.orders if facts else []) if order.total and not order.cancelled
    ]
    if paid:
        return sum(paid, Decimal(0)) / len(paid), "the person's mean order"
    return shop_mean, "the shop's mean order"
