"""Business time, as an argument.

Everything that a person could notice (when an event was received, when a timer is due, how old a cart is) takes its
time from a `Clock`. Infrastructure time (leases, timeouts, back-off) never does: it uses `time.monotonic` or the
database's own clock, because it must go on when business time stands still.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Protocol

MICROSECOND = timedelta(microseconds=1)


class Clock(Protocol):
    """Where business code asks for the time."""

    virtual: bool

    def now(self) -> datetime:
        """The present business moment, aware, in UTC, to the microsecond."""
        ...


class SystemClock:
    """The ordinary clock."""

    virtual = False

    def now(self) -> datetime:
        return datetime.now(UTC)


class VirtualClock:
    """A clock that only its driver moves, and only forwards; `release` lets it go on as the ordinary clock."""

    def __init__(self, start: datetime) -> None:
        self._now = start.astimezone(UTC)
        self.virtual = True

    def now(self) -> datetime:
        return self._now if self.virtual else max(self._now, datetime.now(UTC))

    def set(self, moment: datetime) -> None:
        """Moves to `moment`. Earlier moments are ignored: business time never runs backwards."""
        self._now = max(self._now, moment.astimezone(UTC))

    def release(self) -> None:
        """From here on this clock goes at the ordinary pace."""
        self.virtual = False


async def pause(seconds: float) -> None:
    """Infrastructure waiting (back-off, polling): real seconds, whatever business time does."""
    await asyncio.sleep(seconds)
