"""The calendar of rules: the one moment to come of each, and putting its people in the queue."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from services.triggers.queue import ItemKind
from shared.conditions import Condition, Moment, compile_sql
from shared.db import Tx


async def set_moment(tx: Tx, rule: UUID, due: datetime) -> None:
    """The rule's next moment; an earlier one that still waits stays (what is in force then decides about it)."""
    await tx.execute(
        """
        INSERT INTO triggers.schedule AS s (rule, due) VALUES ($1, $2)
        ON CONFLICT (rule) DO UPDATE SET due = excluded.due, cursor = NULL, held = false
        WHERE excluded.due < s.due OR s.held
        """,
        rule,
        due,
    )


async def move_moment(tx: Tx, rule: UUID, due: datetime | None, cursor: UUID | None = None) -> None:
    """The rule's moment after this one, or how far this one is expanded; None: no moment is to come."""
    if due is None:
        await tx.execute("DELETE FROM triggers.schedule WHERE rule = $1", rule)
    else:
        await tx.execute(
            "UPDATE triggers.schedule SET due = $2, cursor = $3, held = false WHERE rule = $1", rule, due, cursor
        )


async def hold_moment(tx: Tx, rule: UUID) -> None:
    """The moment waits for a program that can read the rule; claims go past it meanwhile."""
    await tx.execute("UPDATE triggers.schedule SET held = true WHERE rule = $1", rule)


async def held_moments(tx: Tx) -> list[Any]:
    """`rule, due, cursor, watermark` of the moments that are held, locked."""
    return await tx.fetch(
        """
        SELECT s.rule, s.due, s.cursor, w.value AS watermark FROM triggers.schedule s, platform.watermark w
        WHERE s.held ORDER BY s.rule FOR UPDATE OF s SKIP LOCKED
        """
    )


SKIPPED = "schedule.skip"


async def note_skipped(tx: Tx, rule: UUID, since: datetime, until: datetime) -> None:
    """Writes down that nobody was put in for the rule's moments in [since, until]: so that they are not missed afterwards."""
    await tx.execute(
        """
        INSERT INTO platform.change_log (id, at, principal, action, subject, "before", "after")
        VALUES (gen_random_uuid(), $3, 'triggers', $1, $2, jsonb_build_object('since', $4::timestamptz),
            jsonb_build_object('until', $3::timestamptz))
        """,
        SKIPPED,
        str(rule),
        until,
        since,
    )


async def skipped(tx: Tx, rule: UUID) -> list[tuple[datetime, datetime]]:
    """The times in which moments of the rule's calendar were left out."""
    rows = await tx.fetch(
        """
        SELECT ("before" ->> 'since')::timestamptz AS since, ("after" ->> 'until')::timestamptz AS until
        FROM platform.change_log WHERE action = $1 AND subject = $2
        """,
        SKIPPED,
        str(rule),
    )
    return [(row["since"], row["until"]) for row in rows]


async def earliest_due(tx: Tx) -> Any | None:
    """The earliest moment that the watermark has reached, locked; None if there is none, or another worker has it."""
    return await tx.fetchrow(
        """
        SELECT s.rule, s.due, s.cursor FROM triggers.schedule s, platform.watermark w
        WHERE s.due <= w.value AND NOT s.held ORDER BY s.due, s.rule LIMIT 1 FOR UPDATE OF s SKIP LOCKED
        """
    )


async def put_people(
    tx: Tx, rule: UUID, condition: Condition, moment: Moment, cursor: UUID | None, limit: int
) -> tuple[int, UUID | None]:
    """Puts an item for the next `limit` profiles that may meet the condition at the moment; how many, and the last one.

    An item lies under the person's strongest, then oldest node; the condition is judged again when it is handled.
    """
    found = compile_sql(condition, moment, after=cursor, limit=limit)
    place = len(found.params)
    row = await tx.fetchrow(
        f"""
        WITH people AS MATERIALIZED ({found.sql}), put AS (
            INSERT INTO triggers.item (node, id, kind, due, rule)
            SELECT node, md5('schedule:' || ${place + 1}::uuid || ':' || ${place + 2}::timestamptz)::uuid, ${place + 3}::smallint,
                   ${place + 2}::timestamptz, ${place + 1}::uuid
            FROM people ORDER BY node
            ON CONFLICT DO NOTHING
        )
        SELECT count(*) AS count, (SELECT profile FROM people ORDER BY profile DESC LIMIT 1) AS last FROM people
        """,
        *found.params,
        rule,
        moment.at,
        int(ItemKind.SCHEDULE),
    )
    return row["count"], row["last"]
