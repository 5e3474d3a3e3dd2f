"""What an event says: which traits, operations on the cart, reports of orders, refunds and consents are in it.

Profile writes with this, a backtest reads with it. Pure; raises Permanent for what can never be stored, naming the field.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from shared.channels import ADDRESS_KIND, COMPLAINTS
from shared.errors import Permanent
from shared.events import TRUST_RANK, Event
from shared.facts.cart import LIFETIME, ONE, ZERO
from shared.facts.consent import ALL
from shared.facts.numbers import decimal_of
from shared.facts.rows import MONEY, CartLine, CartOp, ConsentRow, OrderReport, RefundRow, ReportLine, TraitRow

REPORTS = {
    "Order Completed": "completed",
    "Order Updated": "updated",
    "Order Cancelled": "cancelled",
    "Order Canceled": "cancelled",
}
REFUND = "Order Refunded"
CART = {"Product Added": "add", "Product Removed": "remove", "Cart Viewed": "view"}
DEFAULT_TOPIC = "marketing"
# name → (state, least trust that may say so, topics where none are named)
CONSENTS = {
    "Subscription Requested": ("requested", 0, [DEFAULT_TOPIC]),
    "Consent Granted": ("granted", TRUST_RANK["secret"], [DEFAULT_TOPIC]),
    "Subscription Confirmed": ("confirmed", TRUST_RANK["internal"], [DEFAULT_TOPIC]),
    "Unsubscribed": ("withdrawn", TRUST_RANK["secret"], [ALL]),
}
# What the complaints of all channels (COMPLAINTS) say.
COMPLAINED = ("complained", TRUST_RANK["internal"], [ALL])
CONFIRMED = "Subscription Confirmed"
PURGED = "Contact Purged"
# What is kept of a product with the cart and with order lines.
PRODUCT_FIELDS = ("sku", "name", "category", "brand", "variant", "url", "image_url", "coupon", "currency")
LONGEST_KEY = 200
MOST_LINES = 10_000


class Extracted(msgspec.Struct):
    """Everything in one event that becomes rows. `consents` are of the address node; `address` is that node."""

    traits: list[TraitRow] = []
    cart: CartOp | None = None
    report: OrderReport | None = None
    refund: RefundRow | None = None
    consents: list[ConsentRow] = []
    address: UUID | None = None

    @property
    def order_key(self) -> str | None:
        found = self.report or self.refund
        return found.order_key if found else None


# Names without rows of their own: nearly everything that is merely looked at.
SPEAKING = frozenset({*REPORTS, REFUND, *CART, *CONSENTS})
NOTHING = Extracted()


def extract(event: Event, learned_at: datetime, currency: str) -> Extracted:
    """The rows in `event`, which is learned at `learned_at`; `currency`: the deployment's own (ISO 4217).

    :raises Permanent: naming the field that can never be stored
    """
    complaint = event.name in COMPLAINTS
    if not complaint and event.name not in SPEAKING and not event.traits:
        return NOTHING
    found = Extracted(traits=_traits(event) if event.traits else [])
    if event.name in CART:
        found.cart = _cart_op(event, learned_at)
    elif event.name in REPORTS:
        _money_is_ours(event, currency)
        found.report = _report(event, learned_at)
        found.cart = _taken_out(found.report, learned_at)
    elif event.name == REFUND:
        _money_is_ours(event, currency)
        found.refund = _refund(event, learned_at)
    elif complaint or event.name in CONSENTS:
        found.address, found.consents = _consents(event)
    return found


def _traits(event: Event) -> list[TraitRow]:
    trust = TRUST_RANK[event.trust]
    rows = []
    for name, value in event.traits.items():
        if len(name) > LONGEST_KEY:
            raise Permanent(f"the trait name {name[:40]!r}… has more than {LONGEST_KEY} characters", "/traits")
        rows.append(TraitRow(event.origin, name, value, trust, event.occurred_at, event.id))
    return rows


# ── the cart ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def _cart_op(event: Event, learned_at: datetime) -> CartOp | None:
    """None for what cannot change any cart: it names no product, or is older than a cart lasts."""
    if event.occurred_at <= learned_at - LIFETIME:
        return None
    kind = CART[event.name]
    if kind == "view":
        products = event.properties.get("products")
        if products is None:
            return None
        items = [_cart_line(product, f"/properties/products/{i}") for i, product in _listed(products)]
    else:
        items = [_cart_line(event.properties, "/properties")]
    lines = [item for item in items if item is not None]
    if not lines and kind != "view":
        return None
    return CartOp(event.occurred_at, event.id, kind, None, lines)


def _cart_line(product: dict[str, Any], pointer: str) -> CartLine | None:
    product_id = product_id_of(product)
    if product_id is None:
        return None
    return CartLine(
        product_id,
        decimal_of(product.get("quantity"), f"{pointer}/quantity", least=ZERO),
        decimal_of(product.get("price"), f"{pointer}/price", least=ZERO),
        kept_of(product),
    )


def _taken_out(report: OrderReport, learned_at: datetime) -> CartOp | None:
    """What a completed order takes out of the cart: any report, a public one too."""
    if report.kind != "completed" or report.at <= learned_at - LIFETIME or not report.lines:
        return None
    items: dict[str, Decimal] = {}
    for line in report.lines:
        items[line.product_id] = items.get(line.product_id, ZERO) + line.quantity
    lines = [CartLine(product_id, quantity) for product_id, quantity in items.items() if quantity > 0]
    return CartOp(report.at, report.event, "order", report.order_key, lines)


# ── orders ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def _money_is_ours(event: Event, currency: str) -> None:
    stated = event.properties.get("currency")
    if stated is not None and str(stated).strip().upper() != currency:
        raise Permanent(
            f"the amounts are in {str(stated)[:20]!r}, this deployment's currency is {currency}", "/properties/currency"
        )


def _report(event: Event, learned_at: datetime) -> OrderReport:
    trust, properties = TRUST_RANK[event.trust], event.properties
    lines = _lines(properties)
    channel = properties.get("channel")
    return OrderReport(
        order_key=order_key_of(event),
        event=event.id,
        node=event.origin,
        kind=REPORTS[event.name],
        trust=trust,
        at=event.occurred_at,
        learned_at=learned_at,
        history=event.history,
        total=_amount(properties, lines) if trust >= MONEY else None,
        channel=str(channel)[:LONGEST_KEY] if channel is not None else None,
        lines=lines,
    )


def _refund(event: Event, learned_at: datetime) -> RefundRow | None:
    """None from a source that may not state money."""
    trust, properties = TRUST_RANK[event.trust], event.properties
    if trust < MONEY:
        return None
    lines = _lines(properties)
    amount = _amount(properties, lines, "amount")
    refund_id = properties.get("refund_id")
    return RefundRow(
        order_key=order_key_of(event),
        event=event.id,
        node=event.origin,
        refund_key=_key(refund_id, "/properties/refund_id") if refund_id is not None else f"event:{event.id}",
        trust=trust,
        at=event.occurred_at,
        learned_at=learned_at,
        history=event.history,
        amount=None if amount is None else abs(amount),
        lines=lines,
    )


def order_key_of(event: Event) -> str:
    """The order id in normal form; a receipt: store, terminal and number; an event that names neither is its own order."""
    properties = event.properties
    if (order_id := properties.get("order_id")) is not None:
        return _key(order_id, "/properties/order_id")
    if (receipt := properties.get("receipt_id")) is not None:
        parts = [properties.get("store_id"), properties.get("terminal_id"), receipt]
        return "/".join("" if part is None else _key(part, "/properties/receipt_id") for part in parts)
    return f"event:{event.id}"


def _key(value: Any, pointer: str) -> str:
    """Trimmed, NFC, case kept; 1042 and "1042" are the same."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Permanent(f"{pointer} must be text or a number", pointer)
    text = unicodedata.normalize("NFC", str(int(value)) if _is_whole(value) else str(value)).strip()
    if not text or len(text) > LONGEST_KEY:
        raise Permanent(f"{pointer} must have 1 to {LONGEST_KEY} characters", pointer)
    return text


