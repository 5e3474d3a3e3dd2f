"""People computed again from what is stored, and compared: who is who from the links, what is known of each from the rows, and
the links from the events that observed them. Differences should be none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import msgspec

from services.profile.identity import Pair, pair_of, partition
from services.profile.intake import strength_of
from services.profile.store import locking
from services.profile.store import people as store
from shared import cdp
from shared.cdp_rows import read_rows
from shared.db import Database, Tx
from shared.facts.model import Facts, Order, Refund

_BATCH = 200  # components at a time
MOST = 1_000  # differences kept: whoever has more has seen enough


@dataclass
class PeopleAgain:
    """`count` people were computed again, and `links` that events observed. `differences`: sentences that name them."""

    count: int = 0
    links: int = 0
    differences: list[str] = field(default_factory=list)


async def people_again(database: Database) -> PeopleAgain:
    """Computes everybody again. A batch of people is read in one snapshot, so nothing need stand still."""
    found = PeopleAgain()
    after: UUID | None = None
    while len(found.differences) < MOST:
        async with database.transaction("repeatable_read") as tx:
            components = await store.components_after(tx, after, _BATCH)
            people = await store.people_in(tx, components)
            found.differences += await _who_is_who(tx, people)
            found.differences += await _what_is_known(tx, people)
            await _what_was_observed(tx, people, found)
        found.count += len(people)
        if len(components) < _BATCH:
            break
        after = components[-1]
    return found


async def _who_is_who(tx: Tx, people: Sequence[store.Kept]) -> list[str]:
    """The people that the links make, beside those that are kept."""
    nodes = await locking.read_nodes(tx, [node for person in people for node in person.nodes])
    inside = sorted(node.id for node in nodes.values() if not node.over_limit)
    links = await locking.read_links(tx, inside)
    made = set(partition(nodes, links, await locking.read_cannot(tx, inside)).people)
    return [
        f"profile {person.id}: by the links that are stored, its {len(person.nodes)} nodes are not one person of their own"
        for person in people
        if frozenset(person.nodes) not in made
    ]


async def _what_is_known(tx: Tx, people: Sequence[store.Kept]) -> list[str]:
    """What folding each person's rows gives, beside the state that is kept."""
    asked = [cdp.FactsQuestion(node=person.nodes[0], lines=False) for person in people]
    kept = await cdp.facts(tx, asked)
    rows = await read_rows(tx, [(person.nodes, person.last_learned_at) for person in people])
    found = []
    for person, there, own in zip(people, kept, rows, strict=True):
        again = cdp.fold(own, person.id, person.nodes, person.last_learned_at)
        if there is None:
            found.append(f"profile {person.id}: no node leads to it")
        elif unlike := _unlike(there, again):
            found.append(f"profile {person.id}: {', '.join(unlike)} not as its rows make it")
    return found


def _unlike(kept: Facts, again: Facts) -> list[str]:
    """The fields in which they differ. A state is kept without the lines of orders."""
    things: list[Order | Refund] = [*again.orders, *again.refunds]
    for thing in things:
        thing.lines = []
    again.last_learned_at, again.as_of = kept.last_learned_at, kept.as_of
    return [one.name for one in msgspec.structs.fields(Facts) if getattr(kept, one.name) != getattr(again, one.name)]


async def _what_was_observed(tx: Tx, people: Collection[store.Kept], found: PeopleAgain) -> None:
    """The links that the events of these people observed, beside those that are stored. Where a node was forgotten (purged,
    erased) and met again, what was observed before went with it."""
    observed: dict[tuple[Pair, int], tuple[UUID, datetime]] = {}
    for event in await store.observations(tx, [node for person in people for node in person.nodes]):
        for _, node, strong in event.ids:
            if node != event.origin:
                key = pair_of(event.origin, node), strength_of(event.trust, alias=event.alias, strong=strong)
                observed[key] = max(
                    observed.get(key, (event.id, event.learned_at)), (event.id, event.learned_at), key=_last
                )
    met = {node.id: node.learned_at for node in (await locking.read_nodes(tx, _ends(observed))).values()}
    wanted = {key for key, (_, at) in observed.items() if all(_was_met(met.get(node), at) for node in key[0])}
    there = {(link.pair, link.strength) for link in await locking.read_pairs(tx, wanted)}
    found.links += len(wanted)
    found.differences += [
        f"link {a} – {b}: observed by event {observed[(a, b), strength][0]}, and is not there"
        for (a, b), strength in sorted(wanted - there)
    ]


def _last(observed: tuple[UUID, datetime]) -> datetime:
    return observed[1]


def _ends(observed: Collection[tuple[Pair, int]]) -> set[UUID]:
    return {node for pair, _ in observed for node in pair}


def _was_met(met: datetime | None, at: datetime) -> bool:
    return met is not None and met <= at
