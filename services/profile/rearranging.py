"""People who change without an event: merged or parted by hand, a contact purged.

The same decision as for events (`identity`), over everybody in the components concerned; whoever changed is folded anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from uuid import UUID

from services.profile.applying import MOST_ATTEMPTS, StillGrowing, write_world
from services.profile.books import ConsentBook, OrderBook
from services.profile.knowledge import Knowledge, sources_of
from services.profile.people import Person, Regrouping
from services.profile.person_facts import PersonFacts
from services.profile.placing import World
from services.profile.store import locking, reading, writing
from services.profile.wire import change_records
from shared.bus.base import Outgoing
from shared.cdp import state_of
from shared.cdp_rows import read_rows
from shared.db import Tx
from shared.facts.cart import LIFETIME


async def lock_components(tx: Tx, profiles: Iterable[UUID]) -> list[Person]:
    """Locks everybody connected with these profiles. Those that exist no more are left out."""
    await tx.execute("SAVEPOINT components")
    wanted = await locking.connected(tx, profiles)
    for _ in range(MOST_ATTEMPTS):
        people = await locking.lock_people(tx, wanted)
        now = await locking.connected(tx, [person.id for person in people])
        if now <= {person.id for person in people}:
            return people
        await tx.execute("ROLLBACK TO SAVEPOINT components")
        wanted = now
    raise StillGrowing("the people concerned grew faster than they could be locked")


async def rearrange(
    tx: Tx, people: Collection[Person], base: datetime, without: Collection[UUID] = ()
) -> tuple[Regrouping | None, list[Outgoing]]:
    """Decides anew who is who among locked people, writes it, and returns what changed and what to publish.

    :param base: the earliest moment at which it may count as learned
    :param without: nodes that are gone, with their rows and links
    """
    members = [node for person in people for node in person.nodes]
    nodes = {node.id: node for node in (await locking.read_nodes(tx, members)).values() if node.id not in without}
    inside = sorted(node.id for node in nodes.values() if not node.over_limit)
    world = World(
        nodes=nodes.values(),
        people=people,
        links=await locking.read_links(tx, inside),
        cannot=await locking.read_cannot(tx, inside),
    )
    regrouping = world.rearrange(base, without)
    knowledge = await _knowledge(tx, people, world, regrouping)
    if regrouping is not None:
        knowledge.regroup(regrouping)
    await write_world(tx, world, [], knowledge, {})
    await writing.delete_people(tx, sorted(world.gone))
    return regrouping, change_records(regrouping) if regrouping is not None else []


async def _knowledge(tx: Tx, people: Collection[Person], world: World, regrouping: Regrouping | None) -> Knowledge:
    folded: set[UUID] = set()
    if regrouping is not None:
        for nodes in regrouping.after.values():
            if sources_of(nodes, regrouping.before):
                folded.update(nodes)
    since = regrouping.at - LIFETIME if regrouping is not None else None
    return Knowledge(
        people={person.id: PersonFacts(person.state) for person in people},
        homes={node: person.id for person in people for node in person.nodes},
        nodes=world.nodes,
        orders=OrderBook(),
        first_events={},
        consents=ConsentBook(),
        rows=await reading.read_to_fold(tx, folded, (), since) if folded and since is not None else {},
    )


async def refold(tx: Tx, people: Collection[Person], at: datetime) -> None:
    """Makes the facts of these locked people anew from their rows, as of `at`."""
    since = at - LIFETIME
    found = await read_rows(tx, [(person.nodes, None) for person in people], cart_since=since)
    facts = {
        person.id: PersonFacts.of(state_of(rows, person.nodes, at)) for person, rows in zip(people, found, strict=True)
    }
    for person in people:
        person.last = max(person.last, at)
    await writing.write_people(tx, list(people), facts)
