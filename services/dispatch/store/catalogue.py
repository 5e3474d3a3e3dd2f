"""What marketers configure: channels, policy, switches, templates, offers, suppressions; and figures of the whole base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.dispatch.inputs import Cap
from shared.channels import Channel
from shared.db import Tx
from shared.ids import RandomBits, uuid7

CHANNEL_COLUMNS = (
    "name, adapter, enabled, unit_cost, reach, act, lost, quiet, caps, budget, countries, settings, version, updated_at, "
    "ARRAY(SELECT a.name FROM dispatch.adapter a WHERE a.channel = channel.name ORDER BY a.name) AS told"
)
MEAN_ORDER_EVERY = timedelta(hours=1)
MEAN_ORDER_OVER = timedelta(days=90)


async def ensure_channels(
    tx: Tx, channels: Mapping[str, Channel], caps: Mapping[str, Sequence[Cap]], now: datetime
) -> list[str]:
    """A row for each channel that has none yet; returns those that are new. `caps`: of each channel."""
    names = sorted(channels)
    rows = await tx.fetch(
        """
        INSERT INTO dispatch.channel (name, enabled, unit_cost, reach, act, lost, caps, budget, settings, version, updated_at)
        SELECT name, true, unit_cost, reach, act, lost, caps::jsonb, '{}', '{}', 1, $7
        FROM unnest($1::text[], $2::numeric[], $3::numeric[], $4::numeric[], $5::numeric[], $6::text[])
             AS c(name, unit_cost, reach, act, lost, caps)
        ON CONFLICT (name) DO NOTHING RETURNING name
        """,
        names,
        [channels[name].unit_cost for name in names],
        [channels[name].reach for name in names],
        [channels[name].act for name in names],
        [channels[name].lost for name in names],
        [msgspec.json.encode(caps[name]).decode() for name in names],
        now,
    )
    return [row["name"] for row in rows]


async def ensure_policy(tx: Tx, caps: Sequence[Cap], mean_order: Decimal) -> None:
    await tx.execute(
        "INSERT INTO dispatch.policy (caps, mean_order, explore, version) VALUES ($1, $2, 0, 1) ON CONFLICT DO NOTHING",
        msgspec.to_builtins(list(caps)),
        mean_order,
    )


async def list_channels(tx: Tx) -> list[asyncpg.Record]:
    return await tx.fetch(f"SELECT {CHANNEL_COLUMNS} FROM dispatch.channel ORDER BY name")


async def read_channel(tx: Tx, name: str, *, lock: bool = False) -> asyncpg.Record | None:
    return await tx.fetchrow(
        f"SELECT {CHANNEL_COLUMNS} FROM dispatch.channel WHERE name = $1" + (" FOR UPDATE" if lock else ""), name
    )


async def write_channel(tx: Tx, name: str, values: Mapping[str, Any], now: datetime) -> None:
    """`values`: every column that can be set."""
    await tx.execute(
        """
        UPDATE dispatch.channel SET adapter = $2, enabled = $3, unit_cost = $4, reach = $5, act = $6, lost = $7, quiet = $8,
            caps = $9, budget = $10, countries = $11, settings = $12, version = version + 1, updated_at = $13
        WHERE name = $1
        """,
        name,
        *(values[column] for column in
          ("adapter", "enabled", "unit_cost", "reach", "act", "lost", "quiet", "caps", "budget", "countries", "settings")),
        now,
    )  # fmt: skip


async def read_policy_row(tx: Tx, *, lock: bool = False) -> asyncpg.Record:
    return await tx.fetchrow(
        "SELECT caps, mean_order, explore, version FROM dispatch.policy" + (" FOR UPDATE" if lock else "")
    )


async def write_policy(tx: Tx, caps: Any, mean_order: Decimal, explore: Decimal) -> None:
    await tx.execute(
        "UPDATE dispatch.policy SET caps = $1, mean_order = $2, explore = $3, version = version + 1",
        caps,
        mean_order,
        explore,
    )


async def list_switches(tx: Tx) -> list[asyncpg.Record]:
    return await tx.fetch('SELECT scope, name, reason, "by", at FROM dispatch.switch ORDER BY scope, name')


async def set_switch(tx: Tx, scope: str, name: str, on: bool, reason: str, by: str, now: datetime) -> None:
    if on:
        await tx.execute(
            'INSERT INTO dispatch.switch (scope, name, reason, "by", at) VALUES ($1, $2, $3, $4, $5) '
            "ON CONFLICT (scope, name) DO UPDATE SET reason = excluded.reason",
            scope,
            name,
            reason,
            by,
            now,
        )
    else:
        await tx.execute("DELETE FROM dispatch.switch WHERE scope = $1 AND name = $2", scope, name)


async def list_templates(tx: Tx, after: str, limit: int) -> list[asyncpg.Record]:
    return await tx.fetch(
        """
        SELECT t.id, t.name, t.version, t.title, t.archived, t.updated_at, v.purpose, v.parts, v.by
        FROM dispatch.template t JOIN dispatch.template_version v ON v.name = t.name AND v.version = t.version
        WHERE t.name > $1 ORDER BY t.name LIMIT $2
        """,
        after,
        limit,
    )


async def find_template(tx: Tx, wanted: str, *, lock: bool = False) -> asyncpg.Record | None:
    """By name or by id."""
    return await tx.fetchrow(
        """
        SELECT t.id, t.name, t.version, t.title, t.archived, t.updated_at, v.purpose, v.parts, v.by
        FROM dispatch.template t JOIN dispatch.template_version v ON v.name = t.name AND v.version = t.version
        WHERE t.name = $1 OR t.id::text = $1
        """
        + (" FOR UPDATE OF t" if lock else ""),
        wanted,
    )


async def add_template(
    tx: Tx, name: str, title: str, purpose: str, parts: Mapping[str, str], by: str, now: datetime, bits: RandomBits
) -> UUID | None:
    """A new template; None if the name is taken."""
    identity = await tx.fetchval(
        "INSERT INTO dispatch.template (name, id, version, title, updated_at) VALUES ($1, $2, 1, $3, $4) "
        "ON CONFLICT (name) DO NOTHING RETURNING id",
        name,
        uuid7(now, bits),
        title,
        now,
    )
    if identity is not None:
        await _add_version(tx, name, 1, purpose, parts, by, now)
    return identity


async def change_template(
    tx: Tx, name: str, version: int, title: str, purpose: str, parts: Mapping[str, str], by: str, now: datetime
) -> None:
    """A new version, which is used from now on; the row must be locked."""
    await _add_version(tx, name, version, purpose, parts, by, now)
    await tx.execute(
        "UPDATE dispatch.template SET version = $2, title = $3, archived = false, updated_at = $4 WHERE name = $1",
        name,
        version,
        title,
        now,
    )


async def archive_template(tx: Tx, name: str, now: datetime) -> None:
    await tx.execute("UPDATE dispatch.template SET archived = true, updated_at = $2 WHERE name = $1", name, now)


async def _add_version(
    tx: Tx, name: str, version: int, purpose: str, parts: Mapping[str, str], by: str, now: datetime
) -> None:
    await tx.execute(
        'INSERT INTO dispatch.template_version (name, version, purpose, parts, "by", at) VALUES ($1, $2, $3, $4, $5, $6)',
        name,
        version,
        purpose,
        dict(parts),
        by,
        now,
    )


async def list_offers(tx: Tx, after: str, limit: int) -> list[asyncpg.Record]:
    return await tx.fetch(
        "SELECT id, name, title, code, valid_seconds, forms, unless_bought, version, updated_at FROM dispatch.offer "
        "WHERE name > $1 ORDER BY name LIMIT $2",
        after,
        limit,
    )


async def find_offer(tx: Tx, wanted: str) -> asyncpg.Record | None:
    """By name or by id."""
    return await tx.fetchrow(
        "SELECT id, name, title, code, valid_seconds, forms, unless_bought, version, updated_at FROM dispatch.offer "
        "WHERE name = $1 OR id::text = $1",
        wanted,
    )


async def put_offer(
    tx: Tx,
    name: str,
    title: str,
    code: str,
    valid_seconds: float | None,
    forms: Mapping[str, Any],
    now: datetime,
    bits: RandomBits,
    unless_bought: Mapping[str, Any] | None = None,
) -> tuple[UUID, bool]:
    """Makes or changes an offer; (its id, whether it is new). Codes already given out stay what they are."""
    row = await tx.fetchrow(
        """
        INSERT INTO dispatch.offer AS o
            (name, id, title, code, valid_seconds, forms, version, updated_at, unless_bought)
        VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $8)
        ON CONFLICT (name) DO UPDATE SET title = excluded.title, code = excluded.code,
            valid_seconds = excluded.valid_seconds, forms = excluded.forms, version = o.version + 1,
            updated_at = excluded.updated_at, unless_bought = excluded.unless_bought
        RETURNING id, version
        """,
        name,
        uuid7(now, bits),
        title,
        code,
        valid_seconds,
        dict(forms),
        now,
        dict(unless_bought) if unless_bought is not None else None,
    )
    return row["id"], row["version"] == 1


async def delete_offer(tx: Tx, name: str) -> None:
    await tx.execute("DELETE FROM dispatch.offer WHERE name = $1", name)


async def list_suppressions(
    tx: Tx, channel: str | None, node: UUID | None, before: tuple[datetime, UUID] | None, limit: int
) -> list[asyncpg.Record]:
    """Newest first."""
    at, identity = before or (None, None)
    return await tx.fetch(
        """
        SELECT id, node, channel, kind, value, why, "by", at FROM dispatch.suppression
        WHERE ($1::text IS NULL OR channel = $1) AND ($2::uuid IS NULL OR node = $2)
          AND ($3::timestamptz IS NULL OR (at, id) < ($3, $4))
        ORDER BY at DESC, id DESC LIMIT $5
        """,
        channel,
        node,
        at,
        identity,
        limit,
    )


async def lift_suppression(tx: Tx, identity: UUID, now: datetime) -> asyncpg.Record | None:
    """Takes the address off the list; that it stood on it until now is kept, for decisions of that time."""
    return await tx.fetchrow(
        """
        WITH lifted AS (
            DELETE FROM dispatch.suppression WHERE id = $1 RETURNING id, node, channel, kind, value, why, "by", at
        ), kept AS (
            INSERT INTO dispatch.lifted (id, node, channel, at, lifted_at) SELECT id, node, channel, at, $2 FROM lifted
        )
        SELECT * FROM lifted
        """,
        identity,
        now,
    )


async def refresh_mean_order(tx: Tx, now: datetime) -> bool:
    """A new version of the shop-wide mean order, once an hour; says whether one was made. It is valid from now on, and
    what it was before stays for decisions that named it."""
    last = await tx.fetchrow(
        "SELECT version, valid_from, value FROM dispatch.figure WHERE name = 'mean_order' ORDER BY version DESC LIMIT 1"
    )
    if last is not None and now < last["valid_from"] + MEAN_ORDER_EVERY:
        return False
    found = await tx.fetchrow(
        """
        SELECT avg(total - refunded)::numeric(20, 2) AS mean, count(*) AS basis FROM cdp.order_entity
        WHERE at > $1 AND total > 0 AND NOT cancelled
        """,
        now - MEAN_ORDER_OVER,
    )
    if not found["basis"]:
        return False
    return (
        await tx.fetchval(
            "INSERT INTO dispatch.figure (name, version, valid_from, value, basis) VALUES ('mean_order', $1, $2, $3, $4) "
            "ON CONFLICT DO NOTHING RETURNING true",
            (last["version"] if last else 0) + 1,
            now,
            found["mean"],
            found["basis"],
        )
        or False
    )


async def read_suppression(tx: Tx, identity: UUID) -> asyncpg.Record:
    return await tx.fetchrow(
        'SELECT id, node, channel, kind, value, why, "by", at FROM dispatch.suppression WHERE id = $1', identity
    )


async def set_held(tx: Tx, held: bool) -> None:
    """The state of the deployment after a restore: dispatch decides and sends nothing while it is held."""
    await tx.execute("UPDATE platform.deployment SET state = $1", "held" if held else "open")
