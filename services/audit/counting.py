"""Counting the rows of the books."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from services.audit.books import Book
from shared.bus.base import Bus
from shared.clock import pause
from shared.db import Database, Tx
from shared.events import EVENTS, HISTORY, MESSAGES, PROFILE_EVENTS

PATIENCE = 30.0  # seconds to wait for intents on their way
STRAYS = 10  # named at most
READERS = {EVENTS: "profile", HISTORY: "profile", PROFILE_EVENTS: "triggers", MESSAGES: "dispatch"}
RESULTS = ("applied", "repeated", "conflicting", "erased", "dead")


async def count_books(database: Database, bus: Bus) -> list[Book]:
    """All books of this deployment."""
    async with database.transaction("repeatable_read") as tx:
        books = [
            *await _records(tx, bus),
            await _events(tx),
            await _dead_letters(tx),
            *await _runs(tx),
        ]
        intents = await _intents(tx)
        shards = await _unpublished(tx)
    await _until_handled(database, bus, shards)
    async with database.transaction("repeatable_read") as tx:
        books += [await _messages(tx, intents), await _states(tx), await _attempts(tx), await _charges(tx)]
    return books


async def _records(tx: Tx, bus: Bus) -> list[Book]:
    """records in a bus topic = read + in flight, and read = the sum of what became of them."""
    rows = await tx.fetch(
        "SELECT topic, partition, next, read, applied, repeated, conflicting, erased, dead FROM ("
        + " UNION ALL ".join(
            f"SELECT epoch, topic, partition, next, read, applied, repeated, conflicting, erased, dead FROM {schema}.position"
            for schema in ("profile", "triggers", "dispatch")
        )
        + ") p WHERE (topic, epoch) IN (SELECT * FROM unnest($1::text[], $2::text[]))",
        list(READERS),
        [bus.epoch(topic) for topic in READERS],
    )
    books = []
    for topic, reader in READERS.items():
        mine = [row for row in rows if row["topic"] == topic]
        ends, first = await bus.ends(topic), await bus.beginnings(topic)
        there = {row["partition"]: row["next"] for row in mine}
        flying = sum(end - there.get(partition, first.get(partition, 0)) for partition, end in ends.items())
        gone = sum(first.get(partition, 0) for partition in ends if partition not in there)
        books.append(
            Book(
                f"records in {topic}",
                {"appended": sum(ends.values())},
                {f"read by {reader}": _sum(mine, "read"), "in flight": flying, "dropped unread by age": gone},
            )
        )
        books.append(
            Book(f"read from {topic}", {"read": _sum(mine, "read")}, {name: _sum(mine, name) for name in RESULTS})
        )
    return books


def _sum(rows: Iterable[Any], column: str) -> int:
    return sum(row[column] for row in rows)


async def _events(tx: Tx) -> Book:
    """what profile counted as applied = the events that are stored + those erased since."""
    applied = await tx.fetchval("SELECT coalesce(sum(applied), 0)::bigint FROM profile.position")
    stored = await tx.fetchval("SELECT count(*) FROM profile.event")
    erased = await tx.fetchval(
        """
        SELECT coalesce(sum(("after" ->> 'events')::bigint), 0)::bigint FROM platform.change_log
        WHERE action = 'profile.erase'
        """
    )
    # An event that was dropped because its person is erased was seen, too: strays are worth naming only if the sums differ.
    strays = []
    if applied != stored + erased:
        strays = await tx.fetch(
            """
            SELECT s.id FROM profile.event_seen s
            WHERE NOT EXISTS (SELECT 1 FROM profile.event e WHERE e.id = s.id) LIMIT $1
            """,
            STRAYS,
        )
    return Book(
        "events",
        {"applied": applied},
        {"stored": stored, "erased since": erased},
        [f"event {row[0]} was seen and is not stored" for row in strays],
    )


async def _dead_letters(tx: Tx) -> Book:
    counted = {
        service: await tx.fetchval(f"SELECT coalesce(sum(dead), 0)::bigint FROM {service}.position")
        for service in ("profile", "triggers", "dispatch")
    }
    rows = await tx.fetchval(
        "SELECT count(*) FROM platform.dead_letter WHERE number IS NOT NULL AND service = ANY($1)", list(counted)
    )
    dropped = await tx.fetchval(
        "SELECT coalesce(sum(count), 0)::bigint FROM platform.dead_letter_dropped WHERE service = ANY($1)",
        list(counted),
    )
    return Book(
        "dead letters",
        {f"put aside by {name}": count for name, count in counted.items()},
        {"kept": rows, "deleted by age": dropped},
    )


async def _runs(tx: Tx) -> list[Book]:
    """runs started = waiting + finished (by reason); every open run has something that will wake it."""
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
    asleep = await tx.fetch(
        """
        SELECT r.id FROM triggers.run r
        WHERE r.open AND NOT EXISTS (SELECT 1 FROM triggers.item i WHERE i.run = r.id AND i.node = r.node) LIMIT $1
        """,
        STRAYS,
    )
    open_runs = await tx.fetchval("SELECT count(*) FROM triggers.run WHERE open")
    timed = await tx.fetchval(
        """
        SELECT count(*) FROM triggers.run r
        WHERE r.open AND EXISTS (SELECT 1 FROM triggers.item i WHERE i.run = r.id AND i.node = r.node)
        """
    )
    return [
        Book(
            "runs",
            {"started": started},
            {"waiting": waiting, **{str(row["ended_as"]): row["count"] for row in ended}},
            [f"run {row[0]} was started and is not there" for row in lost],
        ),
        Book(
            "timers",
            {"open runs": open_runs},
            {"with a timer": timed},
            [f"run {row[0]} has no timer" for row in asleep],
        ),
    ]


async def _intents(tx: Tx) -> list[UUID]:
    rows = await tx.fetch(
        """
        SELECT DISTINCT (effect -> 'intended' ->> 'message')::uuid AS message
        FROM triggers.decision, jsonb_array_elements(effects) AS effect WHERE effect ? 'intended'
        """
    )
    return [row["message"] for row in rows]


async def _unpublished(tx: Tx) -> dict[str, int]:
    rows = await tx.fetch("SELECT shard, max(number) FROM triggers.outbox GROUP BY shard")
    return dict(rows)


async def _until_handled(database: Database, bus: Bus, shards: dict[str, int]) -> None:
    """Waits until these rows are published and dispatch has handled what the bus held then; at most half a minute."""
    deadline = time.monotonic() + PATIENCE
    ends: dict[int, int] | None = None
    while time.monotonic() < deadline:
        async with database.connection() as connection:
            if ends is None:
                left = await connection.fetchval(
                    "SELECT count(*) FROM triggers.outbox o JOIN unnest($1::text[], $2::bigint[]) AS s(shard, number)"
                    " ON o.shard = s.shard AND o.number <= s.number",
                    list(shards),
                    list(shards.values()),
                )
                if not left:
                    ends = await bus.ends(MESSAGES)
            if ends is not None:
                rows = await connection.fetch(
                    "SELECT partition, next FROM dispatch.position WHERE topic = $1 AND epoch = $2",
                    MESSAGES,
                    bus.epoch(MESSAGES),
                )
                there = dict(rows)
                if all(there.get(partition, 0) >= end for partition, end in ends.items()):
                    return
        await pause(0.1)


async def _messages(tx: Tx, intents: list[UUID]) -> Book:
    """every intent of triggers is a message of dispatch."""
    known = await tx.fetchval("SELECT count(*) FROM dispatch.message WHERE intended AND id = ANY($1)", intents)
    dead = await tx.fetchval(
        """
        SELECT (SELECT count(*) FROM platform.dead_letter WHERE service = 'dispatch' AND number IS NOT NULL)
             + coalesce((SELECT count FROM platform.dead_letter_dropped WHERE service = 'dispatch'), 0)
        """
    )
    strays = await tx.fetch(
        """
        SELECT i.id FROM unnest($1::uuid[]) AS i(id)
        WHERE NOT EXISTS (SELECT 1 FROM dispatch.message m WHERE m.id = i.id) LIMIT $2
        """,
        intents,
        STRAYS,
    )
    missing = len(intents) - known
    return Book(
        "intents",
        {"wanted by triggers": len(intents)},
        {"known to dispatch": known, "dead letters": min(dead, max(0, missing)), "overtaken by their cancel": 0},
        [f"message {row[0]} was intended and is not there" for row in strays][: max(0, missing - dead)],
    )


async def _states(tx: Tx) -> Book:
    total = await tx.fetchval("SELECT count(*) FROM dispatch.message WHERE intended")
    rows = await tx.fetch(
        """
        SELECT CASE WHEN state = 'withheld' THEN 'withheld: ' || coalesce(reason_code, '?') ELSE state END AS state, count(*)
        FROM dispatch.message WHERE intended GROUP BY 1 ORDER BY 1
        """
    )
    return Book("messages", {"intended": total}, {row["state"]: row["count"] for row in rows})


async def _attempts(tx: Tx) -> Book:
    """messages say how many attempts they had; the attempts are there."""
    said = await tx.fetchval("SELECT coalesce(sum(attempts), 0)::bigint FROM dispatch.message")
    rows = await tx.fetch(
        "SELECT coalesce(outcome, 'calling') AS outcome, count(*) FROM dispatch.attempt GROUP BY 1 ORDER BY 1"
    )
    strays = await tx.fetch(
        """
        SELECT m.id FROM dispatch.message m
        WHERE m.attempts <> (SELECT count(*) FROM dispatch.attempt a WHERE a.message = m.id) LIMIT $1
        """,
        STRAYS,
    )
    return Book(
        "attempts",
        {"counted by messages": said},
        {row["outcome"]: row["count"] for row in rows},
        [f"message {row[0]} lacks an attempt" for row in strays],
    )


async def _charges(tx: Tx) -> Book:
    """what providers charge = the cost ledger: every attempt that was answered or may have been is charged once."""
    expected = await tx.fetchval(
        """
        SELECT coalesce(sum(amount), 0) FROM (
            SELECT coalesce(charged, cost) AS amount FROM dispatch.attempt WHERE outcome IN ('sent', 'unknown')
            UNION ALL
            SELECT coalesce(charged, cost) FROM dispatch.test WHERE outcome IN ('sent', 'unknown')
        ) paid
        """
    )
    charged = await tx.fetchval("SELECT coalesce(sum(amount), 0) FROM dispatch.charge")
    strays = await tx.fetch(
        """
        SELECT a.message, a.number FROM dispatch.attempt a
        WHERE a.outcome = 'sent' AND NOT EXISTS (
            SELECT 1 FROM dispatch.charge c WHERE c.message = a.message AND c.number = a.number) LIMIT $1
        """,
        STRAYS,
    )
    return Book(
        "charges",
        {"attempts at their price": expected},
        {"cost ledger": charged},
        [f"attempt {row[1]} of message {row[0]} is not in the cost ledger" for row in strays],
    )
