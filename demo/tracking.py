"""The shapes of the events, after the e-commerce spec of the tracking API. Ids and times come in as arguments."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, NamedTuple

from demo.catalogue import Product
from demo.people import Person

CURRENCY = "RUB"
TOPICS = ["marketing"]
TEXT_VERSION = "2026-01"

Event = dict[str, Any]
Source = Literal["site", "server"]  # the public key of the web site, the secret one of the shop's own machines


class Sent(NamedTuple):
    """One event and the source that posts it."""

    at: datetime
    source: Source
    event: Event


def call(kind: str, message_id: str, at: datetime, who: dict[str, str], **fields: Any) -> Event:
    """One call of the tracking API. `who`: userId, anonymousId or both."""
    return {"type": kind, "messageId": message_id, "timestamp": at.isoformat(), **who, **fields}


def track(name: str, message_id: str, at: datetime, who: dict[str, str], properties: dict[str, Any]) -> Event:
    return call("track", message_id, at, who, event=name, properties=properties)


def product(item: Product, shop_url: str, quantity: int | None = None, cart_id: str | None = None) -> dict[str, Any]:
    fields = item.fields(shop_url)
    if quantity is not None:
        fields["quantity"] = quantity
    return fields | ({"cart_id": cart_id} if cart_id else {})


def products(lines: Iterable[tuple[Product, int]], shop_url: str) -> list[dict[str, Any]]:
    return [product(item, shop_url, quantity) for item, quantity in lines]


def total(lines: Iterable[tuple[Product, int]]) -> int:
    """Whole roubles."""
    return sum(item.price * quantity for item, quantity in lines)


def traits(person: Person) -> dict[str, Any]:
    """What the shop's own server knows of a customer."""
    known = {
        "first_name": person.first_name,
        "last_name": person.last_name,
        "email": person.email,
        "phone": person.phone,
        "card": person.card,
        "birthday": person.birthday.isoformat(),
        "city": person.city,
    }
    return {name: value for name, value in known.items() if value}


def subscription_requested(form: str, person: Person, page: str) -> dict[str, Any]:
    """Properties of the form on the site."""
    return {
        "channel": "email",
        "address": person.email,
        "topics": TOPICS,
        "form": form,
        "text_version": TEXT_VERSION,
        "page": page,
    }


def consent_granted(channel: str, address: str, at: datetime, form: str, page: str) -> dict[str, Any]:
    """Properties with the proof that the shop's server holds. The network is one reserved for documentation."""
    return {
        "channel": channel,
        "address": address,
        "topics": TOPICS,
        "form": form,
        "text_version": TEXT_VERSION,
        "page": page,
        "at": at.isoformat(),
        "ip": "203.0.113.7",
    }
