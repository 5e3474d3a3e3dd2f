"""How long work holds the event loop: what else runs on it (answers to people, leases, opt-outs) waits meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Held:
    """Seconds of this thread's own CPU time between two turns of the loop: what other processes take of the machine meanwhile is
    not in them."""

    turns: list[float] = field(default_factory=list)

    @property
    def longest(self) -> float:
        return max(self.turns, default=0.0)


@asynccontextmanager
async def watching() -> AsyncIterator[Held]:
    """Looks as long as the block runs."""
    held = Held()

    async def look() -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            held.turns.append(now - before)
            before = now

    looking = asyncio.create_task(look())
    await asyncio.sleep(0)
    try:
        yield held
        await asyncio.sleep(0.002)  # the turn in which the work ended is looked at, too
    finally:
        looking.cancel()
