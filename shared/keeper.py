"""The keeper makes marks and moves the watermark (design §3, Time). One lease: it runs in one process at a time.

A mark (F, E) is made every 200 ms and waits for nothing: F is taken, then the ends E of `events` are read, both are
committed. Then it goes through its stages, each independently of the marks that come after it:

1. E′: the ends read after the commit (and after every writer that read an older mark has ended: the lock "mark").
2. profile's positions have reached E′.
3. profile's outbox rows of that moment are published.
4. triggers' positions have reached the ends of `profile-events` read after that.

Then F is through: nothing with learned-at ≤ F can still appear, and triggers has heard of everything up to F.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import asyncpg
import structlog

from shared import db
from shared import wake as signals
from shared.clock import MICROSECOND, pause
from shared.consumer import read_positions
from shared.errors import is_transient
from shared.events import EVENTS, PROFILE_EVENTS
from shared.marks import BEGINNING, MARK_LOCK
from shared.metrics import WATERMARK_AGE
from shared.service import Context, Loop

log = structlog.get_logger(__name__)
MOST_PENDING = 600  # marks under way; beyond it the middle ones are left out, the watermark then moves in larger steps
STALE = 60.0  # seconds behind the clock that are worth an alarm
LEASE = "keeper"


@dataclass
class Pending:
    """A mark on its way. Each field is filled when the stage before it is passed."""

    moment: datetime
    ends: Mapping[int, int] | None = None
    outbox: Mapping[str, int] | None = None
    profile_events: Mapping[int, int] | None = None


class Keeper:
    """`loops` belong to one process that runs profile; the lease says which of several works."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pool = context.leases.pool(LEASE, [LEASE])
        self._pending: deque[Pending] = deque()
        self._watermark: datetime | None = None
        self._last_mark = BEGINNING
        self._locker: asyncpg.Connection | None = None
        self._made = asyncio.Event()
        self._passed = asyncio.Event()
        self._alarmed = False

    def loops(self) -> dict[str, Loop]:
        return {"marks": self._mark_loop, "ends": self._ends_loop, "stages": self._stages_loop}

    async def close(self) -> None:
        if self._locker is not None:
            self._locker.terminate()

    # ── marks ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _mark_loop(self) -> None:
        interval = self._context.settings.mark_interval_ms / 1000
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if self._pool.held and not self._context.clock.virtual:
                await self._surviving(partial(self.mark, None))
                due = max(due + interval, loop.time())
                await pause(due - loop.time())
            elif not self._pool.held:
                self._forget()
                await self._wait_for_lease()
                due = loop.time()
            else:
                await pause(0.05)

    async def _wait_for_lease(self) -> None:
        self._pool.changed.clear()
        try:
            async with asyncio.timeout(0.5):
                await self._pool.changed.wait()
        except TimeoutError:
            pass

    async def mark(self, moment: datetime | None) -> datetime:
        """Makes a mark at `moment` (None: the clock's present) and returns its F."""
        context = self._context
        if self._watermark is None:
            await self._begin()
        f = max(moment or context.clock.now(), self._last_mark + MICROSECOND)
        ends = await context.bus.ends(EVENTS)
        async with context.database.connection() as connection:
            await connection.execute(
                "INSERT INTO platform.mark (f, epoch, ends) VALUES ($1, $2, $3)",
                f,
                context.bus.epoch(EVENTS),
                [ends.get(number, 0) for number in range(context.bus.partitions(EVENTS))],
            )
        self._last_mark = f
        self._pending.append(Pending(f))
        if len(self._pending) > MOST_PENDING:
            del self._pending[MOST_PENDING // 2]
        self._made.set()
        return f

    async def close_at(self, moment: datetime) -> None:
        """Virtual time: marks at `moment` and returns when the watermark has reached it."""
        f = await self.mark(moment)
        while self._watermark is None or self._watermark < f:
            self._passed.clear()
            async with asyncio.timeout(60):
                await self._passed.wait()

    async def _begin(self) -> None:
        """Begins from what is stored: the watermark, and a last mark that the next one must lie after."""
        async with self._context.database.connection() as connection:
            await connection.execute(
                "INSERT INTO platform.watermark (value) VALUES ($1) ON CONFLICT DO NOTHING", BEGINNING
            )
            self._watermark = await connection.fetchval("SELECT value FROM platform.watermark")
            last = await connection.fetchval("SELECT max(f) FROM platform.mark")
        self._last_mark = max(filter(None, [last, self._watermark, BEGINNING]))
        self._pending.clear()

    def _forget(self) -> None:
        self._watermark = None
        self._pending.clear()

    # ── E′ ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _ends_loop(self) -> None:
        """One request of the lock for all marks committed before it; marking goes on meanwhile."""
        while True:
            await self._made.wait()
            self._made.clear()
            waiting = [pending for pending in self._pending if pending.ends is None]
            if not waiting:
                continue

            async def read_ends(waiting: list[Pending] = waiting) -> None:
                await self._wait_for_writers()
                ends = await self._context.bus.ends(EVENTS)
                for pending in waiting:
                    pending.ends = ends
                self._context.wake.signal(signals.MOVED, remote=False)

            if not await self._surviving(read_ends):
                self._made.set()

    async def _wait_for_writers(self) -> None:
        """Takes the lock "mark" exclusively for an instant: whoever read an older mark has committed by then."""
        if self._locker is None or self._locker.is_closed():
            self._locker = await db.connect(
                self._context.database.url, f"{self._context.member}/keeper", role=self._context.database.role
            )
        await self._locker.execute("SELECT pg_advisory_xact_lock($1)", MARK_LOCK)

    # ── the stages ─────────────────────────────────────────────────────────────────────────────────────────────────
    async def _stages_loop(self) -> None:
        listener = self._context.wake.listen([signals.MOVED])
        try:
            while True:
                if self._pending and self._watermark is not None:
                    await self._surviving(self._advance)
                await listener.wait(0.2 if self._pending else 1.0)
        finally:
            listener.close()

    async def _advance(self) -> None:
        """Moves every mark through the stages that are passed; commits the greatest that is through."""
        through: datetime | None = None
        async with self._context.database.connection() as connection:
            profile: Mapping[int, int] | None = None
            unpublished: dict[str, tuple[int, int]] | None = None
            triggers: Mapping[int, int] | None = None
            for pending in list(self._pending):
                if pending.ends is None:
                    break
                if pending.outbox is None:
                    if profile is None:
                        profile = await read_positions(
                            connection, "profile", "profile", self._context.bus.epoch(EVENTS), EVENTS
                        )
                        unpublished = None  # to be read after the positions
                    if not _reached(profile, pending.ends):
                        break
                    # Read after the positions: a row written by the same transaction is there.
                    unpublished = await self._unpublished(connection) if unpublished is None else unpublished
                    pending.outbox = {shard: last for shard, (_, last) in unpublished.items()}
                if pending.profile_events is None:
                    unpublished = await self._unpublished(connection) if unpublished is None else unpublished
                    if any(unpublished.get(shard, (last + 1, 0))[0] <= last for shard, last in pending.outbox.items()):
                        break
                    pending.profile_events = await self._context.bus.ends(PROFILE_EVENTS)
                if triggers is None:
                    triggers = await read_positions(
                        connection, "triggers", "triggers", self._context.bus.epoch(PROFILE_EVENTS), PROFILE_EVENTS
                    )
                if not _reached(triggers, pending.profile_events):
                    break
                through = pending.moment
            if through is not None:
                await self._move(connection, through)
        self._look_at_age()

    async def _unpublished(self, connection: db.Tx) -> dict[str, tuple[int, int]]:
        """Shard → least and greatest number of profile's outbox rows."""
        rows = await connection.fetch("SELECT shard, min(number), max(number) FROM profile.outbox GROUP BY shard")
        return {shard: (first, last) for shard, first, last in rows}

    async def _move(self, connection: db.Tx, through: datetime) -> None:
        moved = await connection.fetchval(
            "UPDATE platform.watermark SET value = $1, moved_at = clock_timestamp() WHERE value = $2 RETURNING true",
            through,
            self._watermark,
        )
        if not moved:
            log.warning("keeper.refused", reason="the watermark was moved by somebody else")
            self._forget()
            return
        self._watermark = through
        while self._pending and self._pending[0].moment <= through:
            self._pending.popleft()
        await connection.execute("DELETE FROM platform.mark WHERE f < $1", through)
        self._passed.set()
        self._context.wake.signal(signals.WATERMARK)

    def _look_at_age(self) -> None:
        if self._watermark is None or self._watermark == BEGINNING or self._context.clock.virtual:
            return
        age = (self._context.clock.now() - self._watermark).total_seconds()
        WATERMARK_AGE.set(age)
        if age > STALE and not self._alarmed:
            first = self._pending[0] if self._pending else None
            log.error("keeper.watermark_is_old", seconds=round(age), waits_for=_stage(first))
        self._alarmed = age > STALE

    async def lagging(self) -> list[str]:
        """The partitions that hold the watermark back, as `group:topic/partition`."""
        first = self._pending[0] if self._pending else None
        if first is None or first.ends is None:
            return []
        async with self._context.database.connection() as connection:
            if first.outbox is None:
                there, wanted, name = (
                    await read_positions(connection, "profile", "profile", self._context.bus.epoch(EVENTS), EVENTS),
                    first.ends,
                    "profile:events",
                )
            elif first.profile_events is not None:
                there, wanted, name = (
                    await read_positions(
                        connection, "triggers", "triggers", self._context.bus.epoch(PROFILE_EVENTS), PROFILE_EVENTS
                    ),
                    first.profile_events,
                    "triggers:profile-events",
                )
            else:
                return [f"profile's outbox: {shard}" for shard in await self._unpublished(connection)]
        return [f"{name}/{partition}" for partition, end in wanted.items() if end > there.get(partition, 0)]

    async def _surviving(self, act: partial | object) -> bool:
        """Runs `act`; a transient error is logged and answered with False, after a short pause."""
        try:
            await act()  # type: ignore[operator]
        except Exception as problem:
            if not is_transient(problem):
                raise
            log.warning("keeper.retry", error=type(problem).__name__)
            if self._locker is not None and not self._locker.is_closed():
                self._locker.terminate()
            self._locker = None
            await pause(0.2)
            return False
        return True


def _reached(positions: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    return all(positions.get(partition, 0) >= end for partition, end in ends.items())


def _stage(pending: Pending | None) -> str:
    if pending is None or pending.ends is None:
        return "the ends of events"
    if pending.outbox is None:
        return "profile's positions"
    if pending.profile_events is None:
        return "profile's outbox"
    return "triggers' positions"
