"""What triggers told dispatch, message by message and run by run, and what dispatch made of it.

Triggers' side is read in the snapshot of the other books; dispatch's side later, when it has handled what was published by
then. Every row is matched by its id, so that no other row can stand in for one that is lost.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from uuid import UUID

from services.audit.books import Book
from shared.bus.base import Bus
from shared.clock import pause
from shared.db import Database, Tx
from shared.dead_letters import DROPPED
from shared.events import MESSAGES

PATIENCE = 30.0  # seconds to wait for intents on their way
STRAYS = 10  # named at most
PAGE = 500  # dead letters read at once
_ID = rb'"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"'
_MESSAGE, _RUN = re.compile(rb'"message":' + _ID), re.compile(rb'"run":' + _ID)


@dataclass
class Told:
    """What triggers' decisions say was published: ids of messages that were intended, and of runs whose outcome was told.
    `shards`: up to which row the outbox held what was not published yet. `handled`: dispatch has had all of it."""

    messages: list[UUID]
    runs: list[UUID]
    shards: dict[str, int] = field(default_factory=dict)
    handled: bool = True


async def read_told(tx: Tx) -> Told:
    """Triggers' side. What was decided about people who were erased, or whose address was purged, tells nothing any more."""
    messages = await tx.fetch(
        """
        SELECT DISTINCT (effect -> 'intended' ->> 'message')::uuid
        FROM triggers.decision, jsonb_array_elements(effects) AS effect WHERE effect ? 'intended'
        """
    )
    runs = await tx.fetch(
        "SELECT DISTINCT run FROM triggers.decision, jsonb_array_elements(effects) AS e WHERE e ? 'outcome'"
    )
    shards = await tx.fetch("SELECT shard, max(number) FROM triggers.outbox GROUP BY shard")
    return Told([row[0] for row in messages], [row[0] for row in runs], dict(shards))


