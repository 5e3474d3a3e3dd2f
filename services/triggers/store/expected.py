"""What must be in the queue or have become a run: the stored events that say so, and what explains that it is not there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from services.triggers.run import Known
from services.triggers.store.decisions import TRUSTS
from services.triggers.store.people import as_run
from shared.conditions import Condition, Moment, compile_sql
from shared.db import Tx
from shared.events import PROFILE_EVENTS
from shared.facts.model import EventFact

Place = tuple[UUID, datetime, UUID]  # node, learned at, event: the order in which events lie
BEGINNING = UUID(int=0)
_LETTERS = 500  # dead letters read at once


async def live_events(
    tx: Tx, names: Sequence[tuple[str, datetime]], until: datetime, after: Place | None, limit: int
) -> list[EventFact]:
    """Events of these names that came live and were learned in (the moment beside the name, until], in the order in which
    they lie, behind `after`."""
    node, learned_at, id = after or (BEGINNING, None, None)
    rows = await tx.fetch(
        """
        SELECT id, node, name, occurred_at, learned_at, trust, history, properties, source, order_key, first,
               coalesce((rest ->> 'hops')::int, 0) AS hops
        FROM cdp.event e
        WHERE (node, learned_at, id) > ($1, coalesce($2::timestamptz, '-infinity'), coalesce($3::uuid, $1))
            AND learned_at > $8 AND learned_at <= $4 AND NOT history
            AND (name = ANY($5::text[]) OR '*' = ANY($5::text[])) -- cheap, and leaves little for what follows
            AND EXISTS (
                SELECT 1 FROM unnest($5::text[], $6::timestamptz[]) AS w(name, since)
                WHERE w.name IN (e.name, '*') AND e.learned_at > w.since)
        ORDER BY node, learned_at, id LIMIT $7
        """,
        node,
        learned_at,
        id,
        until,
        [name for name, _ in names],
        [since for _, since in names],
        limit,
        min((since for _, since in names), default=until),
    )
    return [EventFact(**{**dict(row), "trust": TRUSTS[row["trust"]]}) for row in rows]


async def items_there(tx: Tx, keys: Sequence[tuple[UUID, UUID]]) -> set[tuple[UUID, UUID]]:
    """Those of the items (node, id) that are in the queue, those put aside among them."""
    rows = await tx.fetch(
        """
        SELECT i.node, i.id FROM unnest($1::uuid[], $2::uuid[]) AS a(node, id)
        JOIN triggers.item i ON i.node = a.node AND i.id = a.id
        """,
        [node for node, _ in keys],
        [id for _, id in keys],
    )
    return {(row["node"], row["id"]) for row in rows}


async def dropped_by_hand(tx: Tx, keys: Sequence[tuple[UUID, UUID]]) -> set[tuple[UUID, UUID]]:
    """Those of the items (node, id) that somebody took out of the queue."""
    subjects = {f"{node}/{id}": (node, id) for node, id in keys}
    rows = await tx.fetch(
        "SELECT DISTINCT subject FROM platform.change_log WHERE action = 'aside.drop' AND subject = ANY($1::text[])",
        list(subjects),
    )
    return {subjects[row["subject"]] for row in rows}


async def never_read(tx: Tx, events: Sequence[UUID]) -> set[UUID]:
    """Those of the events whose record triggers put aside as a dead letter that nobody has replayed."""
    wanted = {str(event).encode(): event for event in events}
    found: set[UUID] = set()
    after = BEGINNING
    while True:
        rows = await tx.fetch(
            """
            SELECT id, bytes FROM platform.dead_letter
            WHERE topic = $1 AND state <> 'replayed' AND id > $2 ORDER BY id LIMIT $3
            """,
            PROFILE_EVENTS,
            after,
            _LETTERS,
        )
        for row in rows:
            found |= {event for text, event in wanted.items() if text in row["bytes"]}
        if len(rows) < _LETTERS:
            return found
        after = rows[-1]["id"]


async def moments_to_come(tx: Tx, rules: Sequence[UUID]) -> dict[UUID, datetime]:
    """By rule the moment of its calendar that is to come, or is being expanded."""
    rows = await tx.fetch("SELECT rule, due FROM triggers.schedule WHERE rule = ANY($1::uuid[])", list(rules))
    return {row["rule"]: row["due"] for row in rows}


# ── entries that had to be ────────────────────────────────────────────────────────────────────────────────────────────
async def watermark(tx: Tx) -> datetime | None:
    found: datetime | None = await tx.fetchval("SELECT value FROM platform.watermark")
    return found


async def runs_decided(tx: Tx, runs: Sequence[UUID]) -> set[UUID]:
    """Those of the runs of which there is a decision."""
    rows = await tx.fetch(
        "SELECT DISTINCT run FROM triggers.decision WHERE run = ANY($1::uuid[])", list(dict.fromkeys(runs))
    )
    return {row["run"] for row in rows}


async def schedule_item_id(tx: Tx, rule: UUID, due: datetime) -> UUID:
    """The id of the items of a moment of a calendar (see `services.triggers.store.schedules.put_people`)."""
    found: UUID = await tx.fetchval("SELECT md5('schedule:' || $1::uuid || ':' || $2::timestamptz)::uuid", rule, due)
    return found


async def entered_at(tx: Tx, rule: UUID, at: datetime) -> set[UUID]:
    """The nodes of everybody about whom something was decided under a rule at a moment."""
    rows = await tx.fetch(
        "SELECT DISTINCT unnest(nodes || node) AS node FROM triggers.decision WHERE at = $2 AND rule = $1 AND run_before = 0",
        rule,
        at,
    )
    return {row["node"] for row in rows}


async def people_meant(
    tx: Tx, condition: Condition, moment: Moment, after: UUID | None, limit: int
) -> list[tuple[UUID, UUID]]:
    """`profile, node` of the next people who may meet the condition at the moment, in order of profile."""
    found = compile_sql(condition, moment, after=after, limit=limit)
    return [(row["profile"], row["node"]) for row in await tx.fetch(found.sql, *found.params)]


async def known_at(tx: Tx, asked: Sequence[tuple[UUID, Sequence[UUID], datetime, datetime]]) -> list[list[Known]]:
    """For each (rule, nodes, T, later) what its decisions up to T say of the rule's runs on these nodes, and the entries up to
    `later` of those that came after it."""
    rows = await tx.fetch(
        """
        SELECT DISTINCT ON (a.place, d.run) a.place, d.after, r.ended_at, r.ended_as
        FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[]) WITH ORDINALITY
            AS a(rule, nodes, at, later, place)
        CROSS JOIN LATERAL unnest(a.nodes::uuid[]) AS n(node)
        JOIN triggers.decision d ON d.node = n.node AND d.rule = a.rule AND d.run IS NOT NULL
            AND (d.at <= a.at OR (d.run_before = 0 AND d.at <= a.later))
        LEFT JOIN triggers.run r ON r.node = d.node AND r.id = d.run AND r.erased_at IS NOT NULL
        ORDER BY a.place, d.run, d.seq DESC
        """,
        [rule for rule, _, _, _ in asked],
        ["{" + ",".join(map(str, nodes)) + "}" for _, nodes, _, _ in asked],
        [at for _, _, at, _ in asked],
        [later for _, _, _, later in asked],
    )
    found: list[list[Known]] = [[] for _ in asked]
    for row in rows:
        one = Known.of(as_run(row["after"]))
        if row["ended_at"] is not None:
            one = msgspec.structs.replace(one, ended_at=row["ended_at"], ended_as=row["ended_as"], erased=True)
        found[row["place"] - 1].append(one)
    return found
