"""The queue of items: put in, claimed in order, taken out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from services.triggers.queue import Item, ItemKind
from shared.db import Tx

# How many items of one node a claim looks at; what lies behind them waits for the next claim.
PER_NODE = 100
CLAIM_CLASS = 0x7472  # the first half of the two-part advisory locks by which claimers pass each other by


async def put_items(tx: Tx, items: Sequence[Item]) -> None:
    """Puts items in. One that is there already (a natural key) is due at the earlier of both moments: so the first match
    of an idle timer counts, in whatever order matches arrive."""
    if not items:
        return
    first: dict[tuple[UUID, UUID], Item] = {}
    for item in items:
        known = first.get((item.node, item.id))
        if known is None or item.due < known.due:
            first[item.node, item.id] = item
    await tx.execute(
        """
        INSERT INTO triggers.item AS i (node, id, kind, due, rule, run, payload)
        SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::timestamptz[], $5::uuid[], $6::uuid[], $7::jsonb[])
        ON CONFLICT (node, id) DO UPDATE SET due = least(i.due, excluded.due) WHERE excluded.due < i.due
        """,
        *_columns([first[key] for key in sorted(first)]),
    )


async def set_items(tx: Tx, items: Sequence[Item]) -> None:
    """Puts items in or gives those there another due moment, earlier or later. Their people must be locked."""
    if not items:
        return
    await tx.execute(
        """
        INSERT INTO triggers.item (node, id, kind, due, rule, run, payload)
        SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::timestamptz[], $5::uuid[], $6::uuid[], $7::jsonb[])
        ON CONFLICT (node, id) DO UPDATE SET due = excluded.due, held = false, rule = excluded.rule, payload = excluded.payload
        """,
        *_columns(sorted(items, key=lambda item: (item.node, item.id))),
    )


def _columns(items: Sequence[Item]) -> list[list[Any]]:
    return [
        [item.node for item in items],
        [item.id for item in items],
        [item.kind for item in items],
        [item.due for item in items],
        [item.rule for item in items],
        [item.run for item in items],
        [item.payload for item in items],
    ]


async def drop_items(tx: Tx, keys: Sequence[tuple[UUID, UUID]]) -> None:
    """Takes items out, by (node, id)."""
    if keys:
        keys = sorted(set(keys))
        await tx.execute(
            """
            DELETE FROM triggers.item i USING unnest($1::uuid[], $2::uuid[]) AS d(node, id)
            WHERE i.node = d.node AND i.id = d.id
            """,
            [node for node, _ in keys],
            [id for _, id in keys],
        )


async def hold_items(tx: Tx, keys: Sequence[tuple[UUID, UUID]]) -> None:
    """Lets timers of paused rules wait until they are released."""
    if keys:
        keys = sorted(set(keys))
        await tx.execute(
            """
            UPDATE triggers.item i SET held = true FROM unnest($1::uuid[], $2::uuid[]) AS h(node, id)
            WHERE i.node = h.node AND i.id = h.id
            """,
            [node for node, _ in keys],
            [id for _, id in keys],
        )


async def claim_moment(tx: Tx) -> tuple[datetime | None, bool]:
    """Up to which moment may be handled (the watermark, but not past a schedule that is not expanded yet), and whether
    anything is due by then."""
    row = await tx.fetchrow(
        """
        WITH until AS (
            SELECT least(w.value, (SELECT min(due) - interval '1 microsecond' FROM triggers.schedule WHERE NOT held)) AS value
            FROM platform.watermark w
        )
        SELECT value, coalesce((SELECT min(due) FROM triggers.item WHERE NOT held) <= value, false) AS any FROM until
        """
    )
    return (row["value"], row["any"]) if row else (None, False)


async def candidates(tx: Tx, until: datetime, limit: int) -> dict[UUID, datetime]:
    """Nodes with something due, the longest waiting first, with the moment of their first item. Nodes that another claim
    holds at the moment are passed by (their people's other nodes are found by its locks)."""
    rows = await tx.fetch(
        """
        SELECT node, due FROM (
            SELECT node, min(due) AS due FROM (
                SELECT node, due FROM triggers.item WHERE NOT held AND due <= $1 ORDER BY due, node LIMIT $2 * 8
            ) first
            GROUP BY node ORDER BY min(due), node OFFSET 0 -- or every node would be tried, not only the first ones
        ) waiting
        WHERE pg_try_advisory_xact_lock($3, hashtext(node::text))
        LIMIT $2
        """,
        until,
        limit,
        CLAIM_CLASS,
    )
    return {row["node"]: row["due"] for row in rows}


async def first_due(tx: Tx, nodes: Sequence[UUID], until: datetime) -> dict[UUID, datetime]:
    """By node the moment of its first open item."""
    rows = await tx.fetch(
        "SELECT node, min(due) FROM triggers.item WHERE node = ANY($1::uuid[]) AND NOT held AND due <= $2 GROUP BY node",
        list(nodes),
        until,
    )
    return {row[0]: row[1] for row in rows}


async def due_items(tx: Tx, nodes: Sequence[UUID], until: datetime) -> list[Item]:
    """What is due on these nodes, each node's in order and at most PER_NODE of it; the rows are locked, so that a match
    that is being armed at this moment is either seen afterwards or arms anew."""
    rows = await tx.fetch(
        """
        SELECT i.node, i.id, i.kind, i.due, i.rule, i.run, i.payload
        FROM unnest($1::uuid[]) WITH ORDINALITY AS n(node, place)
        JOIN LATERAL (
            SELECT node, id FROM triggers.item t WHERE t.node = n.node AND NOT t.held AND t.due <= $2
            ORDER BY due, kind >= $4, coalesce(rule, $5), coalesce(run, $5), kind, id LIMIT $3
        ) f ON true
        JOIN triggers.item i ON i.node = f.node AND i.id = f.id AND NOT i.held AND i.due <= $2
        ORDER BY i.node, i.id FOR UPDATE OF i
        """,
        sorted(nodes),
        until,
        PER_NODE,
        int(ItemKind.IDLE),
        UUID(int=0),
    )
    return [Item(**dict(row)) for row in rows]


async def release_items(tx: Tx, rules: Sequence[UUID], now: datetime, limit: int) -> int:
    """Timers held while their rule was paused are due again, now; who was to enter by a rule that could not be read is asked
    about as of their own moment. Says how many."""
    released = await tx.fetch(
        """
        UPDATE triggers.item i SET held = false, due = CASE WHEN i.kind = ANY($4::int[]) THEN i.due ELSE greatest(i.due, $2) END
        FROM (
            SELECT node, id FROM triggers.item WHERE held AND rule IS NOT NULL AND rule = ANY($1::uuid[])
            ORDER BY node, id LIMIT $3 FOR UPDATE
        ) h
        WHERE i.node = h.node AND i.id = h.id RETURNING 1
        """,
        list(rules),
        now,
        limit,
        [int(ItemKind.IDLE), int(ItemKind.SCHEDULE)],
    )
    return len(released)


# A change `c` that every decision as of before it has been made of: whoever enters by what was in force until then is there.
_REACHED = """
    c.valid_from <= (SELECT value FROM platform.watermark)
    AND c.valid_from <= coalesce((SELECT min(due) FROM triggers.item WHERE NOT held), 'infinity')
    AND c.valid_from <= coalesce((SELECT min(due) FROM triggers.schedule WHERE NOT held), 'infinity')"""


async def calendar_work(tx: Tx) -> tuple[bool, bool]:
    """Whether a moment of the calendar is due, and whether there are runs or timers to be told of changed rules."""
    row = await tx.fetchrow(
        f"""
        SELECT coalesce((SELECT min(due) FROM triggers.schedule WHERE NOT held)
                   <= (SELECT value FROM platform.watermark), false) AS due,
               EXISTS (SELECT 1 FROM triggers.rule_change c WHERE NOT c.swept AND {_REACHED})
               OR EXISTS (SELECT 1 FROM triggers.item WHERE held AND rule IS NOT NULL)
               OR EXISTS (SELECT 1 FROM triggers.schedule WHERE held) AS told
        """
    )
    return row["due"], row["told"]


async def held_rules(tx: Tx) -> list[UUID]:
    return [row[0] for row in await tx.fetch("SELECT DISTINCT rule FROM triggers.item WHERE held AND rule IS NOT NULL")]


async def sweep_runs(
    tx: Tx, rule: UUID, below: int | None, due: datetime, limit: int, steps: Sequence[str] | None = None
) -> int:
    """Puts in an item for every live run of the rule (of versions below `below`; that stands at one of `steps`) that is to
    end or to move; says how many."""
    rows = await tx.fetch(
        """
        INSERT INTO triggers.item (node, id, kind, due, rule, run)
        SELECT node, md5('removed:' || id)::uuid, $4, $3, rule, id FROM triggers.run
        WHERE open AND ended_at IS NULL AND rule = $1 AND ($2::int IS NULL OR version < $2)
            AND ($6::text[] IS NULL OR state -> 'path' ->> -1 = ANY($6))
            AND NOT EXISTS (SELECT 1 FROM triggers.item i WHERE i.node = run.node AND i.id = md5('removed:' || run.id)::uuid)
        ORDER BY node, id LIMIT $5
        ON CONFLICT DO NOTHING RETURNING 1
        """,
        rule,
        below,
        due,
        int(ItemKind.REMOVED),
        limit,
        list(steps) if steps is not None else None,
    )
    return len(rows)


async def unswept(tx: Tx) -> list[Any]:
    """Changes in force that end or move runs and were not told to them yet, once nobody can enter by what was before."""
    return await tx.fetch(
        f"""
        SELECT c.rule, c.number, c.state, c.version, v.document ->> 'on_edit' AS on_edit
        FROM triggers.rule_change c JOIN triggers.rule_version v ON v.rule = c.rule AND v.version = c.version
        WHERE NOT c.swept AND {_REACHED} ORDER BY c.rule, c.number FOR UPDATE OF c SKIP LOCKED
        """
    )


async def mark_swept(tx: Tx, rule: UUID, number: int) -> None:
    await tx.execute("UPDATE triggers.rule_change SET swept = true WHERE rule = $1 AND number = $2", rule, number)


async def put_aside(tx: Tx, nodes: Sequence[UUID], until: datetime, why: str) -> int:
    """Holds what is due on these nodes, with the reason: a person whose items cannot be handled must not stop the others."""
    rows = await tx.fetch(
        """
        UPDATE triggers.item
        SET held = true, rule = NULL, payload = payload || jsonb_build_object('put_aside', $3::text, 'rule', rule)
        WHERE node = ANY($1::uuid[]) AND NOT held AND due <= $2 RETURNING 1
        """,
        list(nodes),
        until,
        why,
    )
    return len(rows)


async def next_due(tx: Tx) -> datetime | None:
    """When the next item or schedule is due."""
    moment: datetime | None = await tx.fetchval(
        """
        SELECT least((SELECT min(due) FROM triggers.item WHERE NOT held),
                     (SELECT min(due) FROM triggers.schedule WHERE NOT held))
        """
    )
    return moment


async def idle_now(tx: Tx) -> bool:
    """Whether nothing is due up to the watermark and nothing waits to be published."""
    row = await tx.fetchrow(
        """
        SELECT EXISTS (SELECT 1 FROM triggers.outbox) AS publishing,
               coalesce((SELECT min(due) FROM triggers.item WHERE NOT held) <= w.value, false) AS due,
               coalesce((SELECT min(due) FROM triggers.schedule WHERE NOT held) <= w.value, false) AS scheduled
        FROM (SELECT coalesce((SELECT value FROM platform.watermark), '-infinity') AS value) w
        """
    )
    return not any(row.values())
