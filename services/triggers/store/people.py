"""Runs of people, and what a decision writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from services.triggers.queue import Item, ItemKind
from services.triggers.run import Known, Run
from shared.db import Tx
from shared.ids import lock_key


async def lock_nodes(tx: Tx, nodes: Sequence[UUID]) -> None:
    """Advisory locks of people's nodes until the end of the transaction, in one order for everybody."""
    await tx.execute(
        """
        SELECT pg_advisory_xact_lock(key)
        FROM (SELECT key FROM unnest($1::bigint[]) AS u(key) ORDER BY key OFFSET 0) AS sorted
        """,
        sorted({lock_key("triggers", node) for node in nodes}),
    )


ERASURES = lock_key("triggers", "erasures")


async def lock_erasures(tx: Tx, *, carrying_out: bool) -> None:
    """Until the end of the transaction. Everybody who puts something in about people shares it; who carries out an erasure
    has it alone, and so finds whatever was put in by those who did not see that erasure in the journal."""
    lock = "pg_advisory_xact_lock" if carrying_out else "pg_advisory_xact_lock_shared"
    await tx.execute(f"SELECT {lock}($1)", ERASURES)


async def runs_of(tx: Tx, nodes: Sequence[UUID]) -> tuple[list[Run], list[Known]]:
    """The open runs on these nodes, and what is to be known of all."""
    rows = await tx.fetch(
        """
        SELECT id, rule, node, entered_at, ghost, subject, ended_at, ended_as,
               -- without the moment: the version before wrote it
               erased_at IS NOT NULL OR ended_as IS NOT DISTINCT FROM 'erased' AS erased,
               CASE WHEN open THEN state END AS state
        FROM triggers.run WHERE node = ANY($1::uuid[])
        """,
        list(nodes),
    )
    known = [
        Known(
            id=row["id"],
            rule=row["rule"],
            origin=row["node"],
            entered_at=row["entered_at"],
            ghost=row["ghost"],
            subject=row["subject"],
            ended_at=row["ended_at"],
            ended_as=row["ended_as"],
            erased=row["erased"],
        )
        for row in rows
    ]
    return [as_run(row["state"]) for row in rows if row["state"] is not None], known


def as_run(state: Any) -> Run:
    """A run from the jsonb column that holds all of it."""
    return msgspec.convert(state, Run)


async def first_reports(tx: Tx, keys: Sequence[str]) -> dict[str, datetime]:
    """By order key when the order was first reported as completed, from any source (as `shared.facts.orders.fold_order`
    has it: an update or a cancellation that came before is not yet the order)."""
    if not keys:
        return {}
    rows = await tx.fetch(
        """
        SELECT order_key, min(learned_at) FROM cdp.order_report
        WHERE order_key = ANY($1::text[]) AND kind = 'completed' GROUP BY order_key
        """,
        list(keys),
    )
    return {row[0]: row[1] for row in rows}


class RunLost(RuntimeError):
    """A run was not as it was read under its person's locks. It is a mistake in the program, never a race."""


