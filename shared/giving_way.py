"""History gives way: an import must not keep anybody's letter waiting."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from shared.clock import pause

SHARE = 5  # while live events wait, a process spends at most a fifth of its time on history
LOOK_SECONDS = 0.05  # between two looks whether they still wait


class GivingWay:
    """After a batch of history that took `t` seconds, the next one waits for 4 t, unless no live event waits.

    :param live_waits: whether any is appended and not handled yet, by whatever process
    """

    def __init__(self, live_waits: Callable[[], Awaitable[bool]]) -> None:
        self._live_waits = live_waits
        self._rested = 0.0

    async def rest(self) -> None:
        """Returns when history may be handled."""
        while time.monotonic() < self._rested and await self._live_waits():
            await pause(LOOK_SECONDS)

    def worked(self, seconds: float) -> None:
        """A batch of history was handled just now, and took so long."""
        self._rested = time.monotonic() + (SHARE - 1) * seconds
