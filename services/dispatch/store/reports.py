"""What providers told of messages later: kept once, matched with what we sent, written down. One statement each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from services.dispatch.channels.base import Report
from services.dispatch.store.calls import COLUMNS, Chosen
from shared.db import Tx

_RANK = {"failed": 1, "delivered": 2, "bounced": 3}


class Row(msgspec.Struct, frozen=True):
    """A report as it is kept. `node`: of the address that it names."""

    adapter: str
    report: Report
    node: UUID | None = None


class Target(msgspec.Struct):
    """A message that a report speaks of, with the attempt: what is changed here is written by `write_targets`."""

    message: Chosen
    number: int
    attempt_at: datetime
    outcome: str | None
    state: str
    attempts: int
    delivery: str | None
    forgotten: bool
    reason_code: str | None = None
    reason: str | None = None
    delivered_at: datetime | None = None
    charged: Decimal | None = None
    recount: bool = False
    uncount: bool = False
    changed: bool = False

    def delivers(self, what: str, at: datetime) -> bool:
        """Takes down what became of the delivery; False if something that weighs more was told before."""
        if _RANK[what] <= _RANK.get(self.delivery or "", 0):
            return False
        self.delivery, self.changed = what, True
        if what == "delivered":
            self.delivered_at = at
        return True

    def was_told(self, what: str) -> bool:
        """Whether our own exchange ended with this or with what weighs more, as was told when it was written down."""
        return self.state == "failed" and _RANK[what] <= _RANK.get(self.outcome or "", 0)


async def add(tx: Tx, rows: Sequence[Row], now: datetime) -> set[tuple[str, str]]:
    """Keeps reports that are not there yet, as *waiting*; returns which those are, as (adapter, id)."""
    ordered = sorted(rows, key=lambda row: (row.adapter, row.report.id))
    found = await tx.fetch(
        """
        INSERT INTO dispatch.report (adapter, id, what, message, provider_id, address_node, at, received_at, detail, charged,
                                     properties, state)
        SELECT adapter, id, what, message, provider_id, node, at, $11, detail, charged, properties, 'waiting'
        FROM unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::uuid[], $7::timestamptz[], $8::text[],
                    $9::numeric[], $10::jsonb[])
             AS r(adapter, id, what, message, provider_id, node, at, detail, charged, properties)
        ON CONFLICT (adapter, id) DO NOTHING RETURNING adapter, id
        """,
        [row.adapter for row in ordered],
        [row.report.id for row in ordered],
        [row.report.what for row in ordered],
        [row.report.message for row in ordered],
        [row.report.provider_id for row in ordered],
        [row.node for row in ordered],
        [row.report.at for row in ordered],
        [row.report.detail for row in ordered],
        [row.report.charged for row in ordered],
        [row.report.properties for row in ordered],
        now,
    )
    return {(row["adapter"], row["id"]) for row in found}


async def waiting(tx: Tx, messages: Sequence[UUID], provider_ids: Sequence[tuple[str, str]]) -> list[Row]:
    """Reports that came before our own answers were stored: of these messages, or of these (adapter, provider's id)."""
    rows = await tx.fetch(
        """
        SELECT adapter, id, what, message, provider_id, address_node, at, detail, charged, properties FROM dispatch.report
        WHERE state = 'waiting' AND message = ANY($1::uuid[])
        UNION
        SELECT r.adapter, id, what, message, r.provider_id, address_node, at, detail, charged, properties
        FROM unnest($2::text[], $3::text[]) AS p(adapter, provider_id)
        JOIN dispatch.report r ON r.adapter = p.adapter AND r.provider_id = p.provider_id AND r.state = 'waiting'
        ORDER BY adapter, id
        """,
        list(messages),
        [adapter for adapter, _ in provider_ids],
        [provider_id for _, provider_id in provider_ids],
    )
    names = ("id", "what", "message", "provider_id", "at", "detail", "charged", "properties")
    return [Row(row["adapter"], Report(**{n: row[n] for n in names}), row["address_node"]) for row in rows]


async def find(tx: Tx, rows: Sequence[Row]) -> dict[int, Target]:
    """The message that each report speaks of, locked; by the report's place in `rows`. Several reports of one attempt share
    a target."""
    found = await tx.fetch(
        f"""
        SELECT r.n, a.number, a.at AS attempt_at, a.outcome, m.state, m.attempts AS made, m.delivery, m.delivered_at,
               m.reason_code, m.reason, {COLUMNS}
        FROM unnest($1::int[], $2::text[], $3::uuid[], $4::text[], $5::uuid[]) AS r(n, adapter, message, provider_id, node)
        CROSS JOIN LATERAL (
            (SELECT t.message, t.number, t.at, t.outcome FROM dispatch.attempt t
             WHERE r.message IS NOT NULL AND t.message = r.message AND t.adapter = r.adapter
             ORDER BY t.number DESC LIMIT 1)
            UNION ALL
            (SELECT t.message, t.number, t.at, t.outcome FROM dispatch.attempt t
             WHERE r.message IS NULL AND r.provider_id <> '' AND t.adapter = r.adapter AND t.provider_id = r.provider_id
             ORDER BY t.at DESC LIMIT 1)
            UNION ALL
            (SELECT t.message, t.number, t.at, t.outcome FROM dispatch.contact c
             JOIN dispatch.attempt t ON t.message = c.message AND t.adapter = r.adapter
             WHERE r.message IS NULL AND r.provider_id = '' AND r.node IS NOT NULL AND c.address_node = r.node
             ORDER BY c.at DESC, t.number DESC LIMIT 1)
        ) a
        JOIN dispatch.message m ON m.id = a.message
        ORDER BY m.id, r.n FOR UPDATE OF m
        """,
        list(range(len(rows))),
        [row.adapter for row in rows],
        [row.report.message for row in rows],
        [row.report.provider_id for row in rows],
        [row.node for row in rows],
    )
    same = ("number", "attempt_at", "outcome", "state", "delivery", "delivered_at", "reason_code", "reason")
    targets: dict[tuple[UUID, int], Target] = {}
    answer: dict[int, Target] = {}
    for row in found:
        key = (row["id"], row["number"])
        if key not in targets:
            message = Chosen(**{name: row[name] for name in Chosen.__struct_fields__ if name in row.keys()})  # noqa: SIM118
            given = {name: row[name] for name in same}
            targets[key] = Target(message=message, attempts=row["made"], forgotten=row["address"] is None, **given)
        answer[row["n"]] = targets[key]
    return answer


async def apply_to_tests(tx: Tx, rows: Sequence[Row]) -> dict[int, UUID]:
    """Reports about test messages: written down at once; by place in `rows`, the test's id."""
    found = await tx.fetch(
        """
        WITH told AS (
            SELECT r.n, t.id, r.what, r.charged
            FROM unnest($1::int[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::numeric[])
                 AS r(n, adapter, message, provider_id, what, charged)
            JOIN dispatch.test t ON t.adapter = r.adapter
                AND (t.id = r.message OR r.message IS NULL AND r.provider_id <> '' AND t.provider_id = r.provider_id)
        ), last AS (
            SELECT DISTINCT ON (id) id, what, charged FROM told ORDER BY id, n DESC
        ), written AS (
            UPDATE dispatch.test t SET delivery = l.what, charged = coalesce(l.charged, t.charged) FROM last l WHERE t.id = l.id
        )
        SELECT n, id FROM told
        """,
        list(range(len(rows))),
        [row.adapter for row in rows],
        [row.report.message for row in rows],
        [row.report.provider_id for row in rows],
        [row.report.what for row in rows],
        [row.report.charged for row in rows],
    )
    return {row["n"]: row["id"] for row in found}


async def write_targets(tx: Tx, targets: Sequence[Target], now: datetime) -> None:
    """The attempts and messages as they are by now."""
    ordered = sorted(targets, key=lambda target: (target.message.id, target.number))
    await tx.execute(
        """
        WITH told AS (
            SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::numeric[], $5::text[], $6::text[], $7::text[],
                                 $8::text[], $9::timestamptz[], $10::timestamptz[])
                AS t(message, number, outcome, charged, state, code, reason, delivery, delivered_at, attempt_at)
        ), attempts AS (
            UPDATE dispatch.attempt a SET outcome = t.outcome, charged = coalesce(t.charged, a.charged)
            FROM told t WHERE a.message = t.message AND a.number = t.number
        )
        UPDATE dispatch.message m SET state = t.state, reason_code = t.code, reason = t.reason, delivery = t.delivery,
            delivered_at = t.delivered_at, updated_at = $11,
            sent_at = CASE WHEN t.state = 'sent' THEN coalesce(m.sent_at, t.attempt_at) ELSE m.sent_at END,
            pinned = CASE WHEN t.state = 'sent' THEN NULL ELSE m.pinned END,
            claim = CASE WHEN t.state = 'claimed' THEN m.claim END,
            lease_until = CASE WHEN t.state = 'claimed' THEN m.lease_until END,
            chosen_at = CASE WHEN t.state = 'claimed' THEN m.chosen_at END
        FROM (SELECT DISTINCT ON (message) * FROM told ORDER BY message, number DESC) t WHERE m.id = t.message
        """,
        [target.message.id for target in ordered],
        [target.number for target in ordered],
        [target.outcome for target in ordered],
        [target.charged for target in ordered],
        [target.state for target in ordered],
        [target.reason_code for target in ordered],
        [target.reason for target in ordered],
        [target.delivery for target in ordered],
        [target.delivered_at for target in ordered],
        [target.attempt_at for target in ordered],
        now,
    )


async def recount(tx: Tx, targets: Sequence[Target]) -> None:
    """These reached their people after all: they count against caps."""
    ordered = sorted(targets, key=lambda target: (target.message.origin, target.message.id))
    await tx.execute(
        """
        INSERT INTO dispatch.contact (origin, message, at, channel, purpose, address_node)
        SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::uuid[])
        ON CONFLICT (origin, message) DO NOTHING
        """,
        [target.message.origin for target in ordered],
        [target.message.id for target in ordered],
        [target.attempt_at for target in ordered],
        [target.message.channel for target in ordered],
        [target.message.purpose for target in ordered],
        [target.message.address_node for target in ordered],
    )


async def add_hits(tx: Tx, hits: Sequence[tuple[UUID, str]], now: datetime) -> set[tuple[UUID, str]]:
    """(message, open | click) that providers saw; returns those that are the first but for bots'."""
    ordered = sorted(set(hits))
    rows = await tx.fetch(
        """
        INSERT INTO dispatch.hit AS h (message, kind, number, at, bot)
        SELECT message, kind, 0, $3, false FROM unnest($1::uuid[], $2::text[]) AS s(message, kind)
        ON CONFLICT (message, kind, number) DO UPDATE SET at = excluded.at, bot = false WHERE h.bot
        RETURNING h.message, h.kind
        """,
        [message for message, _ in ordered],
        [kind for _, kind in ordered],
        now,
    )
    return {(row["message"], row["kind"]) for row in rows}


async def mark(tx: Tx, states: Mapping[tuple[str, str], tuple[str, UUID | None]]) -> None:
    """(adapter, id) → (its state now, the message it speaks of if that is known)."""
    ordered = sorted(states.items())
    await tx.execute(
        """
        UPDATE dispatch.report r SET state = s.state, message = coalesce(r.message, s.message)
        FROM unnest($1::text[], $2::text[], $3::text[], $4::uuid[]) AS s(adapter, id, state, message)
        WHERE r.adapter = s.adapter AND r.id = s.id
        """,
        [adapter for (adapter, _), _ in ordered],
        [identity for (_, identity), _ in ordered],
        [state for _, (state, _) in ordered],
        [message for _, (_, message) in ordered],
    )


async def forget_reports(tx: Tx, waiting_before: datetime, all_before: datetime, limit: int) -> int:
    """Reports that nobody will repeat any more, and those that waited in vain (of what others sent through the same
    account); returns how many."""
    rows = await tx.fetch(
        """
        DELETE FROM dispatch.report r USING (
            SELECT adapter, id FROM dispatch.report
            WHERE received_at < $2 OR state <> 'applied' AND received_at < $1
            ORDER BY received_at LIMIT $3 FOR UPDATE SKIP LOCKED
        ) old WHERE r.adapter = old.adapter AND r.id = old.id RETURNING r.id
        """,
        waiting_before,
        all_before,
        limit,
    )
    return len(rows)


class Refusal(msgspec.Struct, frozen=True):
    """An address that gets nothing more, and its row in the consent ledger if there is one. `state`: withdrawn |
    complained; `why` None: it is not suppressed."""

    node: UUID
    channel: str
    kind: str
    value: str
    by: str
    why: str | None = None
    consent: str = ""
    state: str | None = None
    event: UUID | None = None
    origin: UUID | None = None
    message: UUID | None = None
    proof: dict[str, Any] = {}


async def write_refusals(tx: Tx, refusals: Sequence[Refusal], ids: Sequence[UUID], now: datetime) -> None:
    """Suppressions (under `ids`) and consent rows; the addresses must be locked."""
    ordered = sorted(zip(refusals, ids, strict=True), key=lambda pair: (pair[0].node, pair[0].channel))
    suppressed = [(one, identity) for one, identity in ordered if one.why is not None]
    if suppressed:
        await tx.execute(
            """
            INSERT INTO dispatch.suppression (node, channel, id, kind, value, why, by, at)
            SELECT node, channel, id, kind, value, why, by, $8
            FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[])
                 AS s(node, channel, id, kind, value, why, by)
            ON CONFLICT (node, channel) DO NOTHING
            """,
            [one.node for one, _ in suppressed],
            [one.channel for one, _ in suppressed],
            [identity for _, identity in suppressed],
            [one.kind for one, _ in suppressed],
            [one.value for one, _ in suppressed],
            [one.why for one, _ in suppressed],
            [one.by for one, _ in suppressed],
            now,
        )
    told = [one for one, _ in ordered if one.state is not None]
    if told:
        await tx.execute(
            """
            INSERT INTO dispatch.consent (node, channel, topic, id, origin, state, at, message, proof)
            SELECT node, channel, '*', id, origin, state, $8, message, proof
            FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::uuid[], $5::text[], $6::uuid[], $7::jsonb[])
                 AS c(node, channel, id, origin, state, message, proof)
            ON CONFLICT DO NOTHING
            """,
            [one.node for one in told],
            [one.consent for one in told],
            [one.event for one in told],
            [one.origin for one in told],
            [one.state for one in told],
            [one.message for one in told],
            [one.proof for one in told],
            now,
        )
