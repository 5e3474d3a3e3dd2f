"""Virtual time: business time in slices of a quarter of an hour, closed one by one.

The shop posts events while the clock stands at their time. At the end of a slice its driver closes it at end − 1 µs: the
keeper marks at that moment, and the next slice begins when the watermark is there and everything due by then is done. So
events come before the timers of the same moment, and every decision falls as it would have fallen in real time. Slices
in which nothing is waiting and nothing becomes due are skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

from services.run import Server
from shared import wake as signals
from shared.clock import MICROSECOND, VirtualClock

SLICE = timedelta(minutes=15)
LIMIT = 120.0  # seconds that one slice may take before we say what it waits for


class StuckSlice(RuntimeError):
    """A slice did not become quiet; the text names the services that still have work."""


class VirtualTime:
    """Moves the clock of one server. All four services must run in it."""

    def __init__(self, server: Server, clock: VirtualClock, slice: timedelta = SLICE) -> None:
        if server.keeper is None or len(server.services) < 4:
            raise ValueError("virtual time needs all four services in one process")
        self._server, self._clock, self._slice, self._keeper = server, clock, slice, server.keeper
        self._closed = clock.now()
        self.slices = 0
        self._listener = server.context.wake.listen(
            [
                signals.MOVED,
                signals.WATERMARK,
                signals.TRIGGERS_DUE,
                signals.DISPATCH_DUE,
                signals.SENDER_DUE,
                signals.ANSWERED,
            ]
        )

    def go_to(self, moment: datetime) -> datetime:
        """Sets the clock to the time of what is posted next; never backwards. Returns the clock's time."""
        self._clock.set(moment)
        return self._clock.now()

    async def close(self, until: datetime, on_slice: Callable[[datetime], None] | None = None) -> None:
        """Closes every slice that ends at or before `until` and has anything to do, and the last one."""
        waiting = True  # something may have been posted since the last call
        while self._closed < until:
            end = min(self._end_of_slice(self._closed), until)
            if not waiting:
                due = await self._next_due()
                if due is None or due >= until:
                    end = until
                elif due > end:
                    end = min(self._end_of_slice(due), until)
            await self._close_one(end)
            if on_slice is not None:
                on_slice(end)
            waiting = False

    def _end_of_slice(self, moment: datetime) -> datetime:
        since = moment - datetime(1970, 1, 1, tzinfo=moment.tzinfo)
        return moment + (self._slice - since % self._slice)

    async def _close_one(self, end: datetime) -> None:
        moment = end - MICROSECOND
        self._clock.set(moment)
        try:
            async with asyncio.timeout(LIMIT):
                await self._keeper.close_at(self._clock.now())
                while busy := await self._busy():
                    await self._listener.wait(0.05)
        except TimeoutError:
            raise StuckSlice(
                f"the slice that ends {end:%Y-%m-%d %H:%M} does not become quiet; it waits for "
                f"{', '.join(busy) if (busy := await self._busy()) else ', '.join(await self._keeper.lagging())}"
            ) from None
        self._closed = end
        self.slices += 1

    async def _busy(self) -> list[str]:
        for service in self._server.services.values():
            if service.quiet is not None and not await service.quiet():
                return [service.name]
        return []

    async def _next_due(self) -> datetime | None:
        moments = [
            await service.next_due() for service in self._server.services.values() if service.next_due is not None
        ]
        return min((moment for moment in moments if moment is not None), default=None)
