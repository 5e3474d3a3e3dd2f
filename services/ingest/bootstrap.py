"""The two sources that a first start makes."""

from __future__ import annotations

from datetime import datetime

import msgspec

from services.ingest.sources import key_hash, key_hint, new_key
from services.ingest.store import NewKey, any_source, insert_source
from shared.auth import log_change
from shared.clock import Clock
from shared.db import Database, Tx
from shared.ids import RandomBits, uuid7

BY = "first start"  # who did it, in the change log


class Credentials(msgspec.Struct, frozen=True):
    """Write keys of the first sources: `site` stands in web pages, `server` belongs to servers and tills."""

    site_write_key: str
    server_write_key: str


async def first_sources(database: Database, clock: Clock, bits: RandomBits) -> Credentials | None:
    """Makes the sources `site` (public) and `server` (secret) when there is no source at all; else None.

    Of two processes that start at once one makes them.
    """
    async with database.transaction() as tx:
        return await make_first_sources(tx, clock.now(), bits)


async def make_first_sources(tx: Tx, now: datetime, bits: RandomBits) -> Credentials | None:
    """The same in the caller's transaction."""
    if await any_source(tx):
        return None
    made = Credentials(new_key(bits), new_key(bits))
    for name, kind, key in (("site", "public", made.site_write_key), ("server", "secret", made.server_write_key)):
        kept = NewKey(uuid7(now, bits), key_hash(key), key_hint(key), key if kind == "public" else None)
        await insert_source(tx, uuid7(now, bits), name, kind, None, kept, now)
        await log_change(tx, BY, "source.create", f"source {name}", None, {"name": name, "kind": kind}, now)
    return made
