"""One person's facts while a batch is applied: sections of the kept state, decoded when they change, encoded when asked for."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw

from shared.facts.cart import CartFold, CartState
from shared.facts.model import Address, Consent, Order, Refund
from shared.facts.orders import Folded, order_of, refund_order_of
from shared.facts.rows import CartOp, TraitRow
from shared.facts.state import (
    ABSENT,
    Sections,
    State,
    Traits,
    decode_sections,
    plain,
    take_trait,
    without_lines,
    zone_of,
)

_encode = msgspec.json.Encoder().encode
_traits = msgspec.json.Decoder(Traits).decode
_cart = msgspec.json.Decoder(CartState).decode
_orders = msgspec.json.Decoder(list[Order]).decode
_refunds = msgspec.json.Decoder(list[Refund]).decode
_consents = msgspec.json.Decoder(list[Consent]).decode
_addresses = msgspec.json.Decoder(list[Address]).decode


def _raw(value: Any) -> Raw:
    return Raw(_encode(value)) if value else ABSENT


# Of a very large cart the latest items go out with every event, and the total of all.
MOST_PUBLISHED = 10


class FactsWire(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`shared.facts.model.Facts` as it is published: the sections are JSON already."""

    profile: UUID
    nodes: list[UUID]
    last_learned_at: datetime
    first_seen: datetime
    traits: Raw = ABSENT
    cart: Raw = ABSENT
    orders: Raw = ABSENT
    refunds: Raw = ABSENT
    consents: Raw = ABSENT
    addresses: Raw = ABSENT
    zone: str | None = None


