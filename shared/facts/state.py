"""The state of a person: the fold of the rows of all nodes, and how it is kept.

`State` is a cache. `fold` makes it anew from rows; the other functions take in one more row, or unite two persons, with the
same result (a property test holds that). It is kept as JSON with sections that are read only when somebody needs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID
from zoneinfo import available_timezones

import msgspec

from shared.channels import ADDRESSES
from shared.facts.cart import CartFold, CartState
from shared.facts.model import Address, Consent, Facts, Order, Refund
from shared.facts.orders import order_of, refund_order_of
from shared.facts.rows import TraitRow


class TraitValue(msgspec.Struct, array_like=True):
    """The value of a trait that won, and what it won with."""

    value: Any
    trust: int
    at: datetime
    id: UUID


class NodeRow(msgspec.Struct, kw_only=True):
    """What facts need to know of a node itself. The times are those it was learned at."""

    id: UUID
    kind: str
    value: str
    first_seen: datetime
    asserted_at: datetime | None = None
    confirmed_at: datetime | None = None


Traits = dict[str, TraitValue]


def take_trait(traits: Traits, row: TraitRow) -> bool:
    """Last writer wins by (trust, time, id). Returns whether the row won."""
    there = traits.get(row.name)
    if there is not None and (there.trust, there.at, there.id) >= (row.trust, row.at, row.id):
        return False
    traits[row.name] = TraitValue(row.value, row.trust, row.at, row.id)
    return True


def fold_traits(rows: Iterable[TraitRow]) -> Traits:
    """The traits that these rows make."""
    traits: Traits = {}
    for row in rows:
        take_trait(traits, row)
    return traits


def unite_traits(one: Traits, other: Traits) -> Traits:
    """⊕ of two persons' traits."""
    united = dict(one)
    for name, value in other.items():
        there = united.get(name)
        if there is None or (there.trust, there.at, there.id) < (value.trust, value.at, value.id):
            united[name] = value
    return united


def plain(traits: Traits) -> dict[str, Any]:
    """Names and values, without those that were taken away."""
    return {name: it.value for name, it in traits.items() if it.value is not None}


def address_of(row: NodeRow, at: datetime | None = None) -> Address | None:
    """The node as an address with its status at `at` (None: now), if it is of a kind that can be written to."""
    if row.kind not in ADDRESSES:
        return None
    if row.confirmed_at is not None and (at is None or row.confirmed_at <= at):
        status = "confirmed"
    elif row.asserted_at is not None and (at is None or row.asserted_at <= at):
        status = "asserted"
    else:
        status = "claimed"
    return Address(kind=row.kind, node=row.id, value=row.value, status=status)


def fold_addresses(rows: Iterable[NodeRow], at: datetime | None = None) -> list[Address]:
    """The addresses among these nodes, sorted by node."""
    found = (address_of(row, at) for row in sorted(rows, key=lambda row: row.id))
    return [address for address in found if address is not None]


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def zone_of(traits: dict[str, Any]) -> str | None:
    """The person's IANA zone: the trait `timezone`, if it is one."""
    zone = traits.get("timezone")
    return zone if isinstance(zone, str) and zone in _zones() else None


class State(msgspec.Struct, omit_defaults=True):
    """All sections. Orders and refunds are kept without their lines: those are read from rows when asked for."""

    traits: Traits = {}
    cart: CartState = msgspec.field(default_factory=CartState)
    orders: list[Order] = []
    refunds: list[Refund] = []
    consents: list[Consent] = []
    addresses: list[Address] = []


# A section without anything: left out of what is kept (msgspec leaves a default out when it is this very object).
ABSENT = msgspec.Raw()


class Sections(msgspec.Struct, omit_defaults=True):
    """The same as `State`, each section as the bytes it is kept in.

    `shown`: the cart as it is published, which serves before `until` (None: for ever).
    """

    traits: msgspec.Raw = ABSENT
    cart: msgspec.Raw = ABSENT
    orders: msgspec.Raw = ABSENT
    refunds: msgspec.Raw = ABSENT
    consents: msgspec.Raw = ABSENT
    addresses: msgspec.Raw = ABSENT
    shown: msgspec.Raw = ABSENT
    until: datetime | None = None


encode_state = msgspec.json.Encoder().encode
decode_state = msgspec.json.Decoder(State).decode
decode_sections = msgspec.json.Decoder(Sections).decode
EMPTY = encode_state(State())


def without_lines(order: Order) -> Order:
    """The order as it is kept with a person."""
    return msgspec.structs.replace(order, lines=[])


def facts_of(
    state: State,
    *,
    profile: UUID,
    nodes: list[UUID],
    at: datetime,
    last_learned_at: datetime | None,
    first_seen: datetime | None,
    as_of: datetime | None,
) -> Facts:
    """What a decision at `at` may know of this person; without events and without order lines."""
    traits = plain(state.traits)
    return Facts(
        profile=profile,
        nodes=nodes,
        as_of=as_of,
        last_learned_at=last_learned_at,
        first_seen=first_seen,
        traits=traits,
        cart=CartFold(state.cart).cart(at),
        orders=sorted(state.orders, key=order_of),
        refunds=sorted(state.refunds, key=refund_order_of),
        consents=state.consents,
        addresses=state.addresses,
        zone=zone_of(traits),
    )
