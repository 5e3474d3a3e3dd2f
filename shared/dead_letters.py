"""Dead letters do not stay for ever: they hold what people posted, and nobody looks at old ones."""

from __future__ import annotations

from datetime import datetime, timedelta

from shared.db import Database

BATCH = 1_000


async def drop_dead_letters(database: Database, now: datetime, days: int) -> int:
    """Deletes one batch of letters older than that many days and returns how many; what the books count is remembered."""
    async with database.connection() as connection:
        count: int = await connection.fetchval(
            """
            WITH old AS (
                SELECT id FROM platform.dead_letter WHERE coalesce(replayed_at, at) < $1
                ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
            ), gone AS (
                DELETE FROM platform.dead_letter d USING old WHERE d.id = old.id RETURNING d.service, d.number
            ), counted AS (
                INSERT INTO platform.dead_letter_dropped AS p (service, count)
                SELECT service, count(*) FROM gone WHERE number IS NOT NULL GROUP BY service
                ON CONFLICT (service) DO UPDATE SET count = p.count + excluded.count
            )
            SELECT count(*) FROM gone
            """,
            now - timedelta(days=days),
            BATCH,
        )
    return count
