"""Making and changing rules: each change is one short transaction, with its row in the change log.

A change is valid two seconds after its transaction began, and its transaction lives at most one: so whoever decides at a
moment from *valid from* on has seen it. The caller is answered once it is valid.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from services.triggers.catalogue import Catalogue
from services.triggers.diffing import differences
from services.triggers.entries.schedule import ScheduleEntry
from services.triggers.rule import Rule, read
from services.triggers.steps.base import World
from services.triggers.store import rules as store
from services.triggers.store import schedules
from shared.auth import Principal, log_change
from shared.clock import pause
from shared.conditions import ConditionError
from shared.db import Tx
from shared.errors import Problem
from shared.holidays import add_holidays, newest_holidays
from shared.ids import uuid7
from shared.service import Context

VALID_AFTER = timedelta(seconds=2)
LONGEST = 1.0  # seconds that a changing transaction may live
LOOK = 0.05  # seconds between two looks at the clock
MICROSECOND = timedelta(microseconds=1)
State = Literal["draft", "active", "paused", "archived"]


@dataclass(frozen=True)
class Saved:
    """What became of a rule. `result`: created | changed | unchanged."""

    id: UUID
    name: str
    version: int
    state: str
    valid_from: datetime
    result: str
    differences: list[dict[str, Any]]


class Editor:
    """The changes that the management API offers."""

    def __init__(self, context: Context, world: World) -> None:
        self._context, self._world = context, world

    async def create(self, document: Any, principal: Principal, *, activate: bool = False) -> Saved:
        """A new rule. Raises Problem 422 for what is wrong with the document, 409 for a name that is taken."""
        rule = understood(document)
        async with self._changing() as (tx, now):
            saved = await self._create(tx, rule, principal, now, activate)
        await self._until_valid([saved])
        return saved

    async def edit(self, reference: str, document: Any, principal: Principal) -> Saved:
        """A new version of a rule, in force at once if the rule is active; nothing if the document says the same."""
        async with self._changing() as (tx, now):
            row = await self._found(tx, reference)
            saved = await self._edit(tx, row, document, principal, now)
        await self._until_valid([saved])
        return saved

    async def set_state(self, reference: str, state: State, principal: Principal) -> Saved:
        """Activates (with the newest version), pauses or archives a rule."""
        async with self._changing() as (tx, now):
            row = await self._found(tx, reference)
            saved = await self._set_state(tx, row, state, principal, now)
        await self._until_valid([saved])
        return saved

    async def apply(self, documents: list[Any], principal: Principal, *, activate: bool) -> list[Saved]:
        """Rules by name, each created or edited; all documents are understood before the first is saved.

        With `activate` every rule that is not active becomes so (archived ones, too), and what they all name must be there.
        Answered once all are valid.
        """
        rules = [understood(document, [index]) for index, document in enumerate(documents)]
        if activate:
            async with self._context.database.connection() as connection:
                known = Catalogue.of(await store.read_catalogue(connection))
            for index, rule in enumerate(rules):
                refuse_unknown_names(known, rule, [index])
        saved = [await self._apply_one(document, principal, activate) for document in documents]
        await self._until_valid(saved)
        return saved

    async def set_holidays(self, days: Collection[date], principal: Principal) -> Any:
        """A new version of the shop's holidays, in force like a rule's version; the row (`shared.holidays`). The same days
        again make no version."""
        async with self._changing() as (tx, now):
            stored = await newest_holidays(tx)
            if stored is not None and stored["days"] == sorted(set(days)):
                return stored
            valid_from = now if self._context.clock.virtual else now + VALID_AFTER
            row = await add_holidays(tx, days, valid_from, principal.name, now)
            before = [day.isoformat() for day in stored["days"]] if stored else None
            after = [day.isoformat() for day in row["days"]]
            await log_change(tx, principal, "holidays.set", "holidays", before, after, now)
        await self._until(row["valid_from"])
        return row

    async def _apply_one(self, document: Any, principal: Principal, activate: bool) -> Saved:
        async with self._changing() as (tx, now):
            row = await store.find_rule(tx, document["name"], lock=True)
            if row is None:
                return await self._create(tx, understood(document), principal, now, activate)
            saved = await self._edit(tx, row, document, principal, now)
            if activate and saved.state != "active":
                row = await self._found(tx, str(saved.id))
                changed = await self._set_state(tx, row, "active", principal, now)
                result = "changed" if saved.result == "unchanged" else saved.result
                return Saved(**{**vars(changed), "result": result, "differences": saved.differences})
            return saved

    # ── within the transaction ────────────────────────────────────────────────────────────────────────────────────────
    async def _create(self, tx: Tx, rule: Rule, principal: Principal, now: datetime, activate: bool) -> Saved:
        id = uuid7(now, self._context.bits)
        if not await store.add_rule(tx, id, rule.name, rule.kind, now):
            raise name_taken(rule.name)
        version = await store.add_version(tx, id, rule.document, principal.name, now)
        state: State = "active" if activate else "draft"
        valid = await self._say(tx, id, state, version, rule, principal, now)
        await log_change(tx, principal, "rule.create", str(id), None, {"state": state, "document": rule.document}, now)
        return Saved(id, rule.name, version, state, valid, "created", [])

    async def _edit(self, tx: Tx, row: Any, document: Any, principal: Principal, now: datetime) -> Saved:
        stored = await newest_document(tx, row)
        rule = understood(document, stored=stored)
        if rule.kind != row["kind"]:
            raise Problem(
                422,
                "The rule is not valid",
                errors=[{"pointer": "#/kind", "detail": f"a rule stays {row['kind']}: make a new one of another kind"}],
            )
        changes = differences(stored, rule.document)
        if not changes:
            return Saved(row["id"], row["name"], row["version"], row["state"], row["valid_from"], "unchanged", [])
        if rule.name != row["name"]:
            await self._rename(tx, row["id"], rule.name)
        version = await store.add_version(tx, row["id"], rule.document, principal.name, now)
        valid = await self._say(tx, row["id"], row["state"], version, rule, principal, now)
        await log_change(tx, principal, "rule.edit", str(row["id"]), stored, rule.document, now)
        return Saved(row["id"], rule.name, version, row["state"], valid, "changed", changes)

    async def _rename(self, tx: Tx, rule: UUID, name: str) -> None:
        if await store.find_rule(tx, name) is not None:
            raise name_taken(name)
        await store.rename(tx, rule, name)

    async def _set_state(self, tx: Tx, row: Any, state: State, principal: Principal, now: datetime) -> Saved:
        version: int = row["newest"]
        if row["state"] == state and row["version"] == version:
            return Saved(row["id"], row["name"], version, state, row["valid_from"], "unchanged", [])
        if row["state"] == "draft" and state == "paused":
            raise Problem(409, "The rule is a draft", "Only an active rule can be paused; activate it first.")
        rule = Rule(await newest_document(tx, row))
        valid = await self._say(tx, row["id"], state, version, rule, principal, now)
        await log_change(tx, principal, f"rule.{state}", str(row["id"]), {"state": row["state"]}, {"state": state}, now)
        return Saved(row["id"], row["name"], version, state, valid, "changed", [])

    async def _say(
        self, tx: Tx, id: UUID, state: str, version: int, rule: Rule, principal: Principal, now: datetime
    ) -> datetime:
        """What is in force from when on; and the first moment of its calendar. Raises Problem 422 where a rule that would be
        active names a template or an offer that is not there."""
        if state == "active":
            refuse_unknown_names(Catalogue.of(await store.read_catalogue(tx)), rule)
        valid_from = now if self._context.clock.virtual else now + VALID_AFTER
        valid = await store.add_change(tx, id, state, version, valid_from, principal.name)
        if state == "active" and isinstance(rule.enter, ScheduleEntry):
            await schedules.set_moment(tx, id, rule.enter.next_after(valid - MICROSECOND, self._world.zone))
        return valid

    async def _found(self, tx: Tx, reference: str) -> Any:
        row = await store.find_rule(tx, reference, lock=True)
        if row is None:
            raise no_such_rule(reference)
        return row

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[tuple[Tx, datetime]]:
        """A transaction that is over, one way or the other, a second after the moment it gives."""
        async with asyncio.timeout(LONGEST), self._context.database.transaction() as tx:
            yield tx, self._context.clock.now()

    async def _until_valid(self, saved: list[Saved]) -> None:
        """Waits until what was saved is in force (drafts are not). Virtual time does not pass by waiting for it."""
        valid = [one.valid_from for one in saved if one.state != "draft"]
        if valid:
            await self._until(max(valid))

    async def _until(self, moment: datetime) -> None:
        while not self._context.clock.virtual and self._context.clock.now() < moment:
            await pause(LOOK)


def understood(document: Any, place: list[str | int] | None = None, stored: dict[str, Any] | None = None) -> Rule:
    """The document as a rule. Raises Problem 422 with the JSON pointer of what is wrong."""
    try:
        return read(document, stored)
    except ConditionError as error:
        pointer = "#" + "".join(f"/{part}" for part in place or []) + error.pointer
        raise Problem(422, "The rule is not valid", errors=[{"pointer": pointer, "detail": error.message}]) from error


def refuse_unknown_names(known: Catalogue, rule: Rule, place: list[str | int] | None = None) -> None:
    """Raises Problem 422 with a pointer to each step that names what is not there."""
    prefix = "".join(f"/{part}" for part in place or [])
    faults = [{**fault, "pointer": f"#{prefix}{fault['pointer'][1:]}"} for fault in known.faults(rule)]
    if faults:
        raise Problem(
            422, "The rule cannot be activated", f"The rule {rule.name!r} names what is not there.", errors=faults
        )


async def newest_document(tx: Tx, row: Any) -> dict[str, Any]:
    """The document of a rule's newest version."""
    if row["version"] == row["newest"]:
        return dict(row["document"])
    (newest,) = await store.versions_of(tx, row["id"], below=None, limit=1)
    return dict(newest["document"])


def no_such_rule(reference: str) -> Problem:
    return Problem(404, "No such rule", f"There is no rule with the id or name {reference!r}.")


def name_taken(name: str) -> Problem:
    return Problem(409, "The name is taken", f"There is a rule called {name!r} already; edit it, or take another name.")
