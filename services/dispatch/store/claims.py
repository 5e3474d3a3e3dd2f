"""Claims: rows that are due, the locks they are handled under, and what was decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from services.dispatch.inputs import Decision, Inputs
from services.dispatch.rendered import Rendered
from shared.db import Tx
from shared.events import Intended
from shared.ids import lock_key

# A take or a choice older than this is taken again (by the database's clock).
LEASE_SECONDS = 5.0


class Due(msgspec.Struct, frozen=True):
    """A message to be decided. `pinned`: the only channel it may take, because of an attempt over `doubted` of which nobody
    knows whether it arrived; `moved`: that adapter has been told other settings since. `decisions`, `attempts`: how many
    there were; `jams`: how often in a row the adapter that was chosen had no room; `abandoned`: an earlier claim was not
    finished in its time."""

    id: UUID
    intent: Intended
    decisions: int
    attempts: int
    pinned: str | None
    jams: int = 0
    abandoned: bool = False
    doubted: str | None = None
    moved: bool = False


class Stored(msgspec.Struct, frozen=True):
    """A decision to be stored with everything that belongs to it. `rendered`: of the channel that was chosen."""

    due: Due
    inputs: Inputs
    decision: Decision
    adapter: str | None = None
    address: str | None = None
    units: int = 1
    rendered: Rendered | None = None
    network: str | None = None
    source: UUID | None = None


async def due_messages(tx: Tx, kind: str, now: datetime, limit: int) -> list[Due]:
    """Locks messages that are due, or whose claim is over, passing by those that somebody else holds."""
    rows = await tx.fetch(
        """
        WITH queued AS MATERIALIZED (
            SELECT id, intent, decisions, attempts, pinned, jams FROM dispatch.message
            WHERE state = 'queued' AND kind = $1 AND due_at <= $2 ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED
        ), abandoned AS MATERIALIZED (
            SELECT id, intent, decisions, attempts, pinned, jams FROM dispatch.message
            WHERE state = 'claimed' AND kind = $1 AND lease_until < clock_timestamp() ORDER BY lease_until
            LIMIT $3 FOR UPDATE SKIP LOCKED
        )
        SELECT m.*, t.adapter AS doubted, coalesce(a.updated_at > t.at, false) AS moved
        FROM (SELECT *, false AS abandoned FROM queued UNION ALL SELECT *, true FROM abandoned) m
        LEFT JOIN LATERAL (
            SELECT adapter, at FROM dispatch.attempt
            WHERE m.pinned IS NOT NULL AND message = m.id AND outcome = 'unknown' ORDER BY number DESC LIMIT 1
        ) t ON true
        LEFT JOIN dispatch.adapter a ON a.name = t.adapter
        """,
        kind,
        now,
        limit,
    )
    return [Due(**{**dict(row), "intent": msgspec.convert(row["intent"], Intended)}) for row in rows]


async def lock(tx: Tx, subjects: Iterable[tuple[str, UUID | str]]) -> None:
    """Takes the advisory transaction locks of all (purpose, subject), in one fixed order: that of their keys."""
    keys = sorted({lock_key(purpose, subject) for purpose, subject in subjects})
    if keys:
        await tx.execute("SELECT pg_advisory_xact_lock(key) FROM unnest($1::bigint[]) AS k(key)", keys)


async def claim(tx: Tx, claim_id: UUID, taken: Sequence[Due]) -> None:
    """The messages are ours for LEASE_SECONDS."""
    await tx.execute(
        """
        UPDATE dispatch.message SET state = 'claimed', claim = $2, chosen_at = NULL,
            lease_until = clock_timestamp() + make_interval(secs => $3)
        WHERE id = ANY($1::uuid[])
        """,
        [due.id for due in taken],
        claim_id,
        LEASE_SECONDS,
    )


async def uncount_abandoned(tx: Tx, taken: Sequence[Due]) -> None:
    """What a choice counted against caps that was never called is given back; not of a message whose earlier attempt may
    have arrived."""
    abandoned = [due for due in taken if due.abandoned and due.pinned is None]
    if not abandoned:
        return
    await tx.execute(
        "DELETE FROM dispatch.contact c USING unnest($1::uuid[], $2::uuid[]) AS u(origin, message) "
        "WHERE c.origin = u.origin AND c.message = u.message",
        [due.intent.origin for due in abandoned],
        [due.id for due in abandoned],
    )


async def still_ours(tx: Tx, claim_id: UUID, messages: Sequence[UUID]) -> set[UUID]:
    """Locks those of the messages that are still in this claim: not cancelled, not taken again by somebody else."""
    rows = await tx.fetch(
        "SELECT id FROM dispatch.message WHERE id = ANY($1::uuid[]) AND state = 'claimed' AND claim = $2 "
        "ORDER BY id FOR UPDATE SKIP LOCKED",
        list(messages),
        claim_id,
    )
    return {row["id"] for row in rows}


async def give_back(tx: Tx, messages: Sequence[UUID]) -> None:
    """To the queue, to be decided anew at once."""
    await tx.execute(
        "UPDATE dispatch.message SET state = 'queued', claim = NULL, lease_until = NULL, chosen_at = NULL "
        "WHERE id = ANY($1::uuid[]) AND state = 'claimed'",
        list(messages),
    )


async def put_off(tx: Tx, until: Mapping[UUID, datetime]) -> None:
    """To the queue, to be decided anew at these moments: their adapter has no room for them before."""
    ordered = sorted(until.items())
    await tx.execute(
        """
        UPDATE dispatch.message m SET state = 'queued', claim = NULL, lease_until = NULL, chosen_at = NULL,
            due_at = p.due_at, jams = least(m.jams + 1, 100)
        FROM unnest($1::uuid[], $2::timestamptz[]) AS p(id, due_at) WHERE m.id = p.id AND m.state = 'claimed'
        """,
        [message for message, _ in ordered],
        [at for _, at in ordered],
    )


async def waiting_for_call(tx: Tx) -> dict[str, int]:
    """How many messages are chosen and not called yet, by adapter."""
    rows = await tx.fetch(
        "SELECT adapter, count(*) FROM dispatch.message WHERE state = 'claimed' AND chosen_at IS NOT NULL GROUP BY adapter"
    )
    return {row["adapter"]: row["count"] for row in rows}


async def store_decisions(tx: Tx, stored: Sequence[Stored], now: datetime) -> None:
    """Decisions with their inputs and alternatives, the messages' new states, what counts against caps, the links."""
    if not stored:
        return
    await _write_decisions(tx, stored, now)
    await _write_alternatives(tx, stored)
    doubtful = [s for s in stored if _may_have_arrived(s)]
    await _write_messages(tx, [s for s in stored if not _may_have_arrived(s)], now)
    if doubtful:
        await _write_doubtful(tx, doubtful, now)
    sending = [s for s in stored if s.decision.act == "send"]
    if sending:
        await _write_contacts(tx, sending, now)
        await _write_links(tx, sending)


