"""No discount on what the person has bought already (design §6), in pure functions: what of their orders an offer's guard
looks at, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from services.dispatch.inputs import Bought, OfferGuard
from services.dispatch.reasons import Reason
from shared.durations import format_duration
from shared.facts.model import Order


def bought_of(guard: OfferGuard, orders: Sequence[Order]) -> list[Bought]:
    """The goods in the guard's scope that the person ordered and kept, the latest of each product."""
    products, categories = set(guard.products), {one.casefold() for one in guard.categories}
    found: dict[str, Bought] = {}
    for order in orders:
        for line in order.lines if not order.cancelled else ():
            category = str(line.product.get("category") or "")
            named = line.product_id in products
            if line.quantity <= line.returned or not (named or category.casefold() in categories):
                continue
            before = found.get(line.product_id)
            if before is None or before.at < order.at:
                found[line.product_id] = Bought(line.product_id, order.at, "" if named else category)
    return [found[product] for product in sorted(found)]


def offer_reason(guard: OfferGuard | None, now: datetime) -> Reason | None:
    """Why the person may not be made the offer; None if they may, or if it has no guard."""
    if guard is None:
        return None
    fresh = [one for one in guard.bought if guard.within is None or one.at > now - guard.within]
    if not fresh:
        return None
    last = max(fresh, key=lambda one: (one.at, one.product))
    what = f"goods of the category {last.category[:50]}" if last.category else f"the product {last.product[:50]}"
    within = f", less than {format_duration(guard.within)} ago" if guard.within is not None else ""
    return Reason(
        "bought-already", f"{what} of the offer {guard.name} were bought at {last.at:%Y-%m-%d %H:%M} UTC{within}"
    )
