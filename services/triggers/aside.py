"""What was put aside is tried again, or dropped by hand: then a run that waited for it ends, so that none waits for ever."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from services.triggers import claims, engine, loading
from services.triggers.changes import Changes, Decision
from services.triggers.material import Whose
from services.triggers.metrics import ASIDE_SETTLED, count
from services.triggers.queue import ItemKind
from services.triggers.steps.base import World
from services.triggers.store import aside as store
from services.triggers.store import people, queue
from services.triggers.store.rules import RuleBook
from shared import wake
from shared.auth import Principal, log_change
from shared.db import Tx
from shared.errors import Problem
from shared.facts.model import Facts
from shared.outbox import write_free
from shared.service import Context

SCHEMA = "triggers"
WHY = "what it waited for could not be handled, and was dropped by hand"


class Aside:
    """What the management API may do about them."""

    def __init__(self, context: Context, book: RuleBook, world: World) -> None:
        self._context, self._book, self._world = context, book, world

    async def retry(self, principal: Principal, node: UUID | None = None, id: UUID | None = None) -> int:
        """Puts one (or all) back into the queue: decided as of its own moment. Says how many; 404 if there is no such one."""
        now = self._context.clock.now()
        async with self._context.database.transaction() as tx:
            retried = await store.retry_aside(tx, node, id)
            if node is not None and not retried:
                raise no_such_item()
            if retried:
                subject = f"{node}/{id}" if node else "all"
                await log_change(tx, principal, "aside.retry", subject, None, {"items": retried}, now)
        ASIDE_SETTLED.labels("retried").inc(retried)
        self._context.wake.signal(wake.TRIGGERS_DUE)
        return retried

    async def drop(self, principal: Principal, node: UUID, id: UUID) -> None:
        """Takes one out for good; a run whose timer it is ends (of a goal window's: is closed without an outcome)."""
        now = self._context.clock.now()
        async with self._context.database.transaction() as tx:
            until, _ = await queue.claim_moment(tx)
            at = until or now
            whose = (await loading.whose_were(tx, [(node, at)])).get((node, at))
            await people.lock_nodes(tx, sorted({node, *(whose.nodes if whose else ())}))
            row = await store.find_aside(tx, node, id)
            if row is None:
                raise no_such_item()
            changes = await self._ended(tx, row, at, whose)
            await claims.write(tx, changes, now)
            await queue.drop_items(tx, [(node, id)])
            await log_change(tx, principal, "aside.drop", f"{node}/{id}", {"reason": row["reason"]}, None, now)
            count(changes)
            published = await write_free(tx, SCHEMA, node, claims.records(changes))
        ASIDE_SETTLED.labels("dropped").inc()
        if published:
            self._context.wake.signal(wake.outbox(SCHEMA))

    async def _ended(self, tx: Tx, row: Any, at: datetime, whose: Whose | None) -> Changes:
        changes = Changes()
        runs, _ = await people.runs_of(tx, [row["node"]])
        run = next((run for run in runs if run.id == row["run"]), None)
        if run is None or whose is None:
            return changes
        try:
            version = (await self._book.read(tx)).version(run.rule, run.version)
        except KeyError:
            detail = "The run's rule was written by another version of the program, which must end it."
            raise Problem(409, "The rule cannot be read", detail) from None
        window = row["kind"] == ItemKind.GOAL
        stimulus = engine.Removed("dropped", WHY, window)
        facts = Facts(profile=whose.profile, nodes=list(whose.nodes), as_of=at)
        found = engine.advance(run, stimulus, at, facts, version, self._world)
        if found is not None:
            changes.runs[run.id] = (found.run, run.number)
            cause = {"kind": "dropped", "window": window}
            changes.decisions.append(
                Decision(at, version, run.number, found, whose, cause, run.origin, found.what, WHY, found.seen)
            )
        return changes


def no_such_item() -> Problem:
    return Problem(404, "No such item", "Nothing of this node and id is put aside (any more).")
