"""All SQL of ingest."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.ingest.parse import Source
from services.ingest.sources import KnownKey, Snapshot
from shared.db import Database, Tx

# ── keys that count ────────────────────────────────────────────────────────────────────────────────────────────────────


async def read_version(database: Database) -> int:
    async with database.connection() as connection:
        return await connection.fetchval("SELECT version FROM ingest.key_version")


async def read_keys(database: Database) -> Snapshot:
    """All keys of sources that are not revoked, and the version that they belong to."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            """
            SELECT v.version, k.hash, s.id AS source, s.name, s.kind, k.valid_until,
                   s.signing_secret, s.former_signing_secret, s.former_signing_until
            FROM ingest.key_version v
            LEFT JOIN (ingest.write_key k JOIN ingest.source s ON s.id = k.source AND s.revoked_at IS NULL)
                ON k.revoked_at IS NULL
            """
        )
    keys = [
        KnownKey(
            row["hash"],
            row["source"],
            row["name"],
            row["kind"],
            row["valid_until"],
            row["signing_secret"],
            row["former_signing_secret"],
            row["former_signing_until"],
        )
        for row in rows
        if row["hash"] is not None
    ]
    return Snapshot(rows[0]["version"], keys)


# ── sources ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class NameTaken(Exception):
    """Another source has this name."""


class NewKey(msgspec.Struct, frozen=True):
    """A write key to be stored. `key`: itself for public sources, None for secret ones."""

    id: UUID
    hash: bytes
    hint: str
    key: str | None


async def insert_source(
    tx: Tx, source: UUID, name: str, kind: str, signing_secret: str | None, key: NewKey, at: datetime
) -> None:
    """A source with its first key. Raises NameTaken."""
    try:
        await tx.execute(
            "INSERT INTO ingest.source (id, name, kind, signing_secret, made_at) VALUES ($1, $2, $3, $4, $5)",
            source,
            name,
            kind,
            signing_secret,
            at,
        )
    except asyncpg.UniqueViolationError as taken:
        raise NameTaken(name) from taken
    await insert_key(tx, source, key, at)


async def insert_key(tx: Tx, source: UUID, key: NewKey, at: datetime) -> None:
    await tx.execute(
        "INSERT INTO ingest.write_key (id, source, hash, hint, key, made_at) VALUES ($1, $2, $3, $4, $5, $6)",
        key.id,
        source,
        key.hash,
        key.hint,
        key.key,
        at,
    )
    await raise_version(tx)


async def raise_version(tx: Tx) -> None:
    """Tells all caches that sources or keys changed."""
    await tx.execute("UPDATE ingest.key_version SET version = version + 1")


async def end_keys(tx: Tx, source: UUID, until: datetime) -> None:
    """The source's keys count until `until` at the longest."""
    await tx.execute(
        """
        UPDATE ingest.write_key SET valid_until = least(valid_until, $2)
        WHERE source = $1 AND revoked_at IS NULL
        """,
        source,
        until,
    )


async def revoke_key(tx: Tx, source: UUID, key: UUID, at: datetime) -> bool:
    """Whether there was such a key that counted."""
    done = await tx.fetchval(
        "UPDATE ingest.write_key SET revoked_at = $3 WHERE id = $2 AND source = $1 AND revoked_at IS NULL RETURNING true",
        source,
        key,
        at,
    )
    await raise_version(tx)
    return bool(done)


async def revoke_source(tx: Tx, source: UUID, at: datetime) -> None:
    await tx.execute("UPDATE ingest.source SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL", source, at)
    await raise_version(tx)


async def set_signing_secret(tx: Tx, source: UUID, secret: str, former_until: datetime) -> None:
    """The present secret becomes the former one, which counts until `former_until`."""
    await tx.execute(
        """
        UPDATE ingest.source
        SET former_signing_secret = signing_secret,
            former_signing_until = CASE WHEN signing_secret IS NULL THEN NULL ELSE $3::timestamptz END,
            signing_secret = $2
        WHERE id = $1
        """,
        source,
        secret,
        former_until,
    )
    await raise_version(tx)


_SOURCES = """
    SELECT s.id, s.name, s.kind, s.signing_secret IS NOT NULL AS signing, s.made_at, s.revoked_at,
           coalesce(jsonb_agg(jsonb_build_object(
               'id', k.id, 'hint', k.hint, 'key', k.key, 'made_at', k.made_at, 'valid_until', k.valid_until,
               'revoked_at', k.revoked_at) ORDER BY k.made_at, k.id) FILTER (WHERE k.id IS NOT NULL), '[]') AS keys
    FROM ingest.source s LEFT JOIN ingest.write_key k ON k.source = s.id
"""


