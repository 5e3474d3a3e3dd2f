"""Ids in the database client's own type, which is hashed and compared in C: a batch does that some twenty times an event."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from uuid import UUID

from asyncpg.pgproto import pgproto

from shared.ids import derived_id

ClientUUID = pgproto.UUID


@lru_cache(maxsize=8_192)  # a batch asks twice: for what it will probably write, and for what it writes
def new_id(kind: str, node: UUID, at: datetime) -> UUID:
    """A new id of this kind: no other is made of this node at this moment."""
    return ClientUUID(derived_id(kind, node, at.isoformat()).bytes)
