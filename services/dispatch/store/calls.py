"""Calls: the step to *calling*, what came of it, and those that never told."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from shared.db import Tx

# How long after the step to *calling* an exchange may still start, and what is left after its time for writing it down.
START_SECONDS = 5.0
MARGIN_SECONDS = 2.0
# Who asks a provider once more has so long; then somebody else does.
ASKING_SECONDS = 120.0


class Chosen(msgspec.Struct, frozen=True):
    """A message whose call may start. `pinned`: the channel of an earlier attempt of which nobody knows whether it arrived;
    None if there is none. `called_at`: when the attempt began that is asked about; None before a call."""

    id: UUID
    run: UUID
    rule: UUID
    rule_name: str
    kind: str
    topic: str
    purpose: str
    step: str
    template: str
    origin: UUID
    hops: int
    channel: str
    adapter: str
    address: str
    address_node: UUID
    subject: str
    body: str
    html: str
    urls: dict[str, str]
    cost: Decimal
    attempts: int
    repeats: int
    valid_until: datetime
    provider_id: str = ""
    pinned: str | None = None
    called_at: datetime | None = None


class Silent(msgspec.Struct, frozen=True):
    """A call of which nobody knows what came. `start_in`: seconds until its last moment to start; below 0, it has passed.
    `again`: it has ended as unknown and is asked about once more. `detail`: what is known of it."""

    call: Chosen
    start_in: float
    again: bool = False
    detail: str = "no answer was stored in its time"


COLUMNS = """m.id, m.run, m.rule, m.rule_name, m.kind, m.topic, m.purpose, m.step, m.template, m.origin, m.hops, m.channel,
    m.adapter, m.address, m.address_node, m.subject, m.body, m.html, m.urls, m.cost, m.attempts, m.repeats, m.valid_until,
    m.pinned"""


class Answered(msgspec.Struct, frozen=True):
    """What an attempt came to, and the message's next state. `due_at`: when it is decided anew, for *queued*. `settles`:
    seconds after the last moment to start when the provider is asked once more; 0: it is not."""

    message: UUID
    number: int
    outcome: str
    state: str
    detail: str = ""
    provider_id: str = ""
    reason_code: str | None = None
    reason: str | None = None
    due_at: datetime | None = None
    pinned: str | None = None
    repeat: bool = False
    charged: Decimal | None = None
    settles: float = 0.0


async def lock_chosen(tx: Tx, free: Mapping[str, int], now: datetime, doubtful_from: int) -> list[Chosen]:
    """Locks messages whose call may start, at most `free` of each adapter, passing by those somebody else holds; what
    people wait for goes first. Of a paused adapter none; of one with `doubtful_from` failures or more one, if none of it
    is being called."""
    rows = await tx.fetch(
        f"""
        SELECT {COLUMNS}
        FROM unnest($1::text[], $2::int[]) AS f(name, free)
        LEFT JOIN dispatch.pause p ON p.adapter = f.name
        CROSS JOIN LATERAL (
            SELECT * FROM dispatch.message
            WHERE state = 'claimed' AND chosen_at IS NOT NULL AND adapter = f.name AND lease_until > clock_timestamp()
            ORDER BY kind = 'marketing', chosen_at
            LIMIT CASE WHEN p.failures >= $4 THEN 1 ELSE f.free END FOR UPDATE SKIP LOCKED
        ) m
        WHERE (p.until IS NULL OR p.until <= $3) AND NOT (coalesce(p.failures, 0) >= $4 AND EXISTS (
            SELECT 1 FROM dispatch.message c WHERE c.state = 'calling' AND c.adapter = f.name))
        """,
        list(free),
        list(free.values()),
        now,
        doubtful_from,
    )
    return [Chosen(**dict(row)) for row in rows]


async def to_calling(tx: Tx, chosen: Sequence[Chosen], timeouts: Mapping[str, float], now: datetime) -> None:
    """The step to *calling*, with an attempt's row for each. `timeouts`: seconds an exchange may take, by adapter."""
    await tx.execute(
        """
        UPDATE dispatch.message m SET
            state = 'calling', attempts = m.attempts + 1, claim = NULL, lease_until = NULL, chosen_at = NULL,
            start_by = clock_timestamp() + make_interval(secs => $3),
            call_until = clock_timestamp() + make_interval(secs => $3 + $4 + c.timeout),
            updated_at = $5
        FROM unnest($1::uuid[], $2::float8[]) AS c(id, timeout)
        WHERE m.id = c.id
        """,
        [one.id for one in chosen],
        [timeouts[one.adapter] for one in chosen],
        START_SECONDS,
        MARGIN_SECONDS,
        now,
    )
    await tx.execute(
        """
        INSERT INTO dispatch.attempt (message, number, channel, adapter, address_node, at, cost)
        SELECT message, number, channel, adapter, node, $7, cost
        FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::uuid[], $6::numeric[])
             AS a(message, number, channel, adapter, node, cost)
        """,
        [one.id for one in chosen],
        [one.attempts + 1 for one in chosen],
        [one.channel for one in chosen],
        [one.adapter for one in chosen],
        [one.address_node for one in chosen],
        [one.cost for one in chosen],
        now,
    )