def _is_whole(value: str | int | float) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) < 1e15


def _amount(properties: dict[str, Any], lines: list[ReportLine], *more: str) -> Decimal | None:
    """`total`, else `revenue`, else `value`, else the sum of the lines whose price is known; None if nothing says it."""
    for name in ("total", "revenue", "value", *more):
        if (amount := decimal_of(properties.get(name), f"/properties/{name}")) is not None:
            return amount
    prices = [line.quantity * line.price for line in lines if line.price is not None]
    return sum(prices, ZERO) if prices else None


def _lines(properties: dict[str, Any]) -> list[ReportLine]:
    lines = []
    for i, product in _listed(properties.get("products")):
        product_id = product_id_of(product)
        if product_id is None:
            continue
        pointer = f"/properties/products/{i}"
        quantity = decimal_of(product.get("quantity"), f"{pointer}/quantity", least=ZERO)
        price = decimal_of(product.get("price"), f"{pointer}/price", least=ZERO)
        lines.append(ReportLine(product_id, ONE if quantity is None else quantity, price, kept_of(product)))
    return lines


def _listed(products: Any) -> list[tuple[int, dict[str, Any]]]:
    """The objects in a list of products, with their places."""
    if products is None:
        return []
    if not isinstance(products, list):
        raise Permanent("/properties/products must be a list", "/properties/products")
    if len(products) > MOST_LINES:
        raise Permanent(f"/properties/products has more than {MOST_LINES} lines", "/properties/products")
    return [(i, product) for i, product in enumerate(products) if isinstance(product, dict)]


