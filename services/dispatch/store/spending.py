"""The cost ledger, its sums, and what channels may still spend.

The ledger is what the attempts say: an attempt that was taken, or may have been, costs what the provider says, else the
price that was expected; one that turned out not to have been taken costs nothing. Days are the shop's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from uuid import UUID
from zoneinfo import ZoneInfo

from services.dispatch.inputs import Left
from shared.db import Tx


def day_of(now: datetime, zone: str) -> date:
    """The shop's day of a moment."""
    return now.astimezone(ZoneInfo(zone)).date()


async def settle(tx: Tx, attempts: Sequence[tuple[UUID, int]], now: datetime, day: date) -> None:
    """Brings the ledger and its sums to what these (message, attempt's number) say by now. The messages' rows must be
    locked."""
    await _settle(
        tx,
        """
        SELECT a.message, a.number, a.channel, a.adapter, m.rule, a.outcome IN ('sent', 'unknown') AS taken,
               coalesce(a.charged, a.cost) AS amount
        FROM unnest($1::uuid[], $2::int[]) AS w(message, number)
        JOIN dispatch.attempt a USING (message, number) JOIN dispatch.message m ON m.id = a.message
        """,
        sorted(set(attempts)),
        now,
        day,
    )


async def settle_tests(tx: Tx, tests: Sequence[UUID], now: datetime, day: date) -> None:
    """The same for test messages, whose rows must be locked."""
    await _settle(
        tx,
        """
        SELECT t.id, w.number, t.channel, t.adapter, NULL::uuid, t.outcome IN ('sent', 'unknown') AS taken,
               coalesce(t.charged, t.cost) AS amount
        FROM unnest($1::uuid[], $2::int[]) AS w(id, number) JOIN dispatch.test t USING (id)
        """,
        sorted((test, 0) for test in set(tests)),
        now,
        day,
    )


async def _settle(tx: Tx, attempts: str, wanted: Sequence[tuple[UUID, int]], now: datetime, day: date) -> None:
    await tx.execute(
        f"""
        WITH said(message, number, channel, adapter, rule, taken, amount) AS ({attempts}), old AS (
            SELECT c.message, c.number, c.amount FROM dispatch.charge c JOIN said USING (message, number)
        ), written AS (
            INSERT INTO dispatch.charge AS c (message, number, channel, adapter, rule, amount, at, day)
            SELECT s.message, s.number, s.channel, s.adapter, s.rule, CASE WHEN s.taken THEN s.amount ELSE 0 END, $3, $4
            FROM said s LEFT JOIN old o USING (message, number) WHERE s.taken OR o.message IS NOT NULL
            ORDER BY s.message, s.number
            ON CONFLICT (message, number) DO UPDATE SET amount = excluded.amount WHERE c.amount <> excluded.amount
            RETURNING c.message, c.number, c.channel, c.day, c.amount
        )
        INSERT INTO dispatch.spent AS t (channel, day, amount)
        SELECT w.channel, w.day, sum(w.amount - coalesce(o.amount, 0))
        FROM written w LEFT JOIN old o USING (message, number)
        GROUP BY w.channel, w.day ORDER BY w.channel, w.day
        ON CONFLICT (channel, day) DO UPDATE SET amount = t.amount + excluded.amount
        """,
        [message for message, _ in wanted],
        [number for _, number in wanted],
        now,
        day,
    )


async def read_left(tx: Tx, day: date) -> dict[str, Left]:
    """By channel, for those with a ceiling. What is chosen or being called and not in the ledger yet counts as spent."""
    rows = await tx.fetch(
        """
        SELECT c.name, (c.budget ->> 'day')::numeric AS day, (c.budget ->> 'month')::numeric AS month,
               coalesce(s.today, 0) + coalesce(o.amount, 0) AS today,
               coalesce(s.this_month, 0) + coalesce(o.amount, 0) AS this_month
        FROM dispatch.channel c
        LEFT JOIN LATERAL (
            SELECT sum(amount) FILTER (WHERE day = $1) AS today, sum(amount) AS this_month FROM dispatch.spent
            WHERE channel = c.name AND day >= date_trunc('month', $1::date)::date AND day <= $1
        ) s ON true
        LEFT JOIN LATERAL (
            SELECT sum(cost) AS amount FROM dispatch.message
            WHERE channel = c.name AND (state = 'claimed' AND chosen_at IS NOT NULL OR state = 'calling')
        ) o ON true
        WHERE c.budget ?| ARRAY['day', 'month']
        """,
        day,
    )
    found: dict[str, Left] = {}
    for row in rows:
        limits = [
            Left(row[ceiling] - row[spent], ceiling, row[ceiling])
            for ceiling, spent in (("day", "today"), ("month", "this_month"))
            if row[ceiling] is not None
        ]
        if limits:
            found[row["name"]] = min(limits, key=lambda left: left.amount)
    return found