async def withhold(tx: Tx, withheld: Sequence[tuple[UUID, str, str]], now: datetime) -> None:
    """(message, reason code, reason) of those that must not be called after all."""
    await tx.execute(
        """
        UPDATE dispatch.message m SET state = 'withheld', reason_code = w.code, reason = w.reason, claim = NULL,
            lease_until = NULL, chosen_at = NULL, updated_at = $4
        FROM unnest($1::uuid[], $2::text[], $3::text[]) AS w(id, code, reason) WHERE m.id = w.id
        """,
        [message for message, _, _ in withheld],
        [code for _, code, _ in withheld],
        [reason for _, _, reason in withheld],
        now,
    )


async def lock_messages(tx: Tx, messages: Sequence[UUID]) -> None:
    """Locks the rows, in the order of their ids."""
    await tx.execute(
        "SELECT id FROM dispatch.message WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE", list(messages)
    )


async def store_answers(tx: Tx, answered: Sequence[Answered], now: datetime) -> list[Chosen]:
    """Writes what came of attempts; returns the messages that it changed. An answer that comes after the call was given
    up as unknown still counts, unless another attempt began meanwhile, or a report told how this one ended."""
    ordered = sorted(answered, key=lambda one: one.message)
    columns = _answer_columns(ordered)
    rows = await tx.fetch(
        f"""
        WITH answered AS (
            SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                                 $8::text[], $9::timestamptz[], $10::text[], $11::bool[], $12::numeric[], $14::float8[])
                AS a(message, number, outcome, state, detail, provider_id, code, reason, due_at, pinned, repeat, charged,
                     settles)
        ), ended AS (
            UPDATE dispatch.attempt t SET outcome = a.outcome, detail = a.detail, charged = a.charged,
                provider_id = coalesce(nullif(a.provider_id, ''), t.provider_id), ended_at = $13::timestamptz,
                -- start_by is there when the call ends, and gone when it is told of again: asked once more, and no more.
                ask_at = (SELECT m.start_by + make_interval(secs => a.settles) FROM dispatch.message m
                          WHERE m.id = a.message AND m.attempts = a.number AND a.settles > 0)
            FROM answered a
            WHERE t.message = a.message AND t.number = a.number AND (t.outcome IS NULL OR t.outcome = 'unknown')
        )
        UPDATE dispatch.message m SET
            state = a.state, reason_code = a.code, reason = a.reason, due_at = coalesce(a.due_at, m.due_at),
            pinned = a.pinned, repeats = m.repeats + a.repeat::int, start_by = NULL, call_until = NULL,
            updated_at = $13::timestamptz,
            sent_at = CASE WHEN a.state = 'sent' THEN $13::timestamptz ELSE m.sent_at END
        FROM answered a
        WHERE m.id = a.message AND m.attempts = a.number
          AND (m.state = 'calling' OR (m.state = 'unknown' OR m.state = 'queued' AND m.pinned IS NOT NULL)
               AND a.outcome NOT IN ('unknown', 'late'))
          AND NOT EXISTS (SELECT FROM dispatch.attempt t
                          WHERE t.message = a.message AND t.number = a.number AND t.outcome <> 'unknown')
        RETURNING {COLUMNS}
        """,
        *columns,
        now,
        [one.settles for one in ordered],
    )
    return [Chosen(**dict(row)) for row in rows]


