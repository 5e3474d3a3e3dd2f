"""Loads what decisions about a batch of people may know: a constant number of statements, whatever the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import msgspec

from services.triggers import idle
from services.triggers.material import Key, Material, Moment, Whose
from services.triggers.queue import ORDER_COMPLETED, Item, ItemKind, happened_of
from services.triggers.run import Known, Run
from services.triggers.steps.base import Happened, Version, World
from services.triggers.store import people
from services.triggers.versions import Rules
from shared import cdp
from shared.conditions import Needs
from shared.db import Tx
from shared.facts.model import EventFact, Facts

LOOK_BACK = timedelta(microseconds=1)


@dataclass
class Group:
    """Everybody who may be one person within the time that is looked at."""

    nodes: list[UUID]
    items: list[Item] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    known: list[Known] = field(default_factory=list)


async def load(
    tx: Tx, groups: Sequence[Group], rules: Rules, world: World, kind: str, whose: Mapping[Moment, Whose] | None = None
) -> Material:
    """Whose the items' nodes were (if the caller does not know), the events that idle timers ask for, and the facts as of
    each item's moment."""
    items = [item for group in groups for item in group.items]
    if whose is None:
        whose = await whose_were(tx, sorted({(item.node, item.due) for item in items}))
    asking = [item for item in items if item.kind == ItemKind.IDLE and (item.node, item.due) in whose]
    happened = await idle_events(tx, asking, rules, whose)
    questions: dict[Moment, Needs] = {}
    for group in groups:
        for item in group.items:
            needed = _needed(item, group, rules, happened, kind)
            if needed is not None and (item.node, item.due) in whose:
                moment = (item.node, item.due)
                questions[moment] = questions.get(moment, Needs()) | needed
    facts = await facts_as_of(tx, questions)
    return Material(rules=rules, world=rules.world(world), whose=whose, facts=facts, happened=happened)


async def add_runs(tx: Tx, groups: Sequence[Group]) -> None:
    """Puts their open runs, and what is to be known of all, to the groups. Their people must be locked."""
    group_of = {node: group for group in groups for node in group.nodes}
    runs, known = await people.runs_of(tx, sorted(group_of))
    for run in runs:
        group_of[run.origin].runs.append(run)
    for one in known:
        group_of[one.origin].known.append(one)


async def whose_were(tx: Tx, moments: Sequence[Moment]) -> dict[Moment, Whose]:
    """Whose each node was at its moment; nodes that nobody had are left out."""
    owners = await cdp.people_of(tx, moments)
    return {
        moment: Whose(person.profile, tuple(person.nodes))
        for moment, person in zip(moments, owners, strict=True)
        if person
    }


async def facts_as_of(tx: Tx, questions: Mapping[Moment, Needs]) -> dict[Moment, Facts]:
    """The facts as of each moment, with the events that were said to be needed."""
    if not questions:
        return {}
    asked = sorted(questions)
    found = await cdp.facts(tx, [_question(moment, questions[moment]) for moment in asked])
    return {moment: facts for moment, facts in zip(asked, found, strict=True) if facts is not None}


def _question(moment: Moment, needs: Needs) -> cdp.FactsQuestion:
    node, at = moment
    endless = needs.look_back is None or needs.entry
    since = None if endless else at - (needs.look_back or timedelta(0)) - LOOK_BACK
    return cdp.FactsQuestion(node=node, at=at, names=needs.names, since=since, suppressions=needs.suppressions)


def _needed(
    item: Item, group: Group, rules: Rules, happened: Mapping[Key, Sequence[Happened]], kind: str
) -> Needs | None:
    """What an item's decision must know; None if it needs no facts."""
    match item.kind:
        case ItemKind.MERGED:
            return None
        case ItemKind.EVENT:
            return _needed_by_event(item, group, rules, kind)
        case ItemKind.IDLE:
            version = rules.active(item.rule, item.due) if item.rule else None
            if version is None or version.document.enter.idle is None:
                return None
            answer = idle.ask(version.document, item.due, happened.get((item.node, item.id), ()))
            return _all_of([version]) if isinstance(answer, idle.Quiet) else None
        case ItemKind.SCHEDULE:
            version = rules.active(item.rule, item.due) if item.rule else None
            return _all_of([version]) if version else None
    run = next((run for run in group.runs if run.id == item.run), None)
    if run is None:
        return None
    mover = rules.mover(run.rule, run.version, item.due)
    if item.kind == ItemKind.REMOVED:
        return _all_of([mover]) if mover else None
    return _all_of([*_versions_of([run], rules), *([mover] if mover else [])])


