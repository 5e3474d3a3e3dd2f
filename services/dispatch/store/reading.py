"""What people ask about messages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from shared.db import Tx

_COLUMNS = """m.id, m.run, m.rule, m.rule_name, m.kind, m.topic, m.step, m.template, m.template_version, m.purpose, m.profile,
    m.ghost, m.state, m.reason_code, m.reason, m.channel, m.adapter, m.address, m.subject, m.body, m.html, m.urls, m.cost,
    m.units, m.decided_at, m.due_at, m.valid_until, m.created_at, m.updated_at, m.sent_at, m.delivery, m.delivered_at,
    m.attempts, m.decisions"""


class Wanted(msgspec.Struct, frozen=True):
    """Which messages; None: all. `nodes`: of the person. `rule`: name or id."""

    nodes: list[UUID] | None = None
    rule: str | None = None
    channel: str | None = None
    state: str | None = None
    reason: str | None = None
    since: datetime | None = None


async def list_messages(
    tx: Tx, wanted: Wanted, after: tuple[datetime, UUID] | None, limit: int, *, newest_first: bool = False
) -> list[asyncpg.Record]:
    """By their last change, oldest first: who asks again with the cursor, or with `since`, gets what changed."""
    at, message = after or (None, None)
    order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
    return await tx.fetch(
        f"""
        SELECT {_COLUMNS} FROM dispatch.message m
        WHERE m.intended AND ($1::uuid[] IS NULL OR m.origin = ANY($1::uuid[]))
          AND ($2::text IS NULL OR m.rule_name = $2 OR m.rule::text = $2)
          AND ($3::text IS NULL OR m.channel = $3)
          AND ($4::text IS NULL OR m.state = $4)
          AND ($5::text IS NULL OR m.reason_code = $5)
          AND ($6::timestamptz IS NULL OR m.updated_at >= $6)
          AND ($7::timestamptz IS NULL OR (m.updated_at, m.id) {beyond} ($7, $8))
        ORDER BY m.updated_at {order}, m.id {order} LIMIT $9
        """,
        wanted.nodes,
        wanted.rule,
        wanted.channel,
        wanted.state,
        wanted.reason,
        wanted.since,
        at,
        message,
        limit,
    )


async def read_message(tx: Tx, message: UUID) -> asyncpg.Record | None:
    return await tx.fetchrow(f"SELECT {_COLUMNS} FROM dispatch.message m WHERE m.id = $1", message)


async def alternatives_of(tx: Tx, messages: Sequence[UUID]) -> dict[UUID, list[asyncpg.Record]]:
    """The table of alternatives of each message's last decision."""
    rows = await tx.fetch(
        """
        SELECT a.message, a.channel, a.reach, a.act, a.base, a.effect, a.value, a.cost, a.units, a.erosion, a.net,
               a.reason_code, a.reason
        FROM dispatch.alternative a JOIN dispatch.message m ON m.id = a.message AND m.decisions = a.number
        WHERE a.message = ANY($1::uuid[]) ORDER BY a.net DESC NULLS LAST, a.channel
        """,
        list(messages),
    )
    found: dict[UUID, list[asyncpg.Record]] = {message: [] for message in messages}
    for row in rows:
        found[row["message"]].append(row)
    return found


async def links_of(tx: Tx, messages: Sequence[UUID]) -> dict[UUID, list[tuple[int, str]]]:
    """(number, where it leads) of each message's links."""
    rows = await tx.fetch(
        "SELECT message, number, url FROM dispatch.link WHERE message = ANY($1::uuid[]) ORDER BY message, number",
        list(messages),
    )
    found: dict[UUID, list[tuple[int, str]]] = {message: [] for message in messages}
    for row in rows:
        found[row["message"]].append((row["number"], row["url"]))
    return found


async def attempts_of(tx: Tx, message: UUID) -> list[asyncpg.Record]:
    return await tx.fetch(
        "SELECT number, channel, adapter, at, cost, charged, outcome, detail, provider_id, ended_at FROM dispatch.attempt "
        "WHERE message = $1 ORDER BY number",
        message,
    )


async def decisions_of(tx: Tx, message: UUID) -> list[asyncpg.Record]:
    """With their inputs, newest last."""
    return await tx.fetch(
        "SELECT number, at, act, channel, reason_code, reason, until, probability, inputs FROM dispatch.decision "
        "WHERE message = $1 ORDER BY number",
        message,
    )


async def hits_of(tx: Tx, message: UUID) -> list[asyncpg.Record]:
    return await tx.fetch("SELECT kind, number, at, bot FROM dispatch.hit WHERE message = $1 ORDER BY at", message)


async def nodes_of_profile(tx: Tx, profile: UUID) -> list[UUID]:
    """The present nodes of a profile, by whatever name it was known before."""
    return (
        await tx.fetchval(
            """
            WITH RECURSIVE chain AS (
                SELECT $1::uuid AS id UNION SELECT a.new FROM chain c JOIN cdp.profile_alias a ON a.old = c.id
            )
            SELECT p.nodes FROM chain JOIN cdp.profile p USING (id) LIMIT 1
            """,
            profile,
        )
        or []
    )


async def decisions_between(
    tx: Tx, since: datetime, until: datetime, after: tuple[UUID, int] | None, limit: int
) -> list[asyncpg.Record]:
    """Stored decisions made in [since, until), by (message, number): what `derive` computes again."""
    message, number = after or (None, None)
    return await tx.fetch(
        """
        SELECT message, number, at, inputs, act, channel, address_node, reason_code, reason, until, cost, probability, explored
        FROM dispatch.decision
        WHERE at >= $1 AND at < $2 AND ($3::uuid IS NULL OR (message, number) > ($3, $4))
        ORDER BY message, number LIMIT $5
        """,
        since,
        until,
        message,
        number,
        limit,
    )


async def stored_alternatives(tx: Tx, messages: Sequence[UUID]) -> dict[tuple[UUID, int], dict[str, asyncpg.Record]]:
    """By (message, decision's number), then by channel."""
    rows = await tx.fetch(
        """
        SELECT message, number, channel, reach, act, base, effect, value, cost, units, erosion, net, reason_code, reason
        FROM dispatch.alternative WHERE message = ANY($1::uuid[])
        """,
        sorted(set(messages)),
    )
    found: dict[tuple[UUID, int], dict[str, asyncpg.Record]] = {}
    for row in rows:
        found.setdefault((row["message"], row["number"]), {})[row["channel"]] = row
    return found