def _answer_columns(answered: Sequence[Answered]) -> list[list[Any]]:
    names = (
        "message", "number", "outcome", "state", "detail", "provider_id", "reason_code", "reason", "due_at", "pinned",
        "repeat", "charged",
    )  # fmt: skip
    return [[getattr(one, name) for one in answered] for name in names]


async def uncount(tx: Tx, messages: Sequence[Chosen]) -> None:
    """These did not reach anybody: they no longer count against caps. One of which an earlier attempt may have arrived
    goes on counting."""
    await tx.execute(
        "DELETE FROM dispatch.contact c USING unnest($1::uuid[], $2::uuid[]) AS u(origin, message) "
        "WHERE c.origin = u.origin AND c.message = u.message",
        [one.origin for one in messages if one.pinned is None],
        [one.id for one in messages if one.pinned is None],
    )


async def silent_calls(tx: Tx, limit: int, settling: Collection[str]) -> list[Silent]:
    """Calls that did not tell what came of them in their time: their process has died, or could not write. Those of
    `settling` adapters are being asked about already. With what the provider called earlier attempts."""
    rows = await tx.fetch(
        f"""
        SELECT {COLUMNS}, coalesce((
            SELECT a.provider_id FROM dispatch.attempt a
            WHERE a.message = m.id AND a.adapter = m.adapter AND a.provider_id <> '' ORDER BY a.number DESC LIMIT 1
        ), '') AS provider_id, (
            SELECT a.at FROM dispatch.attempt a WHERE a.message = m.id AND a.number = m.attempts
        ) AS called_at, extract(epoch FROM m.start_by - clock_timestamp())::float8 AS start_in
        FROM dispatch.message m
        WHERE state = 'calling' AND call_until < clock_timestamp() AND adapter <> ALL($2::text[])
        ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
        """,
        limit,
        list(settling),
    )
    return [Silent(_chosen(row), row["start_in"]) for row in rows]


async def doubtful_calls(tx: Tx, limit: int, settling: Collection[str], settles: Mapping[str, float]) -> list[Silent]:
    """Calls that ended as unknown before their provider could be believed, now that it can; none of `settling` adapters.
    They are the caller's for ASKING_SECONDS. `settles`: by adapter, see `Adapter`, in seconds."""
    rows = await tx.fetch(
        f"""
        WITH due AS (
            SELECT message, number FROM dispatch.attempt
            WHERE ask_at <= clock_timestamp() AND adapter <> ALL($2::text[])
            ORDER BY ask_at LIMIT $1 FOR UPDATE SKIP LOCKED
        )
        UPDATE dispatch.attempt a SET ask_at = CASE
            WHEN m.state = 'unknown' AND m.attempts = a.number AND m.address IS NOT NULL
            THEN clock_timestamp() + make_interval(secs => $3) END
        FROM due d JOIN dispatch.message m ON m.id = d.message WHERE a.message = d.message AND a.number = d.number
        RETURNING {COLUMNS}, coalesce(a.provider_id, '') AS provider_id, a.at AS called_at, a.detail, a.ask_at
        """,
        limit,
        list(settling),
        ASKING_SECONDS,
    )
    return [
        Silent(_chosen(row), -settles.get(row["adapter"], 0.0), again=True, detail=row["detail"] or "")
        for row in rows
        if row["ask_at"] is not None
    ]


def _chosen(row: Mapping[str, Any]) -> Chosen:
    return Chosen(**{name: row[name] for name in Chosen.__struct_fields__})


async def open_calls(tx: Tx, node: UUID, channel: str | None = None) -> tuple[list[UUID], float]:
    """The messages to this address that are being called now, and how many seconds their calls may take at most."""
    rows = await tx.fetch(
        """
        SELECT id, extract(epoch FROM call_until - clock_timestamp())::float8 AS left FROM dispatch.message
        WHERE address_node = $1 AND state = 'calling' AND ($2::text IS NULL OR channel = $2)
        """,
        node,
        channel,
    )
    return [row["id"] for row in rows], max((row["left"] for row in rows), default=0.0)


async def any_calling(tx: Tx, messages: Sequence[UUID]) -> bool:
    """Whether one of these is still being called."""
    return await tx.fetchval(
        "SELECT EXISTS (SELECT 1 FROM dispatch.message WHERE id = ANY($1::uuid[]) AND state = 'calling')",
        list(messages),
    )