async def write_runs(tx: Tx, new: Sequence[Run], changed: Sequence[tuple[Run, int]], revenue: dict[UUID, str]) -> None:
    """Inserts new runs and updates the others, each from the version it was read with.

    :param changed: a run and the version it had
    :param revenue: of runs whose goal window has closed
    """
    new = sorted(new, key=_key)
    changed = sorted(changed, key=lambda pair: _key(pair[0]))
    if new:
        inserted = await tx.fetch(
            """
            INSERT INTO triggers.run (node, id, rule, version, number, ghost, subject, entered_at, ended_at, ended_as, goal_at,
                                      revenue, open, state)
            SELECT node, id, rule, version, number, ghost, subject, entered_at, ended_at, ended_as, goal_at, revenue, open,
                state::jsonb
            FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::int[], $5::int[], $6::bool[], $7::text[],
                $8::timestamptz[], $9::timestamptz[], $10::text[], $11::timestamptz[], $12::text[], $13::bool[], $14::text[])
                AS n(node, id, rule, version, number, ghost, subject, entered_at, ended_at, ended_as, goal_at, revenue, open,
                     state)
            ON CONFLICT DO NOTHING RETURNING 1
            """,
            *_columns(new, revenue),
        )
        if len(inserted) != len(new):
            raise RunLost(f"{len(new) - len(inserted)} of {len(new)} new runs exist already")
    if changed:
        updated = await tx.fetch(
            """
            UPDATE triggers.run r SET version = u.version, number = u.number, ended_at = u.ended_at, ended_as = u.ended_as,
                goal_at = u.goal_at, revenue = u.revenue, open = u.open, state = u.state::jsonb
            FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::int[], $5::int[], $6::bool[], $7::text[], $8::timestamptz[],
                $9::timestamptz[], $10::text[], $11::timestamptz[], $12::text[], $13::bool[], $14::text[], $15::int[])
                AS u(node, id, rule, version, number, ghost, subject, entered_at, ended_at, ended_as, goal_at, revenue, open,
                     state, before)
            WHERE r.node = u.node AND r.id = u.id AND r.number = u.before RETURNING 1
            """,
            *_columns([run for run, _ in changed], revenue),
            [before for _, before in changed],
        )
        if len(updated) != len(changed):
            raise RunLost(f"{len(changed) - len(updated)} of {len(changed)} runs are not as they were read")


def _key(run: Run) -> tuple[UUID, UUID]:
    return run.origin, run.id


def _columns(runs: Sequence[Run], revenue: dict[UUID, str]) -> list[list[Any]]:
    return [
        [run.origin for run in runs],
        [run.id for run in runs],
        [run.rule for run in runs],
        [run.version for run in runs],
        [run.number for run in runs],
        [run.ghost for run in runs],
        [run.subject for run in runs],
        [run.entered_at for run in runs],
        [run.ended_at for run in runs],
        [run.ended_as for run in runs],
        [run.goal_at for run in runs],
        [revenue.get(run.id) for run in runs],
        [run.open for run in runs],
        [_json(run) for run in runs],
    ]


async def forget_addresses(tx: Tx, purged: Sequence[tuple[str, Sequence[UUID]]]) -> None:
    """Takes a purged address out of the runs about it and of what was decided about them before."""
    if not purged:
        return
    subjects = [subject for subject, _ in purged]
    nodes = sorted({node for _, of_person in purged for node in of_person})
    await tx.execute(
        """
        WITH gone AS (
            UPDATE triggers.run SET state = (state - 'addressed') #- '{event,properties,address}'
            WHERE node = ANY($2::uuid[]) AND subject = ANY($1::text[]) RETURNING node, id
        )
        UPDATE triggers.decision d SET after = (after - 'addressed') #- '{event,properties,address}', effects = '[]', seen = '[]',
            erased = true
        FROM gone WHERE d.node = gone.node AND d.run = gone.id
        """,
        subjects,
        nodes,
    )


# What a run keeps of its person; ids, moments and the way it took stay, so that the books balance.
PERSONAL = ["event", "addressed", "intents", "path", "since", "due", "offer", "closes_at"]