def _needed_by_event(item: Item, group: Group, rules: Rules, kind: str) -> Needs | None:
    event = happened_of(item).event
    entering = [
        version
        for version in rules.all_active(item.due, kind)
        if version.document.enter.idle is None and version.document.enter.matches(event)
    ]
    # Somebody may have entered by an item before this one, so the rules in force count like the runs that are there.
    busy = bool(group.runs) or any(other.kind != ItemKind.EVENT for other in group.items) or len(group.items) > 1
    if not entering and not busy:
        return None
    return _all_of(
        [*entering, *_versions_of(group.runs, rules), *rules.all_active(item.due, kind)] if busy else entering
    )


def _versions_of(runs: Iterable[Run], rules: Rules) -> list[Version]:
    found = []
    for run in runs:
        try:
            found.append(rules.version(run.rule, run.version))
        except KeyError:
            continue
    return found


def _all_of(versions: Iterable[Version]) -> Needs:
    needs = Needs()
    for version in versions:
        needs |= version.document.needs
    return needs


# ── idle timers ───────────────────────────────────────────────────────────────────────────────────────────────────────
async def idle_events(
    tx: Tx, items: Sequence[Item], rules: Rules, whose: Mapping[Moment, Whose]
) -> dict[Key, Sequence[Happened]]:
    """By idle item (node, id) the person's events of the rule's entry and stop, from before the last match could lie, and
    those that may match by a version that came in force since: they arm the timer anew."""
    asked = [(item, names) for item in items if (names := _idle_names(rules, item))]
    if not asked:
        return {}
    found = await cdp.events_of(
        tx,
        [
            cdp.EventsQuestion(
                nodes=list(whose[item.node, item.due].nodes),
                names=names,
                learned_after=item.due - _longest_idle(rules, item) - LOOK_BACK,
            )
            for item, names in asked
        ],
    )
    counted = await order_moments(tx, [event for events in found for event in events])
    return {
        (item.node, item.id): [
            Happened(event=event, moment=counted.get(event.id, event.learned_at)) for event in events
        ]
        for (item, _), events in zip(asked, found, strict=True)
    }


async def armed_anew(tx: Tx, ended: Sequence[tuple[Item, datetime]], rules: Rules) -> list[Item]:
    """Idle timers that ended at a moment before they were due, as the first match of their node since then arms them."""
    waiting = [(item, at, names) for item, at in ended if (names := _names_since(rules, item.rule, at))]
    if not waiting:
        return []
    asked = [cdp.EventsQuestion(nodes=[item.node], names=names, learned_after=at) for item, at, names in waiting]
    armed = []
    for (item, at, _), events in zip(waiting, await cdp.events_of(tx, asked), strict=True):
        happened = [Happened(event=event, moment=event.learned_at) for event in events]
        if (due := idle.rearmed(at, happened, partial(rules.entered_by, item.rule))) is not None:
            armed.append(msgspec.structs.replace(item, due=due))
    return armed


def _idle_names(rules: Rules, item: Item) -> frozenset[str]:
    """The events that an idle timer asks for."""
    return _names_since(rules, item.rule, item.due)


def _names_since(rules: Rules, rule: UUID | None, moment: datetime) -> frozenset[str]:
    """The entry and stop events of a rule's versions in force at a moment or since, as far as they wait for an idle time."""
    if rule is None:
        return frozenset()
    waiting = [one.document for one in rules.active_since(rule, moment) if one.document.enter.idle is not None]
    entering = {name for document in waiting for name in document.enter.names}
    return frozenset(entering | {match.event for document in waiting for match in document.stop_matches})


def _longest_idle(rules: Rules, item: Item) -> timedelta:
    assert item.rule is not None
    return timedelta(seconds=rules.longest_idle.get(item.rule, 0.0))


async def order_moments(tx: Tx, events: Sequence[EventFact]) -> dict[UUID, datetime]:
    """By order event the moment at which its order counts as having happened: its first report from any source."""
    keys = {
        event.id: event.order_key for event in events if event.order_key is not None and event.name == ORDER_COMPLETED
    }
    first = await people.first_reports(tx, sorted(set(keys.values())))
    return {id: first[key] for id, key in keys.items() if key in first}
