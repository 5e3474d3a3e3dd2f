"""Profile events → items of the queue, idle timers, and at once what transactional rules decide.

All in the consumer's transaction, which has moved the position already. What concerns marketing rules is only put in the
queue here: it is decided when the watermark has reached it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from services.triggers import claims, loading
from services.triggers.changes import Changes
from services.triggers.effects import erased as erased_record
from services.triggers.loading import Group
from services.triggers.material import Whose
from services.triggers.metrics import count
from services.triggers.queue import Item, ItemKind, event_item, fact_of, idle_item
from services.triggers.steps.base import World
from services.triggers.store import people, queue
from services.triggers.store.rules import RuleBook
from services.triggers.versions import Rules, concerns
from shared import wake
from shared.consumer import Applied, Batch
from shared.db import Tx
from shared.erasure import erased as erased_nodes
from shared.errors import Permanent
from shared.events import ProfileErased, ProfileEvent, ProfileMerged, ProfileRecord, decode_profile_record

NEVER = datetime.min.replace(tzinfo=UTC)


class Handler:
    """Handles a batch of `profile-events` (see `shared.consumer.Handler`). `secret` keys the erasure journal."""

    def __init__(self, book: RuleBook, world: World, secret: bytes) -> None:
        self._book, self._world, self._secret = book, world, secret

    async def __call__(self, tx: Tx, batch: Batch) -> Applied:
        records = [_decoded(record.value) for record in batch.records]
        rules = await self._book.read(tx)
        told = [record for record in records if isinstance(record, ProfileEvent) and not record.event.history]
        erased = [record for record in records if isinstance(record, ProfileErased)]
        # Who looks into the journal before an erasure is in it commits before that erasure is carried out here.
        await people.lock_erasures(tx, carrying_out=bool(erased))
        gone = await self._erased_before(tx, told)
        live = [record for record in told if not _is_before(gone, record)]
        at_once = [record for record in live if concerns(rules.names["transactional"], record.event.name)]
        # Who came back is somebody new: should their erasure still be on its way, it is carried out before they are looked at.
        forgotten = {node: record.learned_at for record in erased for node in record.nodes}
        forgotten |= {node: gone[node] for record in at_once for node in record.nodes if node in gone}
        # Locks of people come before locks of rows, here as in a claim, or the two could wait for each other.
        if forgotten:
            await people.lock_nodes(tx, _all_nodes(forgotten, live))
        armed = await self._forget(tx, forgotten, rules)
        changes = await self._decide(tx, at_once, rules)
        items = [*_events(live, rules), *_idle_timers(live, rules), *_merges(records), *armed]
        await claims.write(tx, changes, batch.now)
        await queue.put_items(tx, items)
        count(changes)
        publish = [*claims.records(changes), *map(erased_record, erased)]
        woken = {wake.TRIGGERS_DUE} if items else set()
        return Applied(publish=publish, wake=woken, erased=len(told) - len(live))

    async def _erased_before(self, tx: Tx, records: Sequence[ProfileEvent]) -> dict[UUID, datetime]:
        """The nodes of these people that were erased, and when."""
        return await erased_nodes(
            tx, self._secret, {node for record in records for node in (*record.nodes, *_named(record))}
        )

    async def _forget(self, tx: Tx, erased: Mapping[UUID, datetime], rules: Rules) -> list[Item]:
        """Carries out erasures; returns the idle timers of who came back since."""
        if not erased:
            return []
        ended = await people.forget_people(tx, erased)
        return await loading.armed_anew(tx, ended, rules)

    async def _decide(self, tx: Tx, records: Sequence[ProfileEvent], rules: Rules) -> Changes:
        """What transactional rules make of the records, at once and under the locks of their people."""
        changes = Changes()
        if not records:
            return changes
        groups = _groups(records)
        nodes = sorted(node for group in groups for node in group.nodes)
        await people.lock_nodes(tx, nodes)
        await loading.add_runs(tx, groups)
        whose = {(r.event.origin, r.learned_at): Whose(r.profile, tuple(sorted(r.nodes))) for r in records}
        material = await loading.load(tx, groups, rules, self._world, "transactional", whose)
        await claims.decide(groups, material, changes, "transactional", NEVER)
        changes.handled.clear()  # these records were never in the queue
        return changes


def _decoded(value: bytes) -> ProfileRecord:
    try:
        return decode_profile_record(value)
    except msgspec.DecodeError as error:
        raise Permanent(f"not a record of profile-events: {error}") from error


def _groups(records: Sequence[ProfileEvent]) -> list[Group]:
    """The people of the records with their items; records that share a node are of one person."""
    groups = [Group(nodes=nodes) for nodes in claims.united([sorted({*r.nodes, r.event.origin}) for r in records])]
    group_of = {node: group for group in groups for node in group.nodes}
    for record in records:
        group_of[record.event.origin].items.append(event_item(record))
    return groups


def _is_before(erased: Mapping[UUID, datetime], record: ProfileEvent) -> bool:
    """Whether profile published it before somebody it names was erased: shards are not in order, so it may come after the
    erasure, and would bring back what was forgotten."""
    return any(node in erased and record.learned_at <= erased[node] for node in _named(record))


def _named(record: ProfileEvent) -> set[UUID]:
    """The nodes that the event itself names. Others of the person's may be erased and the event still be somebody's: they
    had been split before."""
    return {record.event.origin, *(one.node for one in record.event.ids)}


def _all_nodes(erased: Iterable[UUID], records: Sequence[ProfileEvent]) -> list[UUID]:
    own = {record.event.origin for record in records}
    return sorted(own.union(erased, *(record.nodes for record in records)))


def _events(records: Sequence[ProfileEvent], rules: Rules) -> list[Item]:
    """What concerns marketing rules is due at its learned-at."""
    names = rules.names["marketing"]
    return [event_item(record) for record in records if concerns(names, record.event.name)]


def _idle_timers(records: Sequence[ProfileEvent], rules: Rules) -> list[Item]:
    """A match arms its rule's timer; the earliest counts, whatever the order of arrival."""
    found = []
    for record in records:
        fact = fact_of(record)
        for version in rules.all_active(record.learned_at, "marketing"):
            entry = version.document.enter
            if entry.idle is not None and entry.matches(fact):
                found.append(idle_item(version.rule, fact, entry.idle))
    return found


def _merges(records: Sequence[ProfileRecord]) -> list[Item]:
    """A merge is told under both keys; its item is the same."""
    return [
        Item(node=min(record.nodes), id=record.id, kind=ItemKind.MERGED, due=record.learned_at)
        for record in records
        if isinstance(record, ProfileMerged) and record.nodes
    ]
