"""COPY in PostgreSQL's binary format: what is written for every event.

Arrays and `unnest` cost asyncpg several times as much a value; the event's own table has fifteen columns.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from datetime import UTC, datetime
from struct import Struct
from typing import Any

import msgspec

from services.profile.people import Placed
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

_encode = msgspec.json.Encoder(decimal_format="number").encode


def text(value: Any) -> str:
    """As JSON text, for a jsonb column; decimals as numbers."""
    return _encode(value).decode()


def microseconds(moment: datetime) -> int:
    """A moment as PostgreSQL stores it."""
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


async def copy_events(tx: Tx, placed: Iterable[tuple[Placed, bool]]) -> None:
    """Writes the events; with each, whether it is the first report of its order."""
    parts = [HEADER]
    for one, first in placed:
        _add(parts, one, first)
    parts.append(TRAILER)
    await tx.copy_to_table(
        "event", schema_name="profile", source=io.BytesIO(b"".join(parts)), columns=COLUMNS, format="binary"
    )


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