def product_id_of(product: dict[str, Any]) -> str | None:
    """`product_id`, else `sku`, else `id`; None when it names none."""
    for name in ("product_id", "sku", "id"):
        value = product.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value).strip()[:LONGEST_KEY]
    return None


def kept_of(product: dict[str, Any]) -> dict[str, Any]:
    """What templates and conditions may want to know of a product."""
    return {name: product[name] for name in PRODUCT_FIELDS if product.get(name) is not None}


# ── consent ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _consents(event: Event) -> tuple[UUID | None, list[ConsentRow]]:
    """The address's node, and a row a topic; nothing from a source that may not say so."""
    complained_of = COMPLAINTS.get(event.name)
    state, least, topics = CONSENTS[event.name] if complained_of is None else COMPLAINED
    trust, properties = TRUST_RANK[event.trust], event.properties
    channel = properties.get("channel")
    if channel is None:
        channel = complained_of
    if trust < least or not isinstance(channel, str):
        return None, []
    node = address_node_of(event)
    stated = properties.get("topics")
    if isinstance(stated, list) and stated and complained_of is None:
        topics = [str(topic).strip() for topic in stated]
        if any(len(topic) > LONGEST_KEY for topic in topics):
            raise Permanent(f"a topic has more than {LONGEST_KEY} characters", "/properties/topics")
    if len(channel) > LONGEST_KEY:
        raise Permanent(f"/properties/channel has more than {LONGEST_KEY} characters", "/properties/channel")
    proof = {name: value for name, value in properties.items() if name not in ("channel", "address", "topics")}
    rows = [
        ConsentRow(
            node=node,
            channel=channel,
            topic=topic,
            id=event.id,
            state=state,
            at=event.occurred_at,
            origin=event.origin,
            trust=trust,
            proof=proof,
        )
        for topic in dict.fromkeys(topics)
    ]
    return node, rows


def address_node_of(event: Event) -> UUID:
    """The node of the address that the event speaks of: among its ids the one of the channel's kind whose value is the
    address (or the first of the kind), else its origin node, as events of our own name it."""
    properties = event.properties
    kind = ADDRESS_KIND.get(str(properties.get("channel")), "external_id")
    address = str(properties.get("address") or "").strip().casefold()
    of_kind = [one for one in event.ids if one.kind == kind]
    for one in of_kind:
        if one.value.casefold() == address:
            return one.node
    return of_kind[0].node if of_kind else event.origin
