"""Counting the rows of the books."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.audit.books import Book
from services.audit.facts import fact_books
from services.audit.intents import STRAYS, intent_books, read_told, wait_until_handled
from services.audit.runs import run_books
from shared.bus.base import Bus
from shared.db import Database, Tx
from shared.events import EVENTS, HISTORY, MESSAGES, PROFILE_EVENTS

READERS = {EVENTS: "profile", HISTORY: "profile", PROFILE_EVENTS: "triggers", MESSAGES: "dispatch"}
RESULTS = ("applied", "repeated", "conflicting", "erased", "dead")


async def count_books(database: Database, bus: Bus) -> list[Book]:
    """All books of this deployment."""
    async with database.transaction("repeatable_read") as tx:
        books = [
            *await _records(tx, bus),
            await _events(tx),
            await _people(tx),
            *await fact_books(tx),
            await _dead_letters(tx),
            *await run_books(tx),
        ]
        told = await read_told(tx)
    await wait_until_handled(database, bus, told)
    async with database.transaction("repeatable_read") as tx:
        books += [*await intent_books(tx, told), await _choices(tx), await _attempts(tx), await _charges(tx)]
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


async def _people(tx: Tx) -> Book:
    """every node that is known is one person's, and every person has theirs, now and in the rows of who was whose."""
    known = await tx.fetchval("SELECT count(*) FROM profile.node")
    theirs = await tx.fetchval("SELECT coalesce(sum(cardinality(nodes)), 0)::bigint FROM profile.profile")
    strays = await tx.fetch(
        """
        SELECT p.id, n.node, o.id IS NULL AS unknown FROM profile.profile p CROSS JOIN LATERAL unnest(p.nodes) AS n(node)
        LEFT JOIN profile.node o ON o.id = n.node AND o.profile = p.id
        LEFT JOIN profile.membership m ON m.node = n.node AND m.profile = p.id AND m.to_at IS NULL
        WHERE o.id IS NULL OR m.node IS NULL ORDER BY n.node LIMIT $1
        """,
        STRAYS,
    )
    return Book(
        "people",
        {"nodes known": known},
        {"nodes of profiles": theirs},
        [f"node {row['node']} of profile {row['id']} {_LACKS[row['unknown']]}" for row in strays],
    )


_LACKS = {True: "is not known as theirs", False: "has no row that says since when"}


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


async def _choices(tx: Tx) -> Book:
    """messages say how many decisions were made about them; the decisions are there."""
    said = await tx.fetchval("SELECT coalesce(sum(decisions), 0)::bigint FROM dispatch.message")
    rows = await tx.fetch("SELECT act, count(*) FROM dispatch.decision GROUP BY 1 ORDER BY 1")
    strays = await tx.fetch(
        """
        SELECT m.id FROM dispatch.message m LEFT JOIN (
            SELECT message, count(*) AS count FROM dispatch.decision GROUP BY 1
        ) d ON d.message = m.id WHERE m.decisions <> coalesce(d.count, 0) LIMIT $1
        """,
        STRAYS,
    )
    return Book(
        "choices",
        {"counted by messages": said},
        {row["act"]: row["count"] for row in rows},
        [f"message {row[0]} lacks a decision" for row in strays],
    )


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
