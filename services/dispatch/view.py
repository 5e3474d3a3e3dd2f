"""What a template sees: `person`, `event`, `cart`, `orders`, `offer`, `links`, `shop`, `run`.

What came from outside is made harmless here: texts are cut and lose control characters and what would become a link
(`harmless.py`), links lead to the shop's hosts or nowhere. Absent things are absent, so that a template that names one
fails, or says `default:`. Moments are in the person's zone, money is Decimal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import msgspec

from services.dispatch.harmless import harmless
from shared.facts.model import Cart, Facts, Order

MAX_TEXT, MAX_URL, MAX_ITEMS, MAX_DEPTH = 200, 2_000, 50, 4
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]+")
_URL_KEYS = ("url", "image_url", "link", "image")

# Names that a template may ask for below each root; None: whatever the shop sends.
KNOWN: dict[str, frozenset[str] | None] = {
    "person": None,
    "event": None,
    "cart": frozenset({"items", "total", "count", "lying", "lying_hours", "lying_days", "changed_at"}),
    "orders": frozenset({"count", "total", "average", "last"}),
    "offer": frozenset({"name", "code", "title", "expires_at"}),
    "links": frozenset({"unsubscribe", "preferences", "confirm", "shop"}),
    "shop": frozenset({"name", "url", "currency", "email"}),
    "run": frozenset({"id", "rule", "step", "entered_at", "event"}),
}


class Shop(msgspec.Struct, frozen=True):
    """The shop as templates know it. `hosts`: where links of events and products may lead to."""

    name: str
    url: str
    currency: str
    email: str
    hosts: frozenset[str]


class Offer(msgspec.Struct, frozen=True, omit_defaults=True):
    """An offer with the code that this person gets."""

    name: str
    code: str
    title: str = ""
    expires_at: datetime | None = None


def view(
    *,
    facts: Facts | None,
    event: Mapping[str, Any],
    offer: Offer | None,
    links: Mapping[str, str],
    shop: Shop,
    run: Mapping[str, Any],
    now: datetime,
    zone: ZoneInfo,
) -> dict[str, Any]:
    """The variables of one message. `event`: the entry event's properties. `run`: id, rule, step, entered_at, event."""
    seen: dict[str, Any] = {
        "person": _person(facts, shop),
        "event": clean(event, shop),
        "cart": _cart(facts.cart if facts else Cart(), shop, now, zone),
        "orders": _orders(facts.orders if facts else [], shop, now, zone),
        "links": {"shop": shop.url, **links},
        "shop": {"name": shop.name, "url": shop.url, "currency": shop.currency, "email": shop.email},
        "run": {key: _local(value, zone) for key, value in run.items()},
    }
    if offer is not None:
        seen["offer"] = {
            "name": offer.name,
            "code": offer.code,
            "title": offer.title,
            "expires_at": _local(offer.expires_at, zone) if offer.expires_at else None,
        }
        seen["offer"] = {key: value for key, value in seen["offer"].items() if value is not None}
    return seen


def clean(value: Any, shop: Shop, key: str = "", depth: int = 0) -> Any:
    """Something from outside, made harmless; None where nothing is left of it."""
    if isinstance(value, str):
        return _url(value, shop) if key in _URL_KEYS else _text(value, shop)
    if isinstance(value, Mapping):
        if depth >= MAX_DEPTH:
            return None
        cleaned = {
            _text(str(k), shop): clean(v, shop, str(k), depth + 1) for k, v in list(value.items())[: 4 * MAX_ITEMS]
        }
        return {k: v for k, v in cleaned.items() if v is not None}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        items = [clean(item, shop, key, depth + 1) for item in value[:MAX_ITEMS]] if depth < MAX_DEPTH else []
        return [item for item in items if item is not None]
    return value if isinstance(value, (bool, int, float, Decimal, datetime, date)) else None


def _text(value: str, shop: Shop) -> str:
    """One line, not too long, with nothing in it that a mail program would make a link of, but of the shop's."""
    return harmless(value, shop.hosts, MAX_TEXT)


def _url(value: str, shop: Shop) -> str | None:
    text = value.strip()
    if len(text) > MAX_URL or _CONTROL.search(text) or any(c in text for c in " \"'<>\\^`{|}"):
        return None
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "").lower()
    except ValueError:
        return None
    return text if parts.scheme in ("http", "https") and host in shop.hosts and not parts.username else None