async def _write_decisions(tx: Tx, stored: Sequence[Stored], now: datetime) -> None:
    await tx.execute(
        """
        INSERT INTO dispatch.decision (
            message, number, at, inputs, act, channel, address_node, reason_code, reason, until, cost, probability, explored
        )
        SELECT message, number, $13, inputs, act, channel, address, code, reason, until, cost, probability, explored
        FROM unnest($1::uuid[], $2::int[], $3::jsonb[], $4::text[], $5::text[], $6::uuid[], $7::text[], $8::text[],
                    $9::timestamptz[], $10::numeric[], $11::numeric[], $12::bool[])
             AS d(message, number, inputs, act, channel, address, code, reason, until, cost, probability, explored)
        """,
        [s.due.id for s in stored],
        [s.due.decisions + 1 for s in stored],
        [msgspec.to_builtins(s.inputs) for s in stored],
        [s.decision.act for s in stored],
        [s.decision.channel for s in stored],
        [s.decision.address for s in stored],
        [s.decision.reason.code if s.decision.reason else None for s in stored],
        [s.decision.reason.text if s.decision.reason else None for s in stored],
        [s.decision.until for s in stored],
        [s.decision.cost for s in stored],
        [s.decision.probability for s in stored],
        [s.decision.explored for s in stored],
        now,
    )