async def forget_people(tx: Tx, erased: Mapping[UUID, datetime]) -> list[tuple[Item, datetime]]:
    """Ends the runs of erased people and takes out what runs, timers and decisions keep of them. Their nodes are locked.

    Whoever has come back since is somebody new: what was learned after the erasure, and runs entered after it, stay.

    :param erased: by node the moment of its erasure
    :return: the idle timers that ended, with that moment: a match learned after it may have to arm them anew
    """
    nodes = sorted(erased)
    pairs = [nodes, [erased[node] for node in nodes]]
    ended = await tx.fetch(
        """
        DELETE FROM triggers.item i USING unnest($1::uuid[], $2::timestamptz[]) AS g(node, at)
        WHERE i.node = g.node AND CASE
            WHEN i.run IS NOT NULL THEN NOT EXISTS (
                SELECT 1 FROM triggers.run r WHERE r.node = i.node AND r.id = i.run AND r.entered_at > g.at)
            ELSE i.due <= g.at OR i.kind = $3 END
        RETURNING i.node, i.id, i.kind, i.due, coalesce(i.rule, (i.payload ->> 'rule')::uuid) AS rule, g.at
        """,
        *pairs,
        int(ItemKind.IDLE),
    )
    await tx.execute(
        """
        UPDATE triggers.run r SET ended_at = coalesce(r.ended_at, g.at), ended_as = coalesce(r.ended_as, 'erased'),
            open = false, erased_at = coalesce(r.erased_at, g.at), state = (r.state - $3::text[]) || jsonb_build_object(
                'ended_at', coalesce(r.ended_at, g.at), 'ended_as', coalesce(r.ended_as, 'erased'))
        FROM unnest($1::uuid[], $2::timestamptz[]) AS g(node, at) WHERE r.node = g.node AND r.entered_at <= g.at
        """,
        *pairs,
        PERSONAL,
    )
    await tx.execute(
        """
        UPDATE triggers.decision d SET after = after - $3::text[], effects = '[]', seen = '[]', erased = true
        FROM unnest($1::uuid[], $2::timestamptz[]) AS g(node, at)
        WHERE d.node = g.node AND NOT d.erased AND (d.at <= g.at OR EXISTS (
            SELECT 1 FROM triggers.run r WHERE r.node = d.node AND r.id = d.run AND r.entered_at <= g.at))
        """,
        *pairs,
        PERSONAL,
    )
    idle = [row for row in ended if row["kind"] == ItemKind.IDLE]
    return [
        (Item(node=row["node"], id=row["id"], kind=row["kind"], due=row["due"], rule=row["rule"]), row["at"])
        for row in idle
    ]


class DecisionRow(msgspec.Struct, kw_only=True):
    """One decision as it is stored; see `services.triggers.tables.decision`. `seq` is given when it is written."""

    node: UUID
    at: datetime
    made_at: datetime
    rule: UUID
    version: int
    run: UUID | None
    run_before: int
    run_after: int
    what: str
    why: str
    cause: dict[str, Any]
    profile: UUID
    nodes: list[UUID]
    seen: list[Any]
    effects: list[Any]
    after: Run | None


async def write_decisions(tx: Tx, rows: Sequence[DecisionRow]) -> None:
    """Writes decisions in their order; `seq` is taken now, under the locks of all their people."""
    if not rows:
        return
    # A list within an array parameter would be taken for another dimension, and the codec of jsonb writes decimals as
    # numbers: these travel as text.
    as_text = {
        "nodes": lambda nodes: "{" + ",".join(map(str, nodes)) + "}",
        "seen": _json,
        "effects": _json,
        "after": lambda run: None if run is None else _json(run),
    }
    columns = [[as_text.get(name, _same)(getattr(row, name)) for row in rows] for name in DecisionRow.__struct_fields__]
    await tx.execute(
        """
        INSERT INTO triggers.decision (node, at, made_at, rule, version, run, run_before, run_after, what, why, cause, profile,
                                       nodes, seen, effects, after, seq)
        SELECT node, at, made_at, rule, version, run, run_before, run_after, what, why, cause, profile,
               nodes::uuid[], seen::jsonb, effects::jsonb, after::jsonb, nextval('triggers.decision_seq')
        FROM (
            SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::uuid[], $5::int[], $6::uuid[], $7::int[],
                $8::int[], $9::text[], $10::text[], $11::jsonb[], $12::uuid[], $13::text[], $14::text[], $15::text[],
                $16::text[]) WITH ORDINALITY
                AS d(node, at, made_at, rule, version, run, run_before, run_after, what, why, cause, profile, nodes, seen,
                     effects, after, place)
            ORDER BY place OFFSET 0
        ) AS in_order
        """,
        *columns,
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _same(value: Any) -> Any:
    return value
