"""Who of the base meets a rule's condition now: counted by its reading in SQL, within a time that the database holds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg

from shared.conditions import Condition, Moment, compile_sql, members_sql
from shared.db import Database, Tx

LONGEST = 10  # seconds that one statement of a preview may take


class TooLong(RuntimeError):
    """The database was stopped at `LONGEST`."""


@dataclass(frozen=True)
class Resting:
    """Whom a rule would not let in again at once: `rule` None: nobody has been in it. `never`: whoever was in it; `after`:
    whose last run ended less than this ago; who is inside in any case. `subject`: only runs about it count; None: all."""

    rule: UUID | None
    never: bool = False
    after: timedelta | None = None
    subject: str | None = None


_PRESENT = "m.from_at <= {at} AND (m.to_at IS NULL OR m.to_at > {at})"


@asynccontextmanager
async def bounded(database: Database) -> AsyncIterator[Tx]:
    """A snapshot in which no statement takes longer than `LONGEST`. Raises TooLong."""
    try:
        async with database.transaction("repeatable_read") as tx:
            await tx.execute(f"SET LOCAL statement_timeout = '{LONGEST}s'")
            yield tx
    except asyncpg.QueryCanceledError as error:
        raise TooLong from error


async def count_people(tx: Tx, moment: Moment) -> int:
    """How many people are known at the moment."""
    found: int = await tx.fetchval(
        f"SELECT count(DISTINCT m.profile) FROM cdp.membership m WHERE {_PRESENT.format(at='$1')}", moment.at
    )
    return found


async def count_members(tx: Tx, condition: Condition, moment: Moment, resting: Resting) -> Any:
    """`certain`, `resting` of these, and `undecided`: whom Python must look at."""
    found = members_sql(condition, moment)
    return await tx.fetchrow(
        f"""
        WITH met AS MATERIALIZED ({found.sql}), resting AS MATERIALIZED ({_resting(len(found.params))})
        SELECT count(*) FILTER (WHERE certain) AS certain, count(*) FILTER (WHERE NOT certain) AS undecided,
               count(*) FILTER (WHERE certain AND profile IN (SELECT profile FROM resting)) AS resting
        FROM met
        """,
        *found.params,
        *_arguments(moment, resting),
    )


async def undecided(tx: Tx, condition: Condition, moment: Moment, resting: Resting, limit: int) -> list[Any]:
    """`profile, node, resting` of those whom SQL cannot decide, at most `limit`."""
    found = compile_sql(condition, moment)
    place = len(found.params)
    return await tx.fetch(
        f"""
        WITH met AS ({found.sql}), resting AS MATERIALIZED ({_resting(place)})
        SELECT profile, node, profile IN (SELECT profile FROM resting) AS resting FROM met WHERE NOT certain
        LIMIT ${place + 6}
        """,
        *found.params,
        *_arguments(moment, resting),
        limit,
    )


async def some(tx: Tx, condition: Condition, moment: Moment, limit: int) -> list[Any]:
    """`profile, node` of a few who may meet the condition."""
    found = compile_sql(condition, moment, limit=limit)
    return await tx.fetch(found.sql, *found.params)


async def inside(tx: Tx, rule: UUID) -> list[Any]:
    """`step, version, people`: where the live runs of a rule stand."""
    return await tx.fetch(
        """
        SELECT state -> 'path' ->> -1 AS step, version, count(*) AS people FROM triggers.run
        WHERE open AND ended_at IS NULL AND rule = $1 GROUP BY 1, 2 ORDER BY 2, 1
        """,
        rule,
    )


def _resting(place: int) -> str:
    """The profiles that the rule would not let in; its parameters come after `place` others."""
    at, rule, never, after, subject = (f"${place + number}" for number in range(1, 6))
    present = _PRESENT.format(at=f"{at}::timestamptz")
    return f"""
        SELECT m.profile FROM triggers.run r JOIN cdp.membership m ON m.node = r.node AND {present}
        WHERE r.rule = {rule}::uuid AND ({subject}::text IS NULL OR r.subject = {subject})
            AND coalesce(r.ended_as, '') NOT IN ('merged', 'erased') AND r.erased_at IS NULL
            AND (r.ended_at IS NULL OR {never}::bool OR r.ended_at + {after}::interval > {at}::timestamptz)"""


def _arguments(moment: Moment, resting: Resting) -> tuple[Any, ...]:
    return moment.at, resting.rule, resting.never, resting.after, resting.subject
