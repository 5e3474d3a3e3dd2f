"""Reading decisions and runs: for people who ask why, and for deriving them again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from services.triggers.run import Known
from services.triggers.store.people import as_run
from shared.db import Tx
from shared.facts.model import EventFact
from shared.identifiers import STRENGTH

TRUSTS = ("public", "signed", "secret", "internal")


async def nodes_of_profile(tx: Tx, profile: UUID) -> list[UUID]:
    """The present nodes of a profile."""
    found = await tx.fetchval("SELECT nodes FROM cdp.profile WHERE id = $1", profile)
    return list(found or [])


async def list_decisions(
    tx: Tx,
    *,
    nodes: Sequence[UUID] | None,
    rule: UUID | None,
    run: UUID | None,
    before: tuple[datetime, int] | None,
    limit: int,
) -> list[Any]:
    """Decisions, newest first, of people (by their nodes), a rule or a run."""
    return await tx.fetch(
        """
        SELECT d.*, r.name AS rule_name FROM triggers.decision d JOIN triggers.rule r ON r.id = d.rule
        WHERE ($1::uuid[] IS NULL OR d.node = ANY($1)) AND ($2::uuid IS NULL OR d.rule = $2) AND ($3::uuid IS NULL OR d.run = $3)
            AND ($4::timestamptz IS NULL OR (d.at, d.seq) < ($4, $5::bigint))
        ORDER BY d.at DESC, d.seq DESC LIMIT $6
        """,
        nodes,
        rule,
        run,
        before[0] if before else None,
        before[1] if before else None,
        limit,
    )


async def list_runs(
    tx: Tx, *, nodes: Sequence[UUID] | None, rule: UUID | None, before: tuple[datetime, UUID] | None, limit: int
) -> list[Any]:
    """Runs, the last entered first."""
    return await tx.fetch(
        """
        SELECT n.*, r.name AS rule_name FROM triggers.run n JOIN triggers.rule r ON r.id = n.rule
        WHERE ($1::uuid[] IS NULL OR n.node = ANY($1)) AND ($2::uuid IS NULL OR n.rule = $2)
            AND ($3::timestamptz IS NULL OR (n.entered_at, n.id) < ($3, $4::uuid))
        ORDER BY n.entered_at DESC, n.id DESC LIMIT $5
        """,
        nodes,
        rule,
        before[0] if before else None,
        before[1] if before else None,
        limit,
    )


async def find_run(tx: Tx, id: UUID) -> Any | None:
    return await tx.fetchrow(
        "SELECT n.*, r.name AS rule_name FROM triggers.run n JOIN triggers.rule r ON r.id = n.rule WHERE n.id = $1", id
    )


# ── deriving again ────────────────────────────────────────────────────────────────────────────────────────────────────
async def decisions_between(
    tx: Tx, since: datetime, until: datetime, after: tuple[datetime, int], limit: int
) -> list[Any]:
    """Decisions with T in [since, until), in order of (T, seq), behind `after`."""
    return await tx.fetch(
        """
        SELECT * FROM triggers.decision
        WHERE at >= $1 AND at < $2 AND (at, seq) > ($3, $4::bigint) ORDER BY at, seq LIMIT $5
        """,
        since,
        until,
        *after,
        limit,
    )


async def incomplete_runs(tx: Tx, since: datetime, until: datetime) -> list[Any]:
    """Runs entered in [since, until) that lack one of their decisions: each has as many as its version says."""
    return await tx.fetch(
        """
        SELECT r.id, r.rule, r.entered_at, r.number, count(d.seq) AS count
        FROM triggers.run r LEFT JOIN triggers.decision d ON d.run = r.id
        WHERE r.entered_at >= $1 AND r.entered_at < $2
        GROUP BY r.node, r.id HAVING count(d.seq) <> r.number ORDER BY r.entered_at, r.id
        """,
        since,
        until,
    )


async def erased_nodes(tx: Tx, nodes: Sequence[UUID]) -> set[UUID]:
    """Those of the nodes that nobody may know any more."""
    rows = await tx.fetch(
        "SELECT n FROM unnest($1::uuid[]) AS n WHERE NOT EXISTS (SELECT 1 FROM cdp.node WHERE id = n)", list(nodes)
    )
    return {row[0] for row in rows}


async def states_before(tx: Tx, asked: Sequence[tuple[UUID, int]]) -> dict[tuple[UUID, int], Any]:
    """By (run, seq) the run as the decision before `seq` left it."""
    rows = await tx.fetch(
        """
        SELECT a.run, a.seq, d.after FROM unnest($1::uuid[], $2::bigint[]) AS a(run, seq)
        CROSS JOIN LATERAL (
            SELECT after FROM triggers.decision d WHERE d.run = a.run AND d.seq < a.seq ORDER BY d.seq DESC LIMIT 1
        ) d
        """,
        [run for run, _ in asked],
        [seq for _, seq in asked],
    )
    return {(row[0], row[1]): as_run(row[2]) for row in rows}


async def known_before(tx: Tx, asked: Sequence[tuple[UUID, Sequence[UUID], int]]) -> list[list[Known]]:
    """For each (rule, nodes, seq) what was known of the rule's runs on these nodes before the decision `seq`. An erasure ends
    runs without a decision; what was decided before it of who was erased is not derived again."""
    rows = await tx.fetch(
        """
        SELECT DISTINCT ON (a.place, d.run) a.place, d.after, r.ended_at, r.ended_as
        FROM unnest($1::uuid[], $2::text[], $3::bigint[]) WITH ORDINALITY AS a(rule, nodes, seq, place)
        CROSS JOIN LATERAL unnest(a.nodes::uuid[]) AS n(node)
        JOIN triggers.decision d ON d.node = n.node AND d.seq < a.seq AND d.rule = a.rule AND d.run IS NOT NULL
        LEFT JOIN triggers.run r ON r.node = d.node AND r.id = d.run AND (r.erased_at IS NOT NULL OR r.ended_as = 'erased')
        ORDER BY a.place, d.run, d.seq DESC
        """,
        [rule for rule, _, _ in asked],
        ["{" + ",".join(map(str, nodes)) + "}" for _, nodes, _ in asked],
        [seq for _, _, seq in asked],
    )
    found: list[list[Known]] = [[] for _ in asked]
    for place, after, ended_at, ended_as in rows:
        known = Known.of(as_run(after))
        if ended_at is not None:
            known = msgspec.structs.replace(known, ended_at=ended_at, ended_as=ended_as, erased=True)
        found[place - 1].append(known)
    return found


async def events_by_id(tx: Tx, ids: Sequence[UUID], nodes: Sequence[UUID]) -> dict[UUID, EventFact]:
    """Stored events. `nodes`: under which they may lie."""
    rows = await tx.fetch(
        """
        SELECT id, node, name, occurred_at, learned_at, trust, history, properties, source, order_key, first,
               coalesce((rest ->> 'hops')::int, 0) AS hops
        FROM cdp.event WHERE node = ANY($1::uuid[]) AND id = ANY($2::uuid[])
        """,
        list(nodes),
        list(ids),
    )
    return {row["id"]: EventFact(**{**dict(row), "trust": TRUSTS[row["trust"]]}) for row in rows}


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    return msgspec.json.decode(msgspec.json.encode(value))


async def strongest_of(tx: Tx, nodes: Sequence[UUID]) -> UUID:
    """The strongest, then oldest of a person's nodes (of which there is at least one)."""
    found: UUID = await tx.fetchval(
        """
        SELECT id FROM cdp.node WHERE id = ANY($1::uuid[])
        ORDER BY array_position($2::text[], kind), first_seen, id LIMIT 1
        """,
        list(nodes),
        sorted(STRENGTH, key=lambda kind: -STRENGTH[kind]),
    )
    return found
