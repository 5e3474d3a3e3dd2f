"""Schedules: at each moment of a rule's calendar its people are put in the queue, once, before any claim goes past it."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from services.triggers.entries.schedule import ScheduleEntry
from services.triggers.steps.base import Version, World
from services.triggers.store import queue, schedules
from services.triggers.store.rules import RuleBook
from services.triggers.versions import Rules
from shared.conditions import Moment
from shared.db import Tx

PAGE = 5000  # profiles put in one transaction
SWEEP = 2000  # runs or timers told in one transaction
MICROSECOND = timedelta(microseconds=1)


async def expand(tx: Tx, book: RuleBook, world: World) -> bool:
    """One page of the earliest moment that is due; says whether there was one.

    The row of the schedule is locked meanwhile, and it moves to the next moment in the transaction that puts the last
    people in: so each moment is expanded once, and a claim that read the row never passes it.
    """
    row = await schedules.earliest_due(tx)
    if row is None:
        return False
    rule, due, cursor = row["rule"], row["due"], row["cursor"]
    rules = await book.read(tx)
    if rules.unreadable(rule, due):
        await schedules.hold_moment(tx, rule)
        return True
    version = scheduled(rules, rule, due)
    if version is None:
        await schedules.move_moment(tx, rule, None)
        return True
    entry = version.document.enter
    assert isinstance(entry, ScheduleEntry) and entry.condition is not None
    expected = entry.next_after(due - MICROSECOND, world.zone)
    if expected != due:  # the calendar was edited
        await schedules.move_moment(tx, rule, expected)
        return True
    moment = Moment(
        at=due, entered_at=due, zone=world.zone, topic=version.document.topic, holidays=rules.holidays.at(due)
    )
    count, last = await schedules.put_people(tx, rule, entry.condition, moment, cursor, PAGE)
    if count < PAGE:
        await schedules.move_moment(tx, rule, entry.next_after(due, world.zone))
    else:
        await schedules.move_moment(tx, rule, due, last)
    return True


def scheduled(rules: Rules, rule: UUID, due: datetime) -> Version | None:
    """The version whose calendar counts at a moment; None while the rule is not active or has no calendar."""
    version = rules.active(rule, due)
    return version if version is not None and version.document.enter.trigger == "schedule" else None


async def release_moments(tx: Tx, rules: Rules, world: World) -> bool:
    """Releases moments that were held because nobody could read their rule, where it can be read now; says whether there
    were any. One that is not older than the rule's `max_age` is expanded as if nothing had been, else the next one counts."""
    released = False
    for row in await schedules.held_moments(tx):
        rule, due, reached = row["rule"], row["due"], row["watermark"]
        if rules.unreadable(rule, reached):
            continue
        released, version = True, scheduled(rules, rule, reached)
        if version is None:
            await schedules.move_moment(tx, rule, None)  # who activates it again sets the next one
            await schedules.note_skipped(tx, rule, due, reached)
        elif rules.unreadable(rule, due) or due < reached - version.document.max_age:
            entry = version.document.enter
            assert isinstance(entry, ScheduleEntry)
            await schedules.move_moment(tx, rule, entry.next_after(reached, world.zone))
            await schedules.note_skipped(tx, rule, due, reached)
        else:
            await schedules.move_moment(tx, rule, due, row["cursor"])
    return released


async def sweep(tx: Tx, book: RuleBook, now: datetime, world: World) -> bool:
    """Tells runs of archived rules, and of versions that an edit ends, to end, and those that it moves to move; and lets
    timers of rules that go on again be due. Says whether there may be more."""
    more = False
    for change in await queue.unswept(tx):
        told, rule, version = 0, change["rule"], change["version"]
        if change["state"] == "archived":
            told = await queue.sweep_runs(tx, rule, None, now, SWEEP)
        elif change["state"] == "active" and change["on_edit"] == "stop":
            told = await queue.sweep_runs(tx, rule, version, now, SWEEP)
        elif change["state"] == "active" and change["on_edit"] == "move":
            steps = (await book.read(tx)).steps_of(rule, version)
            told = await queue.sweep_runs(tx, rule, version, now, SWEEP, steps)
        if told < SWEEP:
            await queue.mark_swept(tx, change["rule"], change["number"])
        more = more or told >= SWEEP
    held = await queue.held_rules(tx)
    more = await release_moments(tx, await book.read(tx), world) or more
    if held:
        rules = await book.read(tx)
        unreadable = {rule for rule, _ in book.unreadable}
        going = [
            rule for rule in held if rule not in unreadable and (at := rules.at(rule, now)) and at.state != "paused"
        ]
        if going:
            more = await queue.release_items(tx, going, now, SWEEP) >= SWEEP or more
    return more
