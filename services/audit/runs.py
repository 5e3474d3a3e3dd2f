"""Runs, what wakes them, and what is to become one: every open run has its timers, every question that an event put is in
the queue, every calendar has its next moment."""

from __future__ import annotations

from services.audit.books import Book
from services.audit.intents import STRAYS
from services.triggers.expecting import calendars, idle_timers
from services.triggers.queue import ItemKind
from services.triggers.store.rules import RuleBook
from shared.db import Tx


async def run_books(tx: Tx) -> list[Book]:
    """All of them, in one snapshot."""
    rules = await RuleBook().read(tx)
    until = await tx.fetchval("SELECT value FROM platform.watermark")
    questions, unasked = await idle_timers(tx, rules, until) if until is not None else (0, [])
    rows, without = await calendars(tx, rules, until) if until is not None else (0, [])
    return [
        await _runs(tx),
        await _decisions(tx),
        await _timers(tx),
        Book(
            "idle timers",
            {"asked for by events": questions},
            {"in the queue": questions - len(unasked)},
            [f"event {event} of node {node} armed no timer of rule {rule}" for rule, node, event in unasked[:STRAYS]],
        ),
        Book(
            "calendars",
            {"active rules with a schedule": rows},
            {"with a moment to come": rows - len(without)},
            [f"rule {rule} has no moment to come" for rule in without[:STRAYS]],
        ),
    ]


async def _runs(tx: Tx) -> Book:
    """runs started = waiting + finished (by reason)."""
    started = await tx.fetchval("SELECT count(*) FROM triggers.decision WHERE run IS NOT NULL AND run_before = 0")
    waiting = await tx.fetchval("SELECT count(*) FROM triggers.run WHERE ended_at IS NULL")
    ended = await tx.fetch(
        "SELECT ended_as, count(*) FROM triggers.run WHERE ended_at IS NOT NULL GROUP BY 1 ORDER BY 1"
    )
    lost = await tx.fetch(
        """
        SELECT d.run FROM triggers.decision d
        WHERE d.run IS NOT NULL AND d.run_before = 0
          AND NOT EXISTS (SELECT 1 FROM triggers.run r WHERE r.node = d.node AND r.id = d.run) LIMIT $1
        """,
        STRAYS,
    )
    return Book(
        "runs",
        {"started": started},
        {"waiting": waiting, **{str(row["ended_as"]): row["count"] for row in ended}},
        [f"run {row[0]} was started and is not there" for row in lost],
    )


async def _decisions(tx: Tx) -> Book:
    """runs say how many decisions they had; the decisions are there."""
    said = await tx.fetchval("SELECT coalesce(sum(number), 0)::bigint FROM triggers.run")
    rows = await tx.fetch(
        "SELECT run_before = 0 AS entry, count(*) FROM triggers.decision WHERE run IS NOT NULL GROUP BY 1 ORDER BY 1 DESC"
    )
    strays = await tx.fetch(
        """
        SELECT r.id FROM triggers.run r LEFT JOIN (
            SELECT run, count(*) AS count FROM triggers.decision WHERE run IS NOT NULL GROUP BY 1
        ) d ON d.run = r.id WHERE r.number <> coalesce(d.count, 0) LIMIT $1
        """,
        STRAYS,
    )
    return Book(
        "decisions",
        {"counted by runs": said},
        {"entries" if row["entry"] else "later ones": row["count"] for row in rows},
        [f"run {row[0]} lacks a decision" for row in strays],
    )


_WANTED = """
    SELECT r.node, r.id, t.kind, t.name FROM triggers.run r
    CROSS JOIN LATERAL (VALUES
        ($1::smallint, 'step', r.ended_at IS NULL),
        ($2::smallint, 'goal window', r.state ? 'closes_at' AND NOT r.state ? 'closed_at')
    ) AS t(kind, name, wanted) WHERE r.open AND t.wanted
"""
_THERE = "EXISTS (SELECT 1 FROM triggers.item i WHERE i.node = w.node AND i.run = w.id AND i.kind = w.kind)"


async def _timers(tx: Tx) -> Book:
    """every run inside has the timer of its step, and every goal window that is open the one that closes it."""
    kinds = (int(ItemKind.STEP), int(ItemKind.GOAL))
    row = await tx.fetchrow(
        f"SELECT count(*) AS wanted, count(*) FILTER (WHERE {_THERE}) AS there FROM ({_WANTED}) w", *kinds
    )
    strays = await tx.fetch(f"SELECT w.id, w.name FROM ({_WANTED}) w WHERE NOT {_THERE} LIMIT $3", *kinds, STRAYS)
    return Book(
        "timers",
        {"steps and goal windows": row["wanted"]},
        {"with a timer": row["there"]},
        [f"run {row['id']} has no timer for its {row['name']}" for row in strays],
    )
