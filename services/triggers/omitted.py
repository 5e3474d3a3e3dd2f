"""Entries that had to be and are not: whoever lost an item of the queue, or a run with all its decisions.

Every occasion to enter by the watermark is put to the engine again as of its moment: each event that a rule is entered by,
the end of each idle time, each moment of a calendar. What was known of earlier runs is read from their decisions, so one
that is missing is told once and its consequences are not. Only what is certain is told: an occasion whose item still waits,
was dropped by hand, or came of a record that was put aside is passed over; so is an idle time within which something was
said about its rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from services.triggers import engine, idle, loading
from services.triggers.addresses import ASKING, addressed_by
from services.triggers.entries.schedule import ScheduleEntry
from services.triggers.queue import Item, ItemKind, idle_item_id
from services.triggers.run import Decided
from services.triggers.steps.base import Version, World
from services.triggers.store import expected as store
from services.triggers.store.rules import RuleBook
from services.triggers.store.schedules import skipped
from services.triggers.versions import Change, Rules
from shared.conditions import Moment, Needs
from shared.db import Database, Tx
from shared.facts.model import EventFact, Facts
from shared.ids import derived_id, run_id

PAGE = 500  # events, or people of a calendar's moment, looked at in one transaction
MICROSECOND = timedelta(microseconds=1)
OVERTAKEN = timedelta(hours=1)  # by how much a record of the same person may have come before an earlier one


@dataclass(frozen=True)
class Occasion:
    """Somebody may enter at T = `at`. `item`: under which id its item lay in the queue of `node`."""

    version: Version
    node: UUID
    at: datetime
    item: UUID
    event: EventFact | None = None

    @property
    def key(self) -> str:
        return str(self.event.id) if self.event is not None else self.at.isoformat()

    @property
    def run(self) -> UUID:
        return run_id(self.version.rule, self.node, self.key)

    def __str__(self) -> str:
        by = f"{self.event.name} {self.event.id}" if self.event is not None else "the calendar"
        return f"node {self.node} had to enter rule {self.version.rule} at {self.at.isoformat()} by {by}, and there is no run"


@dataclass
class Omitted:
    """`count` occasions were looked at; `missing` are those by which somebody had to enter and did not, of each person and
    rule the first: of the others nobody can say what would have come of them after it."""

    count: int = 0
    missing: list[Occasion] = field(default_factory=list)
    told: set[tuple[UUID, UUID]] = field(default_factory=set)

    def add(self, one: Occasion, nodes: Sequence[UUID]) -> None:
        """`nodes`: the person's at that moment."""
        of_person = {(one.version.rule, node) for node in nodes}
        if self.told.isdisjoint(of_person):
            self.missing.append(one)
        self.told |= of_person


async def omitted(database: Database, world: World, since: datetime, until: datetime) -> Omitted:
    """Looks at every occasion with T in [since, until), as far as the watermark has come."""
    found, book = Omitted(), RuleBook()
    after: store.Place | None = None
    while True:
        async with database.transaction("repeatable_read") as tx:
            reached = await store.watermark(tx)
            if reached is None:
                return found
            rules, before = await book.read(tx), min(reached + MICROSECOND, until)
            names = [(name, since - MICROSECOND - _longest(rules)) for name in _names(rules)]
            events = await store.live_events(tx, names, before - MICROSECOND, after, PAGE)
            asked = [one for event in events for one in _of_event(rules, event) if since <= one.at < before]
            await _ask(tx, asked, rules, world, found)
        if len(events) < PAGE:
            break
        after = (events[-1].node, events[-1].learned_at, events[-1].id)
    for version, due in _calendar(rules, world, since, before):
        await _of_moment(database, book, world, version, due, found)
    return found


# ── what there is to ask ──────────────────────────────────────────────────────────────────────────────────────────────
def _names(rules: Rules) -> list[str]:
    return sorted({name for version in rules.ever_active for name in version.document.enter.names})


def _longest(rules: Rules) -> timedelta:
    return timedelta(seconds=max(rules.longest_idle.values(), default=0.0))


def _of_event(rules: Rules, event: EventFact) -> Iterator[Occasion]:
    """By which rules somebody may enter because of this event, and when."""
    for rule in rules:
        version = rules.active(rule, event.learned_at)
        if version is None or not version.document.enter.matches(event):
            continue
        waits = version.document.enter.idle
        if waits is None:
            yield Occasion(version, event.node, event.learned_at, event.id, event)
        elif version.document.kind == "marketing":
            due = event.learned_at + waits
            if rules.at(rule, due) == rules.at(rule, event.learned_at):
                yield Occasion(version, event.node, due, idle_item_id(rule), event)


def _calendar(rules: Rules, world: World, since: datetime, before: datetime) -> Iterator[tuple[Version, datetime]]:
    """Every moment of every calendar in [since, before), by the version that was in force."""
    for rule in rules:
        changes = rules.changes(rule)
        for change, following in zip(changes, [*changes[1:], None], strict=True):
            version = rules.active(rule, change.valid_from)
            end = min(before, following.valid_from) if following is not None else before
            yield from _moments(change, version, world, since, end)