async def wait_until_handled(database: Database, bus: Bus, told: Told) -> None:
    """Waits until these rows are published and dispatch has handled what the bus held then; at most half a minute."""
    deadline = time.monotonic() + PATIENCE
    ends: dict[int, int] | None = None
    while time.monotonic() < deadline:
        async with database.connection() as connection:
            if ends is None:
                left = await connection.fetchval(
                    "SELECT count(*) FROM triggers.outbox o JOIN unnest($1::text[], $2::bigint[]) AS s(shard, number)"
                    " ON o.shard = s.shard AND o.number <= s.number",
                    list(told.shards),
                    list(told.shards.values()),
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
    told.handled = False


async def intent_books(tx: Tx, told: Told) -> list[Book]:
    """Dispatch's side: every intent is a message or a dead letter that names it, every outcome likewise; and nothing is
    there that nobody wanted."""
    lost = await _ids(tx, _NOT_INTENDED, told.messages)
    untold = await _ids(tx, _NO_OUTCOME, told.runs)
    aside = await _named_by_dead_letters(tx, {*lost, *untold}) if lost or untold else set()
    late = [] if told.handled else [f"dispatch had not handled everything after {PATIENCE:.0f} s: count again"]
    return [
        _book("intents", len(told.messages), lost, aside, "message {} was intended and is not there", late),
        await _messages(tx),
        _book("outcomes", len(told.runs), untold, aside, "the outcome of run {} was told and is not there", late),
    ]


# A cancel that overtook its intent has left a row, but that is not the intent.
_NOT_INTENDED = """
    SELECT i.id FROM unnest($1::uuid[]) AS i(id)
    WHERE NOT EXISTS (SELECT 1 FROM dispatch.message m WHERE m.id = i.id AND m.intended) ORDER BY i.id
"""
_NO_OUTCOME = """
    SELECT i.id FROM unnest($1::uuid[]) AS i(id)
    WHERE NOT EXISTS (SELECT 1 FROM dispatch.outcome o WHERE o.run = i.id) ORDER BY i.id
"""


async def _ids(tx: Tx, query: str, asked: list[UUID]) -> list[UUID]:
    return [row[0] for row in await tx.fetch(query, asked)]


def _book(name: str, wanted: int, lost: list[UUID], aside: set[UUID], text: str, late: list[str]) -> Book:
    strays = [id for id in lost if id not in aside]
    return Book(
        name,
        {"told by triggers": wanted},
        {"known to dispatch": wanted - len(lost), "dead letters": len(lost) - len(strays)},
        [*(text.format(id) for id in strays[:STRAYS]), *(late if strays else [])],
    )


async def _named_by_dead_letters(tx: Tx, lost: set[UUID]) -> set[UUID]:
    """Those of the ids that a dead letter names which nobody has replayed: it, or the trace of one that was deleted by age,
    is where they are. A replayed letter is a record of the bus again and excuses nothing; a cancel is no intent."""
    found = set()
    for row in await tx.fetch("SELECT subject FROM platform.change_log WHERE action = $1", DROPPED):
        found.add(UUID(row["subject"]))
    after = UUID(int=0)
    while True:
        rows = await tx.fetch(
            """
            SELECT id, bytes FROM platform.dead_letter
            WHERE topic = $1 AND state <> 'replayed' AND id > $2
                AND position('"record":"cancelled"'::bytea IN bytes) = 0 ORDER BY id LIMIT $3
            """,
            MESSAGES,
            after,
            PAGE,
        )
        for row in rows:  # its bytes may be no JSON at all: that may be why it lies there
            naming = _RUN if b'"record":"outcome"' in row["bytes"] else _MESSAGE
            found |= {UUID(id.decode()) for id in naming.findall(row["bytes"])}
        if len(rows) < PAGE:
            return found & lost
        after = rows[-1]["id"]


# What an erasure or a purge took out of the decisions is still known by its run; what was intended in the gap of a restore,
# by its time: its decisions went with the old database, or were made again.
_WANTED = """
    WITH wanted AS (
        SELECT DISTINCT (effect -> 'intended' ->> 'message')::uuid AS id
        FROM triggers.decision, jsonb_array_elements(effects) AS effect WHERE effect ? 'intended'
    ), forgotten AS (
        SELECT DISTINCT run FROM triggers.decision WHERE erased AND run IS NOT NULL
    )
    SELECT m.id, m.state, m.reason_code, CASE
        WHEN w.id IS NOT NULL THEN 'wanted by triggers' WHEN f.run IS NOT NULL THEN 'of people forgotten since'
        WHEN m.decided_at BETWEEN d.backup_at AND d.restored_at THEN 'of the gap of a restore' END AS why
    FROM dispatch.message m LEFT JOIN wanted w ON w.id = m.id LEFT JOIN forgotten f ON f.run = m.run
    CROSS JOIN platform.deployment d WHERE m.intended
"""


async def _messages(tx: Tx) -> Book:
    """messages that somebody wanted = messages by what became of them. Both sides are of one moment, later than the other
    books': a decision is committed before its intent is published."""
    wanted = await tx.fetch(f"SELECT why, count(*) FROM ({_WANTED}) m WHERE why IS NOT NULL GROUP BY 1 ORDER BY 1 DESC")
    states = await tx.fetch(
        f"""
        SELECT CASE WHEN state = 'withheld' THEN 'withheld: ' || coalesce(reason_code, '?') ELSE state END AS state, count(*)
        FROM ({_WANTED}) m GROUP BY 1 ORDER BY 1
        """
    )
    strays = await tx.fetch(f"SELECT id FROM ({_WANTED}) m WHERE why IS NULL ORDER BY id LIMIT $1", STRAYS)
    return Book(
        "messages",
        {row["why"]: row["count"] for row in wanted} or {"wanted by triggers": 0},
        {row["state"]: row["count"] for row in states},
        [f"message {row[0]} is there and no decision of triggers wanted it" for row in strays],
    )