async def find_source(tx: Tx, id_or_name: str) -> asyncpg.Record | None:
    """A source with its keys, by id or by name; the row is locked against other changes of the source."""
    await tx.execute("SELECT FROM ingest.source WHERE id::text = $1 OR name = $1 FOR UPDATE", id_or_name)
    return await tx.fetchrow(f"{_SOURCES} WHERE s.id::text = $1 OR s.name = $1 GROUP BY s.id", id_or_name)


async def read_source(tx: Tx, source: UUID) -> Source | None:
    """A source as the parser needs it, revoked or not: what it sent is judged as it was when it came."""
    row = await tx.fetchrow("SELECT id, name, kind, signing_secret FROM ingest.source WHERE id = $1", source)
    if row is None:
        return None
    return Source(row["id"], row["name"], row["kind"], (row["signing_secret"],) if row["signing_secret"] else ())


async def list_sources(tx: Tx, after: str | None, limit: int) -> list[asyncpg.Record]:
    """Sources with their keys by name, after the name `after`."""
    return await tx.fetch(
        f"{_SOURCES} WHERE $1::text IS NULL OR s.name > $1 GROUP BY s.id ORDER BY s.name LIMIT $2", after, limit
    )


async def any_source(tx: Tx) -> bool:
    """Whether there is a source; nobody else can make one until this transaction ends."""
    await tx.execute("LOCK TABLE ingest.source IN SHARE ROW EXCLUSIVE MODE")
    return await tx.fetchval("SELECT EXISTS (SELECT FROM ingest.source)")


# ── dead letters (schema platform: those of all services) ──────────────────────────────────────────────────────────────


class Letter(msgspec.Struct, frozen=True):
    """A refused event or body to be kept."""

    id: UUID
    source: UUID
    reason: str
    pointer: str
    raw: bytes
    headers: dict[str, Any]
    at: datetime


async def keep_letters(database: Database, letters: Sequence[Letter]) -> None:
    """Keeps what ingest refused. The same bytes of the same source are one letter: a repeat opens it again."""
    ordered = sorted({letter.id: letter for letter in letters}.values(), key=lambda letter: letter.id)
    async with database.connection() as connection:
        await connection.execute(
            """
            INSERT INTO platform.dead_letter AS d (id, service, source, reason, pointer, bytes, headers, at)
            SELECT id, 'ingest', source, reason, pointer, bytes, headers, at
            FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::jsonb[], $7::timestamptz[])
                AS l(id, source, reason, pointer, bytes, headers, at)
            ON CONFLICT (id) DO UPDATE
            SET state = 'open', reason = excluded.reason, pointer = excluded.pointer, headers = excluded.headers,
                at = excluded.at
            """,
            [letter.id for letter in ordered],
            [letter.source for letter in ordered],
            [letter.reason for letter in ordered],
            [letter.pointer for letter in ordered],
            [letter.raw for letter in ordered],
            [letter.headers for letter in ordered],
            [letter.at for letter in ordered],
        )


class LetterFilter(msgspec.Struct, frozen=True):
    """Which dead letters to list; None: all."""

    service: str | None = None
    state: str | None = None
    source: UUID | None = None
    topic: str | None = None


async def list_letters(
    tx: Tx, wanted: LetterFilter, before: tuple[datetime, UUID] | None, limit: int, shown: int
) -> list[asyncpg.Record]:
    """The newest first, older than `before`; of each letter's bytes the first `shown`."""
    at, letter = before or (None, None)
    return await tx.fetch(
        """
        SELECT id, service, topic, partition, number, epoch, source, reason, pointer, key, headers, at, state, replayed_at,
               substr(bytes, 1, $7) AS bytes, length(bytes) AS size
        FROM platform.dead_letter
        WHERE ($1::text IS NULL OR service = $1) AND ($2::text IS NULL OR state = $2)
          AND ($3::uuid IS NULL OR source = $3) AND ($4::text IS NULL OR topic = $4)
          AND ($5::timestamptz IS NULL OR (at, id) < ($5, $6::uuid))
        ORDER BY at DESC, id DESC LIMIT $8
        """,
        wanted.service,
        wanted.state,
        wanted.source,
        wanted.topic,
        at,
        letter,
        shown,
        limit,
    )


async def find_letter(tx: Tx, letter: UUID) -> asyncpg.Record | None:
    return await tx.fetchrow("SELECT *, length(bytes) AS size FROM platform.dead_letter WHERE id = $1", letter)


async def close_letter(tx: Tx, letter: UUID, state: str, at: datetime) -> bool:
    """Whether it was open until now. `state`: replayed or discarded."""
    return bool(
        await tx.fetchval(
            """
            UPDATE platform.dead_letter SET state = $2, replayed_at = CASE WHEN $2 = 'replayed' THEN $3::timestamptz END
            WHERE id = $1 AND state = 'open' RETURNING true
            """,
            letter,
            state,
            at,
        )
    )
