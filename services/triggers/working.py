"""The loops of triggers: claims, the calendar, and telling runs what became of their rule."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import structlog

from services.triggers import claims, schedules
from services.triggers.claims import Claimed, ClaimFailed
from services.triggers.metrics import CLAIMS, PUT_ASIDE
from services.triggers.steps.base import World
from services.triggers.store import queue
from services.triggers.store.rules import RuleBook
from shared import wake
from shared.clock import pause
from shared.errors import is_transient
from shared.outbox import write_free
from shared.service import Context, Loop

log = structlog.get_logger(__name__)
FALLBACK = 1.0  # seconds until a loop looks without having been woken
SCHEMA = "triggers"


class Worker:
    """What one process does about the queue; any number of processes may."""

    def __init__(self, context: Context, book: RuleBook, world: World, claimers: int) -> None:
        """:param claimers: claims that this process works on at the same time"""
        self._context, self._book, self._world, self._claimers = context, book, world, claimers
        self._busy = 0

    def loops(self) -> dict[str, Loop]:
        """By name. The first claimer hears of every watermark; the others only when there is work for several."""
        names = [[wake.WATERMARK, wake.TRIGGERS_DUE]] + [[wake.TRIGGERS_DUE]] * (self._claimers - 1)
        loops: dict[str, Loop] = {
            f"claim-{number}": partial(self._run, heard, self.claim) for number, heard in enumerate(names, start=1)
        }
        loops["schedule"] = partial(self._run, [wake.WATERMARK], self.keep_calendar)
        return loops

    @property
    def busy(self) -> bool:
        """Whether a claim is under way in this process."""
        return self._busy > 0

    async def _run(self, names: list[str], work: Callable[[], object]) -> None:
        listener = self._context.wake.listen(names)
        failures = 0
        try:
            while True:
                try:
                    more = await work()  # type: ignore[misc]
                    failures = 0
                except Exception as problem:
                    if not is_transient(problem):
                        raise
                    failures += 1
                    log.warning("triggers.retry", error=type(problem).__name__)
                    await pause(min(2.0, 0.02 * 2**failures))
                    continue
                if not more:
                    await listener.wait(FALLBACK)
        finally:
            listener.close()

    # ── claims ────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def claim(self) -> bool:
        """One claim; says whether there may be more at once. What fails for one person is put aside, the others go on."""
        self._busy += 1
        try:
            claimed = await self._claim(claims.PEOPLE)
        except Exception as problem:
            if is_transient(problem):
                raise
            log.error("triggers.claim_failed", exc_info=problem)
            claimed = await self._one_by_one()
        finally:
            self._busy -= 1
        if claimed.publish:
            self._context.wake.signal(wake.outbox(SCHEMA))
        if len(claimed.nodes) >= claims.PEOPLE:
            self._context.wake.signal(wake.TRIGGERS_DUE)  # there is work for the others, too
        if claimed.more:
            self._context.wake.signal(wake.MOVED, remote=False)
        return claimed.more

    async def _claim(self, limit: int) -> Claimed:
        started = time.perf_counter()
        async with self._context.database.transaction() as tx:
            claimed = await claims.claim(tx, self._book, self._world, self._context.clock.now(), limit)
            await self._context.hooks.reach("triggers.claimed")
            if claimed.publish:
                await write_free(tx, SCHEMA, claimed.nodes[0], claimed.publish)
        if claimed.more:
            CLAIMS.observe(time.perf_counter() - started)
        return claimed

    async def _one_by_one(self) -> Claimed:
        """A batch failed for a reason that is not its surroundings: its people again, one by one, until one fails alone."""
        done = Claimed()
        for _ in range(claims.PEOPLE):
            try:
                one = await self._claim(1)
            except ClaimFailed as problem:
                if is_transient(problem):
                    raise
                await self._put_aside(problem)
                return Claimed(more=True, publish=done.publish)
            done.publish += one.publish
            if not one.more:
                break
        return Claimed(more=True, publish=done.publish)

    async def _put_aside(self, problem: ClaimFailed) -> None:
        cause = problem.__cause__
        reason = f"{type(cause).__name__}: {cause}"[:500].replace("\x00", "")
        async with self._context.database.transaction() as tx:
            count = await queue.put_aside(tx, problem.nodes, problem.until, reason)
        PUT_ASIDE.inc(count)
        log.error("triggers.put_aside", items=count, nodes=[str(n) for n in problem.nodes], error=type(cause).__name__)

    # ── the calendar ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def keep_calendar(self) -> bool:
        """Expands a page of a moment that is due, and tells runs of rules that changed; says whether there may be more."""
        now, expanded, more = self._context.clock.now(), False, False
        async with self._context.database.connection() as connection:
            due, told = await queue.calendar_work(connection)
        if due:
            async with self._context.database.transaction() as tx:
                expanded = await schedules.expand(tx, self._book, self._world)
        if told:
            async with self._context.database.transaction() as tx:
                more = await schedules.sweep(tx, self._book, now, self._world)
        if expanded or told:
            self._context.wake.signal(wake.TRIGGERS_DUE)
        return expanded or more
