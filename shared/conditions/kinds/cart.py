"""`cart`: what lies in the cart as of the moment."""

from __future__ import annotations

from typing import Any

from pydantic import StrictBool, model_validator

from shared.conditions.fields import NumberComparison, Strict, refusal
from shared.conditions.model import Leaf, Look, Moment
from shared.conditions.sql.builder import FALSE, TRUE, Bounds, Statement
from shared.conditions.where import Where
from shared.facts.cart import LIFETIME
from shared.facts.model import Cart, CartItem, Facts


class Parameters(Strict):
    """`has` asks for one item that meets all its comparisons: product_id, quantity, price, and what the shop sent."""

    not_empty: StrictBool | None = None
    total: NumberComparison | None = None
    has: Where | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Parameters:
        if not self.model_fields_set:
            raise refusal("asks nothing: give not_empty, total or has")
        return self


class CartCondition(Leaf):
    """All that is named must hold. The total of an empty cart is 0."""

    name = "cart"
    parameters_type = Parameters
    examples = ({"not_empty": True}, {"total": {"gte": 3000}}, {"has": {"category": {"eq": "vinyl"}}})
    parameters: Parameters

    def look(self, facts: Facts, moment: Moment) -> Look:
        asked, cart = self.parameters, cart_at(facts, moment)
        looked_at: dict[str, Any] = {"items": len(cart.items), "total": cart.total, "changed_at": cart.changed_at}
        holds = asked.not_empty is None or asked.not_empty == bool(cart.items)
        if asked.total is not None:
            holds = asked.total.accepts(cart.total) and holds
        if asked.has is not None:
            found = [item.product_id for item in cart.items if asked.has.accepts(item_properties(item))]
            looked_at["found"] = found
            holds = bool(found) and holds
        return Look(holds, looked_at)

    def holds_for_empty(self) -> bool:
        """Whether an empty cart meets the condition."""
        asked = self.parameters
        return not asked.not_empty and asked.has is None and (asked.total is None or asked.total.accepts(Cart().total))

    def sql(self, statement: Statement) -> Bounds:
        """Whoever put nothing into a cart for 30 days has an empty one; the others' carts are folded in Python."""
        start = statement.parameter(statement.moment.at - LIFETIME, "timestamptz")
        touched = statement.found(
            "SELECT m.profile "
            f"FROM cdp.cart_operation o {statement.owner('o.node')} "
            f"WHERE o.kind IN ('add', 'view') AND o.at > {start} AND o.at <= {statement.at} "
            f"AND o.learned_at <= {statement.at}"
        )
        if self.holds_for_empty():
            return Bounds(upper=TRUE, lower=f"(NOT {touched})")
        return Bounds(upper=f"({touched})", lower=FALSE)


def cart_at(facts: Facts, moment: Moment) -> Cart:
    """The cart, or an empty one when its last operation is too old by the moment."""
    changed_at = facts.cart.changed_at
    if changed_at is None or changed_at <= moment.at - LIFETIME:
        return Cart()
    return facts.cart


def item_properties(item: CartItem) -> dict[str, Any]:
    """The item as `has` sees it."""
    return {**item.product, "product_id": item.product_id, "quantity": item.quantity, "price": item.price}
