"""Test messages by hand."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from services.dispatch.channels.base import Price, Result
from shared.db import Tx

HOUR = timedelta(hours=1)


async def count_since(tx: Tx, channel: str, now: datetime) -> int:
    """How many the channel had in the last hour."""
    return await tx.fetchval("SELECT count(*) FROM dispatch.test WHERE channel = $1 AND at > $2", channel, now - HOUR)


async def begin(
    tx: Tx,
    identity: UUID,
    channel: str,
    adapter: str,
    node: UUID,
    by: str,
    now: datetime,
    price: Price,
    seconds: float,
) -> None:
    """The row of one that is called now and has `seconds` to end."""
    await tx.execute(
        """
        INSERT INTO dispatch.test (id, channel, adapter, address_node, by, at, cost, units, call_until)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp() + make_interval(secs => $9))
        """,
        identity,
        channel,
        adapter,
        node,
        by,
        now,
        price.cost,
        price.units,
        seconds,
    )


async def end(tx: Tx, identity: UUID, result: Result, detail: str, provider_id: str, now: datetime) -> None:
    """What came of it; also when it had been given up meanwhile."""
    await tx.execute(
        "UPDATE dispatch.test SET outcome = $2, detail = $3, provider_id = $4, charged = $5, ended_at = $6 WHERE id = $1",
        identity,
        result.outcome,
        detail,
        provider_id,
        result.charged,
        now,
    )


async def give_up(tx: Tx, now: datetime) -> list[UUID]:
    """Those that did not tell in their time are unknown."""
    rows = await tx.fetch(
        """
        UPDATE dispatch.test SET outcome = 'unknown', detail = 'no answer was stored in its time', ended_at = $1
        WHERE outcome IS NULL AND call_until < clock_timestamp() RETURNING id
        """,
        now,
    )
    return [row["id"] for row in rows]


async def latest(tx: Tx, channel: str, limit: int) -> list[asyncpg.Record]:
    """The latest of a channel, newest first."""
    return await tx.fetch(
        "SELECT id, channel, adapter, at, cost, units, outcome, detail, charged, delivery, ended_at FROM dispatch.test "
        "WHERE channel = $1 ORDER BY at DESC, id DESC LIMIT $2",
        channel,
        limit,
    )
