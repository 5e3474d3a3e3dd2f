"""The facts a decision may know of a person as of a moment, as types.

Money is Decimal in the deployment's one currency; all times are aware UTC. Absent is None or an empty collection,
never a made-up default: two-valued conditions read absence as false.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec


class CartItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One product lying in the cart. `added_at`: occurred-at of the operation that put it there last."""

    product_id: str
    quantity: Decimal
    price: Decimal | None
    added_at: datetime
    # name, category, brand, variant, url, image_url, sku … as the shop sent them
    product: dict[str, Any] = {}


class Cart(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The folded cart. `total` counts items with a price. `changed_at`: occurred-at of the last operation."""

    items: list[CartItem] = []
    total: Decimal = Decimal(0)
    changed_at: datetime | None = None


class OrderLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of an order; `returned`: how much of `quantity` came back."""

    product_id: str
    quantity: Decimal
    price: Decimal | None = None
    returned: Decimal = Decimal(0)
    product: dict[str, Any] = {}


class Order(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An order as an entity (all its reports together).

    `at`: when it occurred; `learned_at`: first learned from any source (stop, guard and goal count from it); `total` is
    None until a source that may state money reported it; `refunded`: sum of refunds known. Counted in figures only when
    `total` is not None and it was not cancelled.
    """

    key: str
    node: UUID
    at: datetime
    learned_at: datetime
    total: Decimal | None = None
    refunded: Decimal = Decimal(0)
    cancelled: bool = False
    history: bool = False
    channel: str | None = None
    lines: list[OrderLine] = []


class Refund(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A refund whose order is not known (yet). `amount`: None means what that order says of these
    goods, or all of it where there are no `lines`, whatever it was.

    A refund of a known order is in that order's `refunded` and `returned` instead.
    """

    key: str
    order_key: str
    node: UUID
    at: datetime
    learned_at: datetime
    amount: Decimal | None = None
    history: bool = False
    lines: list[OrderLine] = []


class Consent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The folded consent of one address for one topic (`*`: all topics).

    state: requested | granted | confirmed | withdrawn | complained. `granted`: by a secret source with proof; counts as
    confirmed unless an opt-out came before it. `may_write` says whether marketing may go to it now.
    """

    channel: str
    node: UUID
    address: str
    topic: str
    state: str
    at: datetime
    may_write: bool = False


class Address(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One address of the person. status: claimed | confirmed | asserted. kind: email | phone | device_token | external_id."""

    kind: str
    node: UUID
    value: str
    status: str


class EventFact(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A stored event as conditions see it. `hops`: how far it is from an event of the shop (0: it is one)."""

    id: UUID
    node: UUID
    name: str
    occurred_at: datetime
    learned_at: datetime
    trust: str
    history: bool = False
    properties: dict[str, Any] = {}
    source: UUID | None = None
    order_key: str | None = None
    # the first report of that order from a source that may state money
    first: bool = False
    hops: int = 0


class Facts(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything a decision may know of one person as of `as_of` (None: as of the newest row).

    `events` holds only the names that were asked for (see `shared.cdp`), oldest first by (learned_at, id). `suppressed`: of
    the addresses those that must not be written to, with the channel (`*`: all), where it was asked for. `zone`: the
    person's IANA zone (trait `timezone`), else None and the shop's counts. `first_seen`: earliest occurred-at of the person.
    In a record of `profile-events` the orders come without their lines, and of a cart with more than 10 products the latest
    10; `shared.cdp.facts` has them all.
    """

    profile: UUID
    nodes: list[UUID]
    as_of: datetime | None = None
    last_learned_at: datetime | None = None
    first_seen: datetime | None = None
    traits: dict[str, Any] = {}
    cart: Cart = msgspec.field(default_factory=Cart)
    orders: list[Order] = []
    # refunds of orders that are not known: they lower the person's revenue all the same
    refunds: list[Refund] = []
    consents: list[Consent] = []
    addresses: list[Address] = []
    suppressed: list[tuple[UUID, str]] = []
    events: list[EventFact] = []
    zone: str | None = None