async def _write_alternatives(tx: Tx, stored: Sequence[Stored]) -> None:
    rows = [(s.due.id, s.due.decisions + 1, row) for s in stored for row in s.decision.alternatives]
    if not rows:
        return
    columns: list[list[Any]] = [[message for message, _, _ in rows], [number for _, number, _ in rows]]
    names = ("channel", "reach", "act", "base", "effect", "value", "cost", "units", "erosion", "net")
    columns += [[getattr(row, name) for _, _, row in rows] for name in names]
    columns.append([row.reason.code if row.reason else None for _, _, row in rows])
    columns.append([row.reason.text if row.reason else None for _, _, row in rows])
    await tx.execute(
        """
        INSERT INTO dispatch.alternative (
            message, number, channel, reach, act, base, effect, value, cost, units, erosion, net, reason_code, reason
        )
        SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::numeric[], $5::numeric[], $6::numeric[],
                             $7::numeric[], $8::numeric[], $9::numeric[], $10::int[], $11::numeric[], $12::numeric[],
                             $13::text[], $14::text[])
        """,
        *columns,
    )


_STATE_OF = {"send": "claimed", "postpone": "queued", "withhold": "withheld"}


def _may_have_arrived(stored: Stored) -> bool:
    """Whether nothing is sent now, and an earlier attempt may have arrived. Nothing is kept of who is gone."""
    reason = stored.decision.reason
    gone = reason is not None and reason.code == "gone"
    return stored.due.pinned is not None and stored.decision.act != "send" and not gone


async def _write_doubtful(tx: Tx, stored: Sequence[Stored], now: datetime) -> None:
    """They are put off, or end as unknown: what may have arrived was not withheld. What was sent stays on the row, for
    reports that come later."""
    await tx.execute(
        """
        UPDATE dispatch.message m SET
            state = CASE WHEN d.act = 'postpone' THEN 'queued' ELSE 'unknown' END,
            reason_code = CASE WHEN d.act = 'postpone' THEN d.code ELSE 'unknown' END,
            reason = CASE WHEN d.act = 'postpone' THEN d.reason
                ELSE 'what came of an earlier attempt is not known; it is not repeated: ' || coalesce(d.reason, '') END,
            due_at = coalesce(d.until, m.due_at), decisions = m.decisions + 1, jams = 0, updated_at = $6::timestamptz,
            chosen_at = NULL, claim = NULL, lease_until = NULL
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[]) AS d(id, act, code, reason, until)
        WHERE m.id = d.id
        """,
        [s.due.id for s in stored],
        [s.decision.act for s in stored],
        [s.decision.reason.code if s.decision.reason else None for s in stored],
        [s.decision.reason.text if s.decision.reason else None for s in stored],
        [s.decision.until for s in stored],
        now,
    )


