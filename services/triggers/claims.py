"""A claim: what is due up to the watermark, for many people at once, in one transaction and in one order per person.

The watermark's promise is that nothing learned up to it can still appear. So under the locks of everybody who may have
been one person meanwhile, their items can be handled in the order of their moments, live as derived.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from services.triggers import loading
from services.triggers.changes import Changes, Decision, timer_changes
from services.triggers.deciding import Person
from services.triggers.effects import outgoing
from services.triggers.loading import Group
from services.triggers.material import Material
from services.triggers.metrics import count
from services.triggers.queue import Item
from services.triggers.steps.base import World
from services.triggers.store import people, queue
from services.triggers.store.rules import RuleBook
from shared import cdp
from shared.bus.base import Outgoing
from shared.db import Tx
from shared.errors import DriplineError

PEOPLE = 200  # nodes with something due that one claim begins with
WITHOUT_A_PAUSE = 32  # people who are decided about in one turn of the event loop: more would hold it too long
ROUNDS = 5  # how often a claim looks further back before it leaves somebody to the next


@dataclass
class Claimed:
    """What a claim did. `more`: there may be more at once; `publish`: what goes to the outbox, last before COMMIT."""

    until: datetime | None = None
    nodes: list[UUID] = field(default_factory=list)
    handled: int = 0
    decisions: int = 0
    more: bool = False
    publish: list[Outgoing] = field(default_factory=list)


class ClaimFailed(DriplineError):
    """What was to be done about these nodes' people failed; the cause says why."""

    def __init__(self, nodes: Sequence[UUID], until: datetime) -> None:
        super().__init__(f"a claim of {len(nodes)} nodes failed")
        self.nodes, self.until = nodes, until


async def claim(tx: Tx, book: RuleBook, world: World, now: datetime, limit: int = PEOPLE) -> Claimed:
    """Handles what is due for up to `limit` nodes' people. `now`: business time, for the record only.

    Raises ClaimFailed for whatever goes wrong once it has them.
    """
    until, any_due = await queue.claim_moment(tx)
    if until is None or not any_due:
        return Claimed(until=until)
    first = await queue.candidates(tx, until, limit)
    if not first:
        return Claimed(until=until)
    groups, since = await _everybody(tx, first, until)
    nodes = sorted(node for group in groups for node in group.nodes)
    await people.lock_nodes(tx, nodes)
    try:
        return await _handle(tx, groups, since, until, book, world, now)
    except Exception as error:
        raise ClaimFailed(nodes, until) from error


async def _handle(
    tx: Tx,
    groups: list[Group],
    since: dict[UUID, datetime],
    until: datetime,
    book: RuleBook,
    world: World,
    now: datetime,
) -> Claimed:
    nodes = sorted(node for group in groups for node in group.nodes)
    found = await _fill(tx, groups, since, until)
    groups = [group for group in groups if group.items]
    if not groups:  # while this claim waited for the locks another did it all: there may be others
        return Claimed(until=until, nodes=nodes, more=not found)
    rules = await book.read(tx)
    material = await loading.load(tx, groups, rules, world, "marketing")
    changes = Changes()
    await decide(groups, material, changes, "marketing", until)
    await write(tx, changes, now)
    count(changes)
    handled = len(changes.handled) + len(changes.runs) + len(changes.moved) + len(changes.held)
    return Claimed(
        until=until,
        nodes=nodes,
        handled=handled,
        decisions=len(changes.decisions),
        more=handled > 0,
        publish=records(changes),
    )


async def decide(groups: Sequence[Group], material: Material, changes: Changes, kind: str, until: datetime) -> None:
    """Person by person; into `changes`. What else the process does has its turn in between."""
    for number, group in enumerate(groups, 1):
        Person(group.items, group.runs, group.known, material, changes, kind).decide(until)
        if number % WITHOUT_A_PAUSE == 0:
            await asyncio.sleep(0)


