"""Schedules: at each moment of a rule's calendar its people are put in the queue, once, before any claim goes past it."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

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
    version, expected = scheduled(rules, rule, due), next_moment(rules, rule, due, world.zone)
    if version is None or expected != due:  # it was paused, or its calendar edited
        await schedules.move_moment(tx, rule, expected)
        return True
    entry = version.document.enter
    assert isinstance(entry, ScheduleEntry) and entry.condition is not None
    moment = Moment(
        at=due, entered_at=due, zone=world.zone, topic=version.document.topic, holidays=rules.holidays.at(due)
    )
    count, last = await schedules.put_people(tx, rule, entry.condition, moment, cursor, PAGE)
    if count < PAGE:
        await schedules.move_moment(tx, rule, next_moment(rules, rule, due + MICROSECOND, world.zone))
    else:
        await schedules.move_moment(tx, rule, due, last)
    return True


def next_moment(rules: Rules, rule: UUID, since: datetime, zone: ZoneInfo) -> datetime | None:
    """The first moment of the rule's calendar at or after `since`, by the version that is in force then; None if none is to
    come. What was said of the rule after `since` counts already, as the moments it set may have passed unseen: whoever
    sets one leaves an earlier one that waits. From where nobody here can read the calendar on, that place itself."""
    changes = rules.changes(rule)
    for change, following in zip(changes, [*changes[1:], None], strict=True):
        begin, end = max(change.valid_from, since), following.valid_from if following is not None else None
        if change.state != "active" or (end is not None and end <= begin):
            continue
        if rules.unreadable(rule, begin):
            return begin
        version = scheduled(rules, rule, begin)
        if version is None:
            continue
        assert isinstance(version.document.enter, ScheduleEntry)
        due = version.document.enter.next_after(begin - MICROSECOND, zone)
        if end is None or due < end:
            return due
    return None


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
        if version is None or rules.unreadable(rule, due) or due < reached - version.document.max_age:
            await schedules.move_moment(tx, rule, next_moment(rules, rule, reached + MICROSECOND, world.zone))
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
