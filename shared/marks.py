"""Marks and the watermark, as seen from the transactions that need them. The keeper makes them (`shared.keeper`).

A *mark* (F, E) says: at business moment F the ends of the bus topic `events` were E. A record whose number is not below
E[p] was appended after the mark was made; so it is learned after F. See design §3, Time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from shared.db import Tx
from shared.ids import lock_key

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
MARK_LOCK = lock_key("mark", "all")


class Marks:
    """The marks that matter to some records. Ends rise with F, so the marks of a partition are sorted by both."""

    def __init__(self, rows: Iterable[tuple[int, int, datetime]]) -> None:
        """:param rows: (partition, end, F), sorted"""
        self._ends: dict[int, list[int]] = {}
        self._moments: dict[int, list[datetime]] = {}
        for partition, end, moment in rows:
            self._ends.setdefault(partition, []).append(end)
            self._moments.setdefault(partition, []).append(moment)

    def of(self, partition: int, number: int) -> datetime | None:
        """The latest F whose end is not above `number`; None if every mark is younger than the record."""
        place = bisect_right(self._ends.get(partition, ()), number)
        return self._moments[partition][place - 1] if place else None


async def marks_for(tx: Tx, epoch: str, spans: Mapping[int, tuple[int, int]]) -> Marks:
    """Reads the marks for a batch, within its transaction and after it was fetched (one statement).

    :param spans: the first and the last number of each partition
    """
    rows = await tx.fetch(
        """
        SELECT s.partition, m.e, m.f
        FROM unnest($2::int[], $3::bigint[], $4::bigint[]) AS s(partition, first, last)
        CROSS JOIN LATERAL (
            SELECT ends[s.partition + 1] AS e, f FROM platform.mark
            WHERE epoch = $1 AND ends[s.partition + 1] > s.first AND ends[s.partition + 1] <= s.last
            UNION ALL
            (SELECT ends[s.partition + 1], f FROM platform.mark
             WHERE epoch = $1 AND ends[s.partition + 1] <= s.first ORDER BY f DESC LIMIT 1)
        ) m
        ORDER BY s.partition, m.f
        """,
        epoch,
        list(spans),
        [first for first, _ in spans.values()],
        [last for _, last in spans.values()],
    )
    return Marks(tuple(row) for row in rows)


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
