"""Applies a batch inside its transaction: lock who is concerned, decide who is who, fold what is known, write."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from datetime import datetime
from uuid import UUID

from services.profile.books import ConsentBook, OrderBook
from services.profile.identity import Link, Pair, rank_of
from services.profile.ids import new_id
from services.profile.intake import Incoming
from services.profile.knowledge import Knowledge, needed_rows
from services.profile.people import KnownNode, Person, Placed
from services.profile.person_facts import PersonFacts
from services.profile.placing import World
from services.profile.store import locking, reading, writing
from services.profile.wire import change_records, event_record
from shared.bus.base import Outgoing
from shared.db import Tx
from shared.facts.cart import LIFETIME
from shared.identifiers import Identifier

# Growing ends when the whole base is locked; long before that something is wrong.
MOST_ATTEMPTS = 20


Key = tuple[Pair, int]
Observed = tuple[datetime, UUID]


class StillGrowing(ConnectionError):
    """The people concerned grew faster than they could be locked: transient, the batch is tried again."""


class Concerned:
    """Which nodes, links and orders a batch speaks of."""

    def __init__(self, identifiers: Mapping[UUID, Identifier], batch: list[Incoming]) -> None:
        self.identifiers, self.batch = identifiers, batch
        self.links = {key for one in batch for key in one.links}
        self.orders = sorted({key for one in batch if (key := one.found.order_key) is not None})
        self.addresses = {one.found.address for one in batch if one.found.consents and one.found.address is not None}
        self.purged = {one.purges for one in batch if one.purges is not None}

    def fresh(self, known: Container[UUID]) -> list[KnownNode]:
        """The nodes that nobody has met, sorted, with the columns that they will probably have in the end."""
        made: dict[UUID, KnownNode] = {}
        for one in self.batch:
            new = [self._probable(node, one) for node in one.nodes if node not in known and node not in made]
            if not new:
                continue
            if len(new) == len(one.nodes):
                profile = new_id("profile", min(new, key=rank_of).id, one.base)
                for node in new:
                    node.profile = profile
            made.update((node.id, node) for node in new)
        return [made[node] for node in sorted(made)]

    def _probable(self, node: UUID, one: Incoming) -> KnownNode:
        identifier, vouched = self.identifiers[node], node in one.vouched
        return KnownNode(
            id=node,
            kind=identifier.kind,
            value=identifier.value,
            first_seen=one.event.occurred_at,
            vouched=vouched or node == one.confirmed,
            profile=node,
            learned_at=one.base,
            asserted_at=one.base if vouched else None,
            confirmed_at=one.base if node == one.confirmed else None,
        )

    def changing(self, nodes: Mapping[UUID, KnownNode], links: Iterable[Link]) -> tuple[set[UUID], set[UUID]]:
        """Nodes whose component the batch may change, and nodes whose columns it may change; of those that exist.

        What is known never becomes unknown, so an event that is `simple` here stays so.
        """
        known = {(link.pair, link.strength): (link.first_observed, link.id) for link in links}
        joined: set[UUID] = self.purged & nodes.keys()
        changed: set[UUID] = set()
        for one in self.batch:
            if not one.simple and not self._is_simple(one, nodes, known):
                self._look_at(one, nodes, known, joined, changed)
        return joined, changed

    def _is_simple(self, one: Incoming, nodes: Mapping[UUID, KnownNode], known: Mapping[Key, Observed]) -> bool:
        """Whether all that the event says of nodes and links is known: what most events are like."""
        found, occurred_at = one.found, one.event.occurred_at
        if (
            found.address is not None
            or found.report is not None
            or found.refund is not None
            or one.confirmed is not None
        ):
            return False
        for node in one.nodes:
            there = nodes.get(node)
            if there is None or there.first_seen > occurred_at:
                return False
        for node in one.vouched:
            if nodes[node].asserted_at is None:
                return False
        for key in one.links:
            observed = known.get(key)
            if observed is None or observed > (occurred_at, one.event.id):
                return False
        one.simple = True
        return True

    def _look_at(
        self,
        one: Incoming,
        nodes: Mapping[UUID, KnownNode],
        known: Mapping[Key, Observed],
        joined: set[UUID],
        changed: set[UUID],
    ) -> None:
        this = one.event.occurred_at, one.event.id
        for key in one.links:
            there = known.get(key)
            if there is None or there > this:
                joined.update(node for node in key[0] if node in nodes and not nodes[node].over_limit)
        renewed = [node for node in one.vouched if node in nodes and nodes[node].asserted_at is None]
        if (address := one.confirmed) is not None and address in nodes and nodes[address].confirmed_at is None:
            renewed.append(address)
        for node in renewed:
            (changed if nodes[node].over_limit else joined).add(node)
        for node in one.nodes:
            if (it := nodes.get(node)) is not None and it.first_seen > this[0]:
                changed.add(node)


class Applying:
    """One batch (or the part of it between two purges) in its transaction."""

    def __init__(self, tx: Tx, concerned: Concerned) -> None:
        self._tx, self._concerned = tx, concerned
        self._nodes: dict[UUID, KnownNode] = {}
        self._claimed: dict[UUID, tuple] = {}
        self._links: list[Link] = []
        self._cannot: list[Pair] = []
        self._people: list[Person] = []
        self._first_events: dict[str, UUID | None] = {}
        self._owner_nodes: set[UUID] = set()

    # ── who is concerned ───────────────────────────────────────────────────────────────────────────────────────────
    async def lock(self) -> int:
        """Claims the nodes, then locks everybody concerned and the orders. Returns how often it had to lock more people
        than it had read."""
        await self._claim()
        if self._concerned.links:
            self._links = await locking.read_pairs(self._tx, self._concerned.links)
        owners = await self._owners()
        await self._tx.execute("SAVEPOINT people")
        for attempt in range(MOST_ATTEMPTS):
            joined, changed = self._concerned.changing(self._nodes, self._links)
            if await self._lock_all(joined, changed, owners):
                await self._read_connected(joined, changed)
                return attempt
            await self._tx.execute("ROLLBACK TO SAVEPOINT people")
            await self._read_again()
            owners = await self._owners()
        raise StillGrowing("the people concerned grew faster than they could be locked")

    async def _claim(self) -> None:
        self._nodes = await locking.read_nodes(self._tx, self._concerned.identifiers)
        if fresh := self._concerned.fresh(self._nodes):
            self._nodes.update(await locking.claim_nodes(self._tx, fresh))
            self._claimed = {node.id: _columns(node) for node in fresh if node.id not in self._nodes}

    async def _read_again(self) -> None:
        """People changed before they were locked; somebody may even be gone (erased), and is met anew."""
        self._nodes = await locking.read_nodes(self._tx, self._nodes)
        if fresh := self._concerned.fresh({**self._nodes, **dict.fromkeys(self._claimed)}):
            self._nodes.update(await locking.claim_nodes(self._tx, fresh))
            self._claimed.update({node.id: _columns(node) for node in fresh if node.id not in self._nodes})
        if self._concerned.links:
            self._links = await locking.read_pairs(self._tx, self._concerned.links)
        for one in self._concerned.batch:
            one.simple = False

    async def _owners(self) -> dict[UUID, UUID]:
        return await locking.read_owners(self._tx, self._concerned.orders) if self._concerned.orders else {}

    async def _lock_all(self, joined: set[UUID], changed: set[UUID], owners: dict[UUID, UUID]) -> bool:
        """Locks people and orders, each sorted. False if by then more of them are concerned."""
        needed = joined | changed | {one.origin for one in self._concerned.batch} | self._concerned.addresses
        needed &= self._nodes.keys()
        wanted = {profile for node in needed if (profile := self._nodes[node].profile) is not None}
        components = {profile for node in joined if (profile := self._nodes[node].profile) is not None}
        if components:
            wanted |= await locking.connected(self._tx, components)
        wanted.update(profile for node, profile in owners.items() if node not in self._claimed)
        self._people = await locking.lock_people(self._tx, wanted)
        homes = {node: person.id for person in self._people for node in person.nodes}
        if not needed <= homes.keys():
            return False
        for node in needed:
            self._nodes[node].profile = homes[node]
        if components:
            now = {homes[node] for node in joined}
            if not await locking.connected(self._tx, now) <= {person.id for person in self._people}:
                return False
        if self._concerned.orders:
            self._first_events = await locking.lock_orders(self._tx, self._concerned.orders)
            self._owner_nodes = set(await self._owners())
            return self._owner_nodes <= homes.keys()
        return True

    async def _read_connected(self, joined: set[UUID], changed: set[UUID]) -> None:
        """Reads again, under the locks, what the batch may change: nodes, and all links of the components."""
        strangers = self._owner_nodes - self._nodes.keys() - self._claimed.keys()
        if not joined and not changed and not strangers:
            return
        homes = {node: person for person in self._people for node in person.nodes}
        components = {homes[node].component for node in joined}
        members = {node for person in self._people if person.component in components for node in person.nodes}
        self._nodes = await locking.read_nodes(self._tx, self._nodes.keys() | strangers | members)
        inside = sorted(node for node in members if not self._nodes[node].over_limit)
        if inside:
            found = {(link.pair, link.strength): link for link in self._links}
            found.update(((link.pair, link.strength), link) for link in await locking.read_links(self._tx, inside))
            self._links = list(found.values())
            self._cannot = await locking.read_cannot(self._tx, inside)

    # ── what becomes of it ─────────────────────────────────────────────────────────────────────────────────────────
    async def write(self, *, live: bool) -> list[Outgoing]:
        """Applies the events in their order and writes everything. Returns what to publish: all of it if `live`, else only
        who was merged and split."""
        orders = await reading.read_orders(self._tx, self._concerned.orders) if self._concerned.orders else OrderBook()
        homes = {node: person.id for person in self._people for node in person.nodes}
        people = {person.id: PersonFacts(person.state) for person in self._people}
        known = orders.copy()
        world = World(
            nodes=self._nodes.values(),
            people=self._people,
            links=self._links,
            cannot=self._cannot,
            orders=orders,
            identifiers=self._concerned.identifiers,
        )
        placed = [world.place(one) for one in self._concerned.batch]
        knowledge = await self._knowledge(world, placed, people, homes, known)
        first: set[UUID] = set()
        records: list[Outgoing] = []
        for one in placed:
            is_first = knowledge.apply(one)
            if is_first:
                first.add(one.incoming.event.id)
            if one.regrouping is not None:
                records += change_records(one.regrouping)
            if live:
                facts = knowledge.facts(one.profile).wire(one.profile, one.nodes, one.learned_at, one.first_seen)
                records.append(event_record(one, facts, is_first))
        await self._write_facts(placed, first, knowledge)
        await write_world(self._tx, world, placed, knowledge, self._claimed)
        return records

    async def _knowledge(
        self,
        world: World,
        placed: list[Placed],
        people: dict[UUID, PersonFacts],
        homes: dict[UUID, UUID],
        orders: OrderBook,
    ) -> Knowledge:
        addresses = self._concerned.addresses
        consents = await reading.read_consents(self._tx, addresses) if addresses else ConsentBook()
        everything, carts = needed_rows(placed, people, world.regroupings)
        since = min(one.learned_at for one in placed) - LIFETIME
        rows = await reading.read_to_fold(self._tx, everything, carts, since) if everything or carts else {}
        return Knowledge(
            people=people,
            homes=homes,
            nodes=world.nodes,
            orders=orders,
            first_events={key: event for key, event in self._first_events.items() if event is not None},
            consents=consents,
            rows=rows,
        )

    async def _write_facts(self, placed: list[Placed], first: set[UUID], knowledge: Knowledge) -> None:
        tx = self._tx
        await writing.write_events(tx, placed, first)
        await writing.write_traits(tx, placed)
        await writing.write_carts(tx, placed)
        await writing.write_consents(tx, placed)
        if self._concerned.orders:
            await writing.write_reports(tx, placed)
            folded = {key: knowledge.orders.folded(key) for key in self._concerned.orders}
            await writing.write_orders(tx, folded, knowledge.first_events)


def _columns(node: KnownNode) -> tuple:
    return (*locking.node_columns(node), node.over_limit)


async def write_world(
    tx: Tx, world: World, placed: Iterable[Placed], knowledge: Knowledge, claimed: Mapping[UUID, tuple]
) -> None:
    """Writes nodes, people, memberships and links as they are after the batch."""
    changed = [world.nodes[node] for node in sorted(world.changed)]
    await writing.update_nodes(tx, [node for node in changed if claimed.get(node.id) != _columns(node)])
    touched = {profile for one in placed for profile in one.touched}
    touched |= {person.id for person in world.people.values() if person.regrouped}
    people = [world.people[profile] for profile in sorted(touched & world.people.keys())]
    await writing.write_people(tx, people, knowledge.changed())
    stays = [stay for node in sorted(world.stays) for stay in world.stays[node]]
    await writing.write_changes(tx, stays, world.aliases, world.seen_before)
    links = [known for _, known in sorted(world.links.items()) if known.learned_at is not None]
    await writing.write_links(tx, links)