# ── whom to lock ──────────────────────────────────────────────────────────────────────────────────────────────────────
async def _everybody(tx: Tx, first: dict[UUID, datetime], until: datetime) -> tuple[list[Group], dict[UUID, datetime]]:
    """Everybody who may have been one person from their earliest open item on; and from when on that was looked at.

    A person's other nodes may have waited longer than the one that was found, and from that earlier moment on more nodes
    may belong: so it is asked again until nothing changes.
    """
    asked = dict(first)
    groups: list[list[UUID]] = []
    for _ in range(ROUNDS):
        seeds = sorted(asked)
        groups = united(await cdp.together(tx, [(node, asked[node], until) for node in seeds]))
        earliest = await queue.first_due(tx, [node for group in groups for node in group], until)
        grown = False
        for group in groups:
            begin = min((earliest[node] for node in group if node in earliest), default=None)
            reached = min(asked[node] for node in group if node in asked)
            if begin is not None and begin < reached:
                seed = min(node for node in group if node in asked)
                asked[seed], grown = begin, True
        if not grown:
            break
    reached_by = {node: min(asked[seed] for seed in group if seed in asked) for group in groups for node in group}
    return [Group(nodes=group) for group in groups], reached_by


def united(lists: Iterable[Sequence[UUID]]) -> list[list[UUID]]:
    """Lists that share an element made one; each sorted, in the order of their first elements."""
    parent: dict[UUID, UUID] = {}

    def root(node: UUID) -> UUID:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for nodes in lists:
        for node in nodes:
            parent.setdefault(node, node)
            parent[root(node)] = root(nodes[0])
    found: dict[UUID, list[UUID]] = defaultdict(list)
    for node in parent:
        found[root(node)].append(node)
    return sorted(sorted(nodes) for nodes in found.values())


async def _fill(tx: Tx, groups: Sequence[Group], since: dict[UUID, datetime], until: datetime) -> bool:
    """Reads, in new statements under the locks, what is due and the runs; says whether anything is."""
    group_of = {node: group for group in groups for node in group.nodes}
    items = await queue.due_items(tx, sorted(group_of), until)
    for item in items:
        group_of[item.node].items.append(item)
    for group in groups:
        group.items = _in_one_order(group.items, min(since[node] for node in group.nodes))
    if groups := [group for group in groups if group.items]:
        await loading.add_runs(tx, groups)
    return bool(items)


def _in_one_order(items: list[Item], since: datetime) -> list[Item]:
    """The items as far as all nodes' are at hand; none if the group would have to begin before it was looked at."""
    items.sort(key=lambda item: item.order)
    if items and items[0].due < since:
        return []
    by_node: dict[UUID, list[Item]] = defaultdict(list)
    for item in items:
        by_node[item.node].append(item)
    cut = [own[-1].order for own in by_node.values() if len(own) >= queue.PER_NODE]
    return [item for item in items if item.order <= min(cut)] if cut else items


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def write(tx: Tx, changes: Changes, now: datetime) -> None:
    """Writes what was decided: runs, timers, decisions. The outbox is the caller's, last before COMMIT."""
    new = [run for run, before in changes.runs.values() if before == 0]
    changed = [(run, before) for run, before in changes.runs.values() if before]
    await people.write_runs(tx, new, changed, changes.revenue)
    await people.forget_addresses(tx, changes.purged)
    put, gone = timer_changes(changes)
    await queue.drop_items(tx, gone)
    await queue.set_items(tx, put)
    await queue.hold_items(tx, changes.held)
    await people.write_decisions(tx, [_row(decision, now) for decision in changes.decisions])


def _row(decision: Decision, now: datetime) -> people.DecisionRow:
    run = decision.decided.run if decision.decided else None
    return people.DecisionRow(
        node=decision.node,
        at=decision.at,
        made_at=now,
        rule=decision.version.rule,
        version=decision.version.number,
        run=run.id if run else None,
        run_before=decision.before,
        run_after=run.number if run else 0,
        what=decision.what,
        why=decision.why,
        cause=decision.cause,
        profile=decision.whose.profile,
        nodes=list(decision.whose.nodes),
        seen=decision.seen,
        effects=decision.summary,
        after=run,
    )


def records(changes: Changes) -> list[Outgoing]:
    """What the decisions want published, in their order."""
    return [outgoing(effect) for decision in changes.decisions for effect in decision.effects]