async def _write_messages(tx: Tx, stored: Sequence[Stored], now: datetime) -> None:
    await tx.execute(
        """
        UPDATE dispatch.message m SET
            state = d.state, reason_code = d.code, reason = d.reason, due_at = coalesce(d.until, m.due_at),
            purpose = d.purpose, template_version = d.template_version, channel = d.channel, adapter = d.adapter,
            address = d.address, address_node = d.node, subject = d.subject, body = d.body, html = d.html, urls = d.urls,
            cost = d.cost, units = d.units, topic = d.topic,
            intent = CASE WHEN d.code = 'gone' THEN m.intent - 'addressed' - 'event' ELSE m.intent END,
            decisions = m.decisions + 1, jams = 0, updated_at = $19::timestamptz,
            chosen_at = CASE WHEN d.state = 'claimed' THEN $19::timestamptz END,
            claim = CASE WHEN d.state = 'claimed' THEN m.claim END,
            lease_until = CASE WHEN d.state = 'claimed' THEN clock_timestamp() + make_interval(secs => $20) END
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::int[], $8::text[],
                    $9::text[], $10::text[], $11::uuid[], $12::text[], $13::text[], $14::text[], $15::jsonb[],
                    $16::numeric[], $17::int[], $18::text[])
             AS d(id, state, code, reason, until, purpose, template_version, channel, adapter, address, node, subject,
                  body, html, urls, cost, units, topic)
        WHERE m.id = d.id
        """,
        [s.due.id for s in stored],
        [_STATE_OF[s.decision.act] for s in stored],
        [s.decision.reason.code if s.decision.reason else None for s in stored],
        [s.decision.reason.text if s.decision.reason else None for s in stored],
        [s.decision.until for s in stored],
        [s.inputs.purpose for s in stored],
        [s.inputs.template_version for s in stored],
        [s.decision.channel for s in stored],
        [s.adapter for s in stored],
        [s.address for s in stored],
        [s.decision.address for s in stored],
        [s.rendered.subject if s.rendered else None for s in stored],
        [s.rendered.text if s.rendered else None for s in stored],
        [s.rendered.html if s.rendered else None for s in stored],
        [s.rendered.urls if s.rendered else None for s in stored],
        [s.decision.cost if s.decision.channel else None for s in stored],
        [s.units if s.decision.channel else None for s in stored],
        [s.inputs.topic for s in stored],
        now,
        LEASE_SECONDS,
    )


async def _write_contacts(tx: Tx, sending: Sequence[Stored], now: datetime) -> None:
    ordered = sorted(sending, key=lambda s: (s.due.intent.origin, s.due.id))
    await tx.execute(
        """
        INSERT INTO dispatch.contact (origin, message, at, channel, purpose, address_node, network, source)
        SELECT origin, message, $8, channel, purpose, node, network, source
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::text[], $7::uuid[])
             AS c(origin, message, channel, purpose, node, network, source)
        ON CONFLICT (origin, message) DO UPDATE SET
            at = excluded.at, channel = excluded.channel, purpose = excluded.purpose,
            address_node = excluded.address_node, network = excluded.network, source = excluded.source
        """,
        [s.due.intent.origin for s in ordered],
        [s.due.id for s in ordered],
        [s.decision.channel for s in ordered],
        [s.inputs.purpose for s in ordered],
        [s.decision.address for s in ordered],
        [s.network for s in ordered],
        [s.source for s in ordered],
        now,
    )


async def _write_links(tx: Tx, sending: Sequence[Stored]) -> None:
    links = sorted((s.due.id, link.number, link.url) for s in sending if s.rendered for link in s.rendered.links)
    if not links:
        return
    await tx.execute(
        """
        INSERT INTO dispatch.link (message, number, url) SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::text[])
        ON CONFLICT (message, number) DO UPDATE SET url = excluded.url
        """,
        [message for message, _, _ in links],
        [number for _, number, _ in links],
        [url for _, _, url in links],
    )


async def next_due(tx: Tx, kind: str) -> datetime | None:
    """When the next message of the queue is due; None if there is none."""
    return await tx.fetchval("SELECT min(due_at) FROM dispatch.message WHERE state = 'queued' AND kind = $1", kind)


async def busy(tx: Tx, now: datetime) -> bool:
    """Whether any message is due, claimed or being called."""
    return await tx.fetchval(
        """
        SELECT EXISTS (SELECT 1 FROM dispatch.message WHERE state = 'queued' AND kind = 'transactional' AND due_at <= $1)
            OR EXISTS (SELECT 1 FROM dispatch.message WHERE state = 'queued' AND kind = 'marketing' AND due_at <= $1)
            OR EXISTS (SELECT 1 FROM dispatch.message WHERE state IN ('claimed', 'calling'))
        """,
        now,
    )