class PersonFacts:
    """What is known of one person. `changed`: the kept state is no longer this."""

    __slots__ = (
        "_cart",
        "_cart_at",
        "_cart_raw",
        "_cart_until",
        "_dirty",
        "_kept",
        "_read",
        "_traits_raw",
        "changed",
        "zone",
    )

    def __init__(self, state: bytes | None) -> None:
        self._kept: Sections = decode_sections(state) if state else Sections()
        self._read: dict[str, Any] = {}  # sections that were decoded
        self._dirty: set[str] = set()  # of these, the ones whose bytes are not up to date
        self._cart: CartFold | None = None
        self._cart_at: datetime | None = None
        self._cart_raw: Raw | None = None
        self._cart_until: datetime | None = None
        self._traits_raw: Raw | None = None
        self.zone: str | None = None
        self.changed = False

    @classmethod
    def of(cls, state: State) -> PersonFacts:
        """A person who was folded anew."""
        facts = cls(None)
        facts._kept = Sections(
            traits=_raw(state.traits),
            cart=_raw(state.cart) if state.cart.count else ABSENT,
            orders=_raw([without_lines(order) for order in sorted(state.orders, key=order_of)]),
            refunds=_raw([_bare(refund) for refund in sorted(state.refunds, key=refund_order_of)]),
            consents=_raw(state.consents),
            addresses=_raw(state.addresses),
        )
        facts.changed = True
        return facts

    def _section(self, name: str, decode: Any, empty: Any) -> Any:
        if name not in self._read:
            raw = getattr(self._kept, name)
            self._read[name] = decode(raw) if raw else empty
        return self._read[name]

    def _changed(self, name: str) -> None:
        self._dirty.add(name)
        self.changed = True

    # ── traits ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def take_traits(self, rows: Iterable[TraitRow]) -> None:
        """Last writer wins by (trust, time, id)."""
        traits = self._section("traits", _traits, {})
        for row in rows:
            if take_trait(traits, row):
                self._changed("traits")
                self._traits_raw = None

    def _plain_traits(self) -> Raw:
        if self._traits_raw is None:
            traits = plain(self._section("traits", _traits, {}))
            self._traits_raw = _raw(traits)
            self.zone = zone_of(traits)
        return self._traits_raw

    # ── the cart ───────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def cart(self) -> CartFold:
        """The cart at work."""
        if self._cart is None:
            self._cart = CartFold(_cart(self._kept.cart) if self._kept.cart else CartState())
        return self._cart

    def take_cart(self, op: CartOp, at: datetime) -> None:
        """One more operation, which is not late."""
        self.cart.take(op, at)
        self._cart_changed(at)

    def insert_in_cart(self, op: CartOp, at: datetime) -> None:
        """One more operation, which is late; nothing of the cart was left out."""
        self.cart.insert(op, at)
        self._cart_changed(at)

    def refold_cart(self, ops: Iterable[CartOp], at: datetime) -> None:
        """All operations anew."""
        self._cart = CartFold.of(ops, at)
        self._cart_changed(at)

    def _cart_changed(self, at: datetime) -> None:
        self._cart_raw = self._cart_until = None
        self._kept.shown, self._kept.until, self._cart_at = ABSENT, None, at
        self._changed("cart")

    def _shown_cart(self, at: datetime) -> Raw:
        if self._cart_raw is None:
            self._cart_raw, self._cart_until = self._kept.shown, self._kept.until
        if (self._cart_until is not None and at >= self._cart_until) or (not self._cart_raw and self._has_cart):
            self._cart_raw = Raw(_encode(self.cart.cart(at, MOST_PUBLISHED)))
            self._cart_until = self.cart.unchanged_until
        return self._cart_raw

    @property
    def _has_cart(self) -> bool:
        return self._cart is not None or bool(self._kept.cart)

    # ── orders ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def set_order(self, key: str, folded: Folded, own: set[UUID]) -> None:
        """What is known of this order now; of refunds without one those whose nodes are the person's (`own`)."""
        self.drop_order(key)
        if folded.order is not None:
            self._section("orders", _orders, []).append(without_lines(folded.order))
        else:
            refunds = self._section("refunds", _refunds, [])
            refunds += [_bare(refund) for refund in folded.refunds if refund.node in own]

    def drop_order(self, key: str) -> None:
        """The order counts to somebody else now."""
        orders, refunds = self._section("orders", _orders, []), self._section("refunds", _refunds, [])
        orders[:] = [order for order in orders if order.key != key]
        refunds[:] = [refund for refund in refunds if refund.order_key != key]
        self._changed("orders")
        self._changed("refunds")

    # ── consent and addresses ──────────────────────────────────────────────────────────────────────────────────────
    def set_consents(self, node: UUID, folded: list[Consent]) -> None:
        """The consents of one address."""
        consents = self._section("consents", _consents, [])
        consents[:] = sorted(
            [*(one for one in consents if one.node != node), *folded],
            key=lambda one: (one.channel, one.node, one.topic),
        )
        self._changed("consents")

    def set_address(self, address: Address) -> None:
        """An address with its status."""
        addresses = self._section("addresses", _addresses, [])
        addresses[:] = sorted(
            [*(one for one in addresses if one.node != address.node), address], key=lambda one: one.node
        )
        self._changed("addresses")

    # ── out ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _bytes(self, name: str) -> Raw:
        """A section as it is kept."""
        if name in self._dirty:
            value: Any = self._read.get(name)
            if name == "cart" and self._cart is not None and self._cart_at is not None:
                value = self._cart.state(self._cart_at)
                self._kept.shown, self._kept.until = self._shown_cart(self._cart_at), self._cart_until
            elif name == "orders":
                value.sort(key=order_of)
            elif name == "refunds":
                value.sort(key=refund_order_of)
            setattr(self._kept, name, _raw(value))
            self._dirty.discard(name)
        return getattr(self._kept, name)

    def kept(self) -> bytes:
        """The state as it is kept."""
        for name in list(self._dirty):
            self._bytes(name)
        return _encode(self._kept)

    def wire(self, profile: UUID, nodes: list[UUID], at: datetime, first_seen: datetime) -> FactsWire:
        """The facts as they are published with an event that is learned at `at`."""
        if self._dirty - {"cart"}:
            for name in ("orders", "refunds", "consents", "addresses"):
                self._bytes(name)
        kept = self._kept
        return FactsWire(
            profile=profile,
            nodes=nodes,
            last_learned_at=at,
            first_seen=first_seen,
            traits=self._plain_traits(),
            cart=self._shown_cart(at),
            orders=kept.orders,
            refunds=kept.refunds,
            consents=kept.consents,
            addresses=kept.addresses,
            zone=self.zone,
        )

    @property
    def timezone(self) -> str | None:
        """The person's IANA zone, if the trait is one."""
        self._plain_traits()
        return self.zone


def _bare(refund: Refund) -> Refund:
    return msgspec.structs.replace(refund, lines=[])
