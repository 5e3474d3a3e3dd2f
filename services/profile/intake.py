"""A record of `events` or `history` → what it brings: nodes, links, rows of facts. Pure.

What a source may vouch for decides: a secret one links its ids strongly and asserts them, a signed one vouches for its user
id, everything else links weakly. Events of our own observe nobody and link nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from services.profile.identity import ALIAS, SECRET, SIGNED, WEAK, Pair, pair_of
from services.profile.ids import ClientUUID
from shared.bus.base import Record
from shared.errors import Permanent
from shared.events import TRUST_RANK, Event, encode
from shared.facts.extract import CONFIRMED, PURGED, Extracted, address_node_of, extract
from shared.identifiers import Identifier

NUL = b"\\u0000"
MOST_IDS = 100
DIGEST = 32


class _Named(msgspec.Struct, frozen=True):
    """`Identifier`, decoded with the database client's UUIDs: these are hashed and compared in C."""

    kind: str
    value: str
    node: ClientUUID
    strong: bool = False


class _Decoded(Event):
    """`Event`, decoded in the same way."""

    id: ClientUUID
    source: ClientUUID
    origin: ClientUUID
    ids: list[_Named]  # type: ignore[assignment]  # the same fields


def _client_uuid(_: type, text: str) -> UUID:
    return ClientUUID(text)


_decode = msgspec.json.Decoder(_Decoded, dec_hook=_client_uuid).decode


class Incoming(msgspec.Struct, eq=False):
    """One event on its way into the store.

    `nodes`: all that it names, its origin first. `base`: the earliest moment at which it may count as learned. `value`: its
    JSON; `digest`: its hash. `links`: pairs and strengths; `vouched`: nodes that its source vouches for; `simple`: all that it
    says of nodes and links is known; `confirmed`: the address whose button was pressed; `purges`: the address to be purged.
    """

    event: Event
    origin: UUID
    nodes: list[UUID]
    value: bytes
    base: datetime
    trust: int
    found: Extracted
    links: list[tuple[Pair, int]] = []
    vouched: list[UUID] = []
    digest: bytes = b""
    simple: bool = False
    confirmed: UUID | None = None
    purges: UUID | None = None


def read(record: Record, now: datetime, currency: str) -> Incoming:
    """Decodes and extracts. Raises Permanent with what is wrong with the record."""
    value = record.value
    try:
        event = _decode(value)
        digest = bytes.fromhex(event.hash)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, ValueError) as problem:
        raise Permanent(f"not an event: {problem}") from problem
    if len(digest) != DIGEST:
        raise Permanent("/hash is not a SHA-256", "/hash")
    if NUL in value:
        _refuse_nul(event)
    if event.received_at > now or event.occurred_at > event.received_at:
        event.received_at = min(event.received_at, now)
        event.occurred_at = min(event.occurred_at, event.received_at)
        value = encode(event)
    if len(event.ids) > MOST_IDS:
        raise Permanent(f"/ids has {len(event.ids)} identifiers, at most {MOST_IDS} are allowed", "/ids")
    trust = TRUST_RANK[event.trust]
    found = extract(event, event.received_at, currency)
    origin = event.origin
    nodes = [origin, *(one.node for one in event.ids if one.node != origin)]
    if found.address is not None and found.address not in nodes:
        nodes.append(found.address)
    incoming = Incoming(event, origin, nodes, value, event.received_at, trust, found, digest=digest)
    if trust == TRUST_RANK["internal"]:
        _read_own(incoming)
    else:
        incoming.links = links_of(event, trust)
        incoming.vouched = vouched_by(event, trust)
    return incoming


def _read_own(incoming: Incoming) -> None:
    event = incoming.event
    if event.name == CONFIRMED:
        incoming.confirmed = address_node_of(event)
    elif event.name == PURGED:
        incoming.purges = address_node_of(event)


def links_of(event: Event, trust: int) -> list[tuple[Pair, int]]:
    """The links between the event's origin and its other ids."""
    origin, ids = event.origin, event.ids
    if len(ids) < 2 and (not ids or ids[0].node == origin):
        return []
    alias = event.type == "alias"
    return [
        (pair_of(origin, one.node), strength_of(trust, alias=alias, strong=one.strong))
        for one in ids
        if one.node != origin
    ]


def strength_of(trust: int, *, alias: bool, strong: bool) -> int:
    """Of a link that an event observed. `strong`: the event's source vouches for the id by a signature."""
    if trust == TRUST_RANK["secret"]:
        return ALIAS if alias else SECRET
    return SIGNED if trust == TRUST_RANK["signed"] and strong else WEAK


def vouched_by(event: Event, trust: int) -> list[UUID]:
    """Secret: all its ids. Signed: its user id. Public: none (its own anonymousId makes nobody known)."""
    if trust == TRUST_RANK["secret"]:
        return [one.node for one in event.ids]
    if trust == TRUST_RANK["signed"]:
        return [one.node for one in event.ids if one.strong and one.kind == "user_id"]
    return []


def identifiers_of(batch: Sequence[Incoming]) -> dict[UUID, Identifier]:
    """Every node that the batch names. An event of our own may name its origin by id alone: should that node be gone (erased,
    purged), it is kept as a node without an identifier."""
    named: dict[UUID, Identifier] = {}
    for incoming in batch:
        for one in incoming.event.ids:
            named[one.node] = one
    for incoming in batch:
        for node in incoming.nodes:
            if node not in named:
                named[node] = Identifier("claimed", f"node:{node}", node)
    return named


def _refuse_nul(event: Event) -> None:
    """PostgreSQL cannot store the character NUL: says in which field it stands."""
    for section in ("ids", "properties", "traits", "context", "name", "type", "message_id"):
        pointer = _nul_in(msgspec.to_builtins(getattr(event, section)), f"/{section}")
        if pointer is not None:
            raise Permanent(f"{pointer} contains the character NUL, which cannot be stored", pointer)


def _nul_in(value: object, pointer: str) -> str | None:
    if isinstance(value, str):
        return pointer if "\x00" in value else None
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        if isinstance(key, str) and "\x00" in key:
            return pointer
        if (found := _nul_in(part, f"{pointer}/{key}")) is not None:
            return found
    return None
