"""Marks and the watermark, as seen from the transactions that need them. The keeper makes them (`shared.keeper`).

A *mark* (F, E) says: at business moment F the ends of the bus topic `events` were E. A record whose number is not below
E[p] was appended after the mark was made; so it is learned after F. See design §3, Time.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, datetime

from shared.db import Tx
from shared.ids import lock_key

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
MARK_LOCK = lock_key("mark", "all")


class Marks:
    """The marks that matter to the records `first…last` of one partition."""

    def __init__(self, rows: list[tuple[int, datetime]]) -> None:
        self._ends = [end for end, _ in rows]
        self._moments = [moment for _, moment in rows]

    def of(self, number: int) -> datetime | None:
        """The latest F whose end is not above `number`; None if every mark is younger than the record."""
        place = bisect_right(self._ends, number)
        return self._moments[place - 1] if place else None


async def marks_for(tx: Tx, epoch: str, partition: int, first: int, last: int) -> Marks:
    """Reads the marks for a batch, within its transaction and after it was fetched (one statement).

    Ends rise with F, so the marks are sorted by both.
    """
    rows = await tx.fetch(
        """
        WITH marks AS (SELECT ends[$2 + 1] AS e, f FROM platform.mark WHERE epoch = $1 AND ends[$2 + 1] <= $4)
        SELECT e, f FROM marks WHERE e > $3
        UNION ALL (SELECT e, f FROM marks WHERE e <= $3 ORDER BY f DESC LIMIT 1)
        ORDER BY f
        """,
        epoch,
        partition,
        first,
        last,
    )
    return Marks([(row[0], row[1]) for row in rows])


async def hold_mark(tx: Tx) -> datetime:
    """For what profile writes without a record of `events`: takes the lock "mark" shared, before any row lock, and
    returns the latest mark; what is written is learned after it.

    From here on the transaction waits 100 ms at most for a lock (then roll back and try again): the keeper waits for it.
    """
    await tx.execute("SELECT pg_advisory_xact_lock_shared($1)", MARK_LOCK)
    await tx.execute("SET LOCAL lock_timeout = '100ms'")
    return await tx.fetchval("SELECT max(f) FROM platform.mark") or BEGINNING


async def read_watermark(tx: Tx) -> datetime:
    """The moment up to which everything received has been handled; the beginning of time when there is none yet."""
    return await tx.fetchval("SELECT value FROM platform.watermark") or BEGINNING
