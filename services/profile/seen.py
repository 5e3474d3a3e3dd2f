"""How long an event is known to have been seen."""

from __future__ import annotations

from datetime import timedelta

from services.profile.store.locking import forget_seen
from shared.clock import pause
from shared.events import REMEMBERED
from shared.service import Context

BATCH = 5_000
EVERY = 86_400.0  # seconds
# Ingest refuses what is older than REMEMBERED; what it let through the moment before may lie on the bus for a while.
ON_THE_WAY = timedelta(days=7)


async def forget_daily(context: Context) -> None:
    """Once a day, and never at the start, when there is more urgent work."""
    while True:
        await pause(EVERY)
        while await forget_old(context):
            pass


async def forget_old(context: Context, batch: int = BATCH) -> int:
    """Forgets one small batch, so that no insert waits for long; returns how many events."""
    async with context.database.transaction() as tx:
        return await forget_seen(tx, context.clock.now() - REMEMBERED - ON_THE_WAY, batch)