def _person(facts: Facts | None, shop: Shop) -> dict[str, Any]:
    traits = clean(facts.traits, shop) if facts else {}
    return {name: value for name, value in traits.items() if value not in ("", [], {})}


def _product(product: Mapping[str, Any], product_id: str, shop: Shop) -> dict[str, Any]:
    known = clean(product, shop)
    # A product always has a link: its own where it leads to the shop, else the shop's front page.
    return {
        "url": shop.url,
        **known,
        "product_id": _text(product_id, shop),
        "name": known.get("name") or _text(product_id, shop),
    }


def _cart(cart: Cart, shop: Shop, now: datetime, zone: ZoneInfo) -> dict[str, Any]:
    items = [
        {
            **_product(item.product, item.product_id, shop),
            "quantity": item.quantity,
            **({"price": item.price, "total": item.price * item.quantity} if item.price is not None else {}),
            "added_at": _local(item.added_at, zone),
        }
        for item in cart.items[:MAX_ITEMS]
    ]
    seen: dict[str, Any] = {"items": items, "total": cart.total, "count": len(cart.items)}
    if cart.changed_at is not None:
        lying = max(now - cart.changed_at, timedelta(0))
        seen |= {
            "changed_at": _local(cart.changed_at, zone),
            "lying": how_long(lying),
            "lying_hours": int(lying.total_seconds() // 3600),
            "lying_days": lying.days,
        }
    return seen


def _orders(orders: Sequence[Order], shop: Shop, now: datetime, zone: ZoneInfo) -> dict[str, Any]:
    counted = sorted((o for o in orders if o.total is not None and not o.cancelled), key=lambda o: (o.at, o.key))
    total = sum(((o.total or Decimal(0)) - o.refunded for o in counted), Decimal(0))
    seen: dict[str, Any] = {"count": len(counted), "total": total}
    if counted:
        last = counted[-1]
        lines = [
            {**_product(line.product, line.product_id, shop), "quantity": line.quantity}
            for line in last.lines[:MAX_ITEMS]
        ]
        seen["average"] = (total / len(counted)).quantize(Decimal("0.01"))
        seen["last"] = {
            "key": _text(last.key, shop),
            "at": _local(last.at, zone),
            "total": last.total,
            "days_ago": (now - last.at).days,
            "items": lines,
        }
    return seen


def how_long(duration: timedelta) -> str:
    """A duration in words, rounded down to what a person would say: "2 days", "an hour"."""
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        count = int(duration.total_seconds() // size)
        if count >= 1:
            article = "an" if unit == "hour" else "a"
            return f"{article} {unit}" if count == 1 else f"{count} {unit}s"
    return "a moment"


def _local(value: Any, zone: ZoneInfo) -> Any:
    return value.astimezone(zone) if isinstance(value, datetime) and value.tzinfo else value


def example(shop: Shop, links: Mapping[str, str], offer: Offer | None = None) -> dict[str, Any]:
    """A view with something in every place, for previews and for the check before activation."""
    now = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
    product = {
        "product_id": "p-1",
        "name": "Kind of Blue (LP)",
        "category": "vinyl",
        "price": Decimal("1500.00"),
        "url": shop.url,
    }
    item = {**product, "quantity": Decimal(1), "total": Decimal("1500.00"), "added_at": now - timedelta(hours=2)}
    offered = offer or Offer("example", "EXAMPLE5", "5 % off", now + timedelta(days=14))
    return {
        "person": {"first_name": "Anna", "last_name": "Example", "city": "Kazan"},
        "event": {**product, "form": "footer"},
        "cart": {
            "items": [item],
            "total": Decimal("1500.00"),
            "count": 1,
            "lying": "2 hours",
            "lying_hours": 2,
            "lying_days": 0,
            "changed_at": now - timedelta(hours=2),
        },
        "orders": {
            "count": 2,
            "total": Decimal("3000.00"),
            "average": Decimal("1500.00"),
            "last": {
                "key": "1001",
                "at": now - timedelta(days=40),
                "total": Decimal("1500.00"),
                "days_ago": 40,
                "items": [item],
            },
        },
        "offer": {"name": offered.name, "code": offered.code, "title": offered.title, "expires_at": offered.expires_at},
        "links": {"shop": shop.url, **links},
        "shop": {"name": shop.name, "url": shop.url, "currency": shop.currency, "email": shop.email},
        "run": {"id": "example", "rule": "example", "step": "example", "entered_at": now, "event": "Product Added"},
    }
