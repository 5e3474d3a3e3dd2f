"""Dead letters do not stay for ever: they hold what people posted, and nobody looks at old ones."""

from __future__ import annotations

from datetime import datetime, timedelta

from shared.db import Database
from shared.events import MESSAGES

BATCH = 1_000
DROPPED = "dead_letter.drop"  # action in the change log; its subject is the id of the message or the run that was named
_ID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


async def drop_dead_letters(database: Database, now: datetime, days: int) -> int:
    """Deletes one batch of letters older than that many days and returns how many; what the books count is remembered, and
    of what triggers told dispatch also which message, or whose outcome, it was: an intent that lay here is not lost."""
    async with database.connection() as connection:
        count: int = await connection.fetchval(
            """
            WITH old AS (
                SELECT id FROM platform.dead_letter WHERE coalesce(replayed_at, at) < $1
                ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
            ), gone AS (
                DELETE FROM platform.dead_letter d USING old WHERE d.id = old.id
                RETURNING d.service, d.number, d.topic, d.state, encode(d.bytes, 'escape') AS said
            ), traced AS (
                INSERT INTO platform.change_log (id, at, principal, action, subject)
                SELECT gen_random_uuid(), $3, 'retention', $4, named.id FROM gone, LATERAL (
                    SELECT substring(said FROM CASE WHEN position('"record":"outcome"' IN said) > 0 THEN $5 ELSE $6 END) AS id
                ) named
                WHERE topic = $7 AND state <> 'replayed' AND position('"record":"cancelled"' IN said) = 0
                    AND named.id IS NOT NULL
            ), counted AS (
                INSERT INTO platform.dead_letter_dropped AS p (service, count)
                SELECT service, count(*) FROM gone WHERE number IS NOT NULL GROUP BY service
                ON CONFLICT (service) DO UPDATE SET count = p.count + excluded.count
            )
            SELECT count(*) FROM gone
            """,
            now - timedelta(days=days),
            BATCH,
            now,
            DROPPED,
            f'"run":"({_ID})"',
            f'"message":"({_ID})"',
            MESSAGES,
        )
    return count
