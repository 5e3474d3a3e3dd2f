"""A process that holds no partition, because others hold them all, waits; the watchdog must not take it for a stuck one."""

from __future__ import annotations

import time

from services.profile.service import build
from services.watchdog import POLL_LIMIT, Watchdog
from tests.support.contexts import context_for, running
from tests.support.wait import until


async def test_a_stand_by_without_partitions_is_alive(database_url: str) -> None:
    async with context_for(database_url) as context:
        async with context.database.transaction() as tx:
            for topic in ("events", "history"):
                for partition in range(4):
                    await tx.execute(
                        "INSERT INTO platform.lease (name, pool, holder, expires_at)"
                        " VALUES ($1, $2, 'another', clock_timestamp() + interval '1 hour')",
                        f"profile:{topic}:{partition}",
                        f"profile:{topic}",
                    )
        service = await build(context)
        polls = service.polls()
        polls["events"] = time.monotonic() - 2 * POLL_LIMIT
        watchdog = Watchdog(lambda: [service])
        assert watchdog._look(time.monotonic()) is not None, "a consumer that stands still is told"
        async with running(service.loops):
            await until(lambda: watchdog._look(time.monotonic()) is None)
