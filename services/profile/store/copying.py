"""COPY in PostgreSQL's binary format: what is written for every event and for everybody new.

Arrays and `unnest` cost asyncpg several times as much a value; the event's own table has fifteen columns.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from struct import Struct
from typing import Any

import msgspec

from services.profile.people import Person, Placed, Stay
from shared.db import Tx

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
JSONB = b"\x01"  # the version that stands before the text

COLUMNS = (
    "node", "learned_at", "id", "occurred_at", "received_at", "trust", "history", "first", "source",
    "name", "type", "order_key", "message_id", "properties", "rest",
)  # fmt: skip
# The number of columns, then the nine of fixed size, each with its length before it.
_fixed = Struct(">h i16s iq i16s iq iq ih i? i? i16s").pack
_length = Struct(">i").pack
_moment = Struct(">q").pack

_encode = msgspec.json.Encoder(decimal_format="number").encode


def text(value: Any) -> str:
    """As JSON text, for a jsonb column; decimals as numbers."""
    return _encode(value).decode()


def microseconds(moment: datetime) -> int:
    """A moment as PostgreSQL stores it."""
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


_stay = Struct(">h i16s iq i").pack
_last = Struct(">i16s").pack


async def copy_stays(tx: Tx, stays: Iterable[Stay]) -> None:
    """Writes memberships that began."""
    parts = [HEADER]
    for stay in stays:
        assert stay.from_at is not None
        ended = stay.to_at is not None
        parts.append(_stay(4, 16, stay.node.bytes, 8, microseconds(stay.from_at), 8 if ended else -1))
        if stay.to_at is not None:
            parts.append(_moment(microseconds(stay.to_at)))
        parts.append(_last(16, stay.profile.bytes))
    await _copy(tx, "membership", ("node", "from_at", "to_at", "profile"), parts)


_person = Struct(">h i16s i16s iq iq").pack
_array = Struct(">i iiIii").pack
UUID_TYPE = 2950


async def copy_people(tx: Tx, people: Iterable[tuple[Person, str | None, bytes]]) -> None:
    """Writes profiles that are new: the row, the time zone, the state."""
    parts = [HEADER]
    for person, zone, state in people:
        parts.append(
            _person(
                7, 16, person.id.bytes, 16, person.component.bytes,
                8, microseconds(person.last), 8, microseconds(person.first_seen),
            )
        )  # fmt: skip
        nodes = person.nodes
        parts.append(_array(20 + 20 * len(nodes), 1, 0, UUID_TYPE, len(nodes), 1))
        parts += [_last(16, node.bytes) for node in nodes]
        if zone is None:
            parts.append(NULL)
        else:
            parts += (_length(len(zone)), zone.encode())
        parts += (_length(len(state)), state)
    columns = ("id", "component", "last_learned_at", "first_seen", "nodes", "timezone", "state")
    await _copy(tx, "profile", columns, parts)


async def _copy(tx: Tx, table: str, columns: Sequence[str], parts: list[bytes]) -> None:
    source = io.BytesIO(b"".join([*parts, TRAILER]))
    await tx.copy_to_table(table, schema_name="profile", source=source, columns=columns, format="binary")


async def copy_events(tx: Tx, placed: Iterable[tuple[Placed, bool]]) -> None:
    """Writes the events; with each, whether it is the first report of its order."""
    parts = [HEADER]
    for one, first in placed:
        _add(parts, one, first)
    await _copy(tx, "event", COLUMNS, parts)


def _add(parts: list[bytes], one: Placed, first: bool) -> None:
    incoming = one.incoming
    event = incoming.event
    parts.append(
        _fixed(
            15,
            16, event.origin.bytes, 8, microseconds(one.learned_at), 16, event.id.bytes, 8, microseconds(event.occurred_at),
            8, microseconds(event.received_at), 2, incoming.trust, 1, event.history, 1, first, 16, event.source.bytes,
        )
    )  # fmt: skip
    for value in (event.name, event.type, incoming.found.order_key, event.message_id):
        if value is None:
            parts.append(NULL)
        else:
            encoded = value.encode()
            parts += (_length(len(encoded)), encoded)
    for document in (event.properties, _rest(one)):
        encoded = _encode(document)
        parts += (_length(len(encoded) + 1), JSONB, encoded)


def _rest(one: Placed) -> dict[str, Any]:
    event = one.incoming.event
    rest: dict[str, Any] = {"ids": [(it.kind, it.node, it.strong) for it in event.ids], "hash": event.hash}
    if event.traits:
        rest["traits"] = event.traits
    if event.context:
        rest["context"] = event.context
    if event.hops:
        rest["hops"] = event.hops
    return rest