def _moments(
    change: Change, version: Version | None, world: World, since: datetime, end: datetime
) -> Iterator[tuple[Version, datetime]]:
    if version is None or not isinstance(version.document.enter, ScheduleEntry):
        return
    due = version.document.enter.next_after(max(change.valid_from, since) - MICROSECOND, world.zone)
    while due < end:
        yield version, due
        due = version.document.enter.next_after(due, world.zone)


async def _of_moment(
    database: Database, book: RuleBook, world: World, version: Version, due: datetime, found: Omitted
) -> None:
    """The people whom a moment of a calendar may mean, page by page; nothing while it waits to be expanded."""
    entry, cursor = version.document.enter, None
    assert isinstance(entry, ScheduleEntry) and entry.condition is not None
    while True:
        async with database.transaction("repeatable_read") as tx:
            rules = await book.read(tx)
            to_come = (await store.moments_to_come(tx, [version.rule])).get(version.rule)
            if to_come is None or to_come <= due or any(a <= due <= b for a, b in await skipped(tx, version.rule)):
                return
            moment = Moment(
                at=due, entered_at=due, zone=world.zone, topic=version.document.topic, holidays=rules.holidays.at(due)
            )
            people = await store.people_meant(tx, entry.condition, moment, cursor, PAGE)
            came = await store.entered_at(tx, version.rule, due)
            item = await store.schedule_item_id(tx, version.rule, due)
            asked = [Occasion(version, node, due, item) for _, node in people if node not in came]
            await _ask(tx, asked, rules, world, found)
            found.count += len(people) - len(asked)
        if len(people) < PAGE:
            return
        cursor = people[-1][0]


# ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def _ask(tx: Tx, asked: Sequence[Occasion], rules: Rules, world: World, found: Omitted) -> None:
    """Counts the occasions, and notes by which somebody had to enter who did not."""
    found.count += len(asked)
    there = await store.runs_decided(tx, [one.run for one in asked])
    open_ones = [one for one in asked if one.run not in there]
    if not open_ones:
        return
    waiting = await store.items_there(tx, [(one.node, one.item) for one in open_ones])
    open_ones = [one for one in open_ones if (one.node, one.item) not in waiting]
    whose = await loading.whose_were(tx, sorted({(one.node, one.at) for one in open_ones}))
    open_ones = await _quiet(tx, [one for one in open_ones if (one.node, one.at) in whose], rules, whose)
    needs: dict[loading.Moment, Needs] = {}
    for one in open_ones:
        needs[one.node, one.at] = needs.get((one.node, one.at), Needs()) | one.version.document.needs
    facts = await loading.facts_as_of(tx, needs)
    known = await store.known_at(tx, [_known_question(one, whose[one.node, one.at].nodes) for one in open_ones])
    entering = []
    for one, runs in zip(open_ones, known, strict=True):
        told = facts.get((one.node, one.at))
        if told is None or _forgotten(one, told, world):
            continue
        asking = engine.Asking(version=one.version, at=one.at, origin=one.node, key=one.key, event=one.event)
        if isinstance(engine.enter(asking, runs, told, rules.world(world)), Decided):
            entering.append(one)
    for one in await _unexplained(tx, entering):
        found.add(one, whose[one.node, one.at].nodes)


def _forgotten(one: Occasion, facts: Facts, world: World) -> bool:
    """Whether it was about an address that was purged since: nobody knows any more which runs were about it, too."""
    if one.event is None or one.event.name not in ASKING:
        return False
    addressed, _ = addressed_by(one.event, facts, world.country)
    return addressed is None or addressed.node is None


def _known_question(one: Occasion, nodes: Sequence[UUID]) -> tuple[UUID, Sequence[UUID], datetime, datetime]:
    """Transactional rules decide in the order in which records come: a run that entered soon after may have been first."""
    soon = timedelta(0) if one.version.document.kind == "marketing" else OVERTAKEN
    return one.version.rule, nodes, one.at, one.at + soon


async def _quiet(
    tx: Tx, asked: Sequence[Occasion], rules: Rules, whose: dict[loading.Moment, loading.Whose]
) -> list[Occasion]:
    """Without the idle times that were not quiet: another match came, or an event that stops."""
    idle_ones = {one.run: one for one in asked if one.version.document.enter.idle is not None}
    items = [
        Item(node=one.node, id=derived_id("asked", run), kind=ItemKind.IDLE, due=one.at, rule=one.version.rule)
        for run, one in idle_ones.items()
    ]
    happened = await loading.idle_events(tx, items, rules, whose)
    loud = set()
    for (run, one), item in zip(idle_ones.items(), items, strict=True):
        answer = idle.ask(one.version.document, one.at, happened.get((item.node, item.id), ()))
        if not isinstance(answer, idle.Quiet) or one.event is None or answer.last.id != one.event.id:
            loud.add(run)
    return [one for one in asked if one.run not in loud]


async def _unexplained(tx: Tx, entering: Sequence[Occasion]) -> list[Occasion]:
    if not entering:
        return []
    dropped = await store.dropped_by_hand(tx, [(one.node, one.item) for one in entering])
    unread = await store.never_read(tx, [one.event.id for one in entering if one.event is not None])
    return [
        one
        for one in entering
        if (one.node, one.item) not in dropped and (one.event is None or one.event.id not in unread)
    ]
