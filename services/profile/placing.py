"""The people that a batch concerns: who is who after each event, and when it counts as learned. Pure.

`World` is filled with what the transaction has locked and read; `place` takes the events in their order and changes it; what
became of it is then written by `store`. Facts are not its business (see `knowledge`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from uuid import UUID

import msgspec

from services.profile.books import OrderBook
from services.profile.identity import Group, Link, Pair, assign, heirs, partition
from services.profile.ids import new_id
from services.profile.intake import Incoming
from services.profile.people import KnownLink, KnownNode, Person, Placed, Regrouping, Stay
from shared.clock import MICROSECOND
from shared.identifiers import Identifier


class World:
    """What the transaction knows of nodes, links and people. `orders` is written in, too."""

    def __init__(
        self,
        *,
        nodes: Iterable[KnownNode],
        people: Iterable[Person],
        links: Iterable[Link] = (),
        cannot: Iterable[Pair] = (),
        orders: OrderBook | None = None,
        identifiers: Mapping[UUID, Identifier] | None = None,
    ) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.people = {person.id: person for person in people}
        self.links: dict[tuple[Pair, int], KnownLink] = {}
        self._links_of: dict[UUID, dict[tuple[Pair, int], KnownLink]] = {}
        for link in links:
            self._keep(KnownLink(link))
        self.cannot = set(cannot)
        self.orders = orders or OrderBook()
        self._identifiers = identifiers or {}
        # what became of it
        self.changed: set[UUID] = set()  # nodes whose columns changed
        self.stays: dict[UUID, list[Stay]] = {}
        self.aliases: dict[UUID, tuple[UUID, datetime]] = {}
        # node, when it proved to be older, what had been taken for its first moment
        self.seen_before: list[tuple[UUID, datetime, datetime]] = []
        self.regroupings: list[Regrouping] = []
        self.gone: set[UUID] = set()  # profiles without a node left

    # ── one event ──────────────────────────────────────────────────────────────────────────────────────────────────
    def place(self, incoming: Incoming) -> Placed:
        """Takes in one event: its nodes, links and vouchings."""
        if incoming.simple:
            return self._place_simply(incoming)
        if len(incoming.nodes) == 1 and self._is_alone(incoming):
            return self._place_newcomer(incoming)
        fresh = self._meet(incoming)
        renewed, older = self._look_at_nodes(incoming)
        ends = self._link(incoming)
        groups = components = None
        if fresh or ends or renewed:
            groups, components, scope = self._decide(fresh, ends, renewed)
        touched = self._touched(incoming, [*renewed, *older])
        if groups is not None:
            touched += [profile for profile in self._before(scope) if profile not in touched]
        learned_at = self._learned_at(incoming.base, touched)
        self._stamp(incoming, fresh, renewed, older, learned_at)
        regrouping = None
        if groups is not None and components is not None:
            regrouping = self._regroup(groups, components, scope, learned_at)
        return self._placed(incoming, learned_at, touched, [*fresh, *renewed], regrouping)

    def _place_simply(self, incoming: Incoming) -> Placed:
        person = self.people[self._profile_of(incoming.origin)]
        at = person.last + MICROSECOND
        if incoming.base > at:
            at = incoming.base
        person.last = at
        return Placed(incoming, at, person.id, person.nodes, person.first_seen, [person.id], [], None)

    def _is_alone(self, incoming: Incoming) -> bool:
        """Whether this is somebody whom nobody has met, with one node and nothing that concerns others."""
        found = incoming.found
        return (
            incoming.origin not in self.nodes
            and found.report is None
            and found.refund is None
            and not incoming.confirmed
        )

    def _place_newcomer(self, incoming: Incoming) -> Placed:
        """The same as for anybody else, without looking for whom the node could be joined with."""
        at, node, seen = incoming.base, incoming.origin, incoming.event.occurred_at
        one, vouched = self._identifiers[node], bool(incoming.vouched)
        profile, nodes = new_id("profile", node, at), [node]
        self.nodes[node] = KnownNode(
            node, one.kind, seen, vouched, False, one.value, profile, at, at if vouched else None, None
        )
        self.people[profile] = Person(profile, profile, nodes, at, seen, b"", False, True)
        self.stays[node] = [Stay(node, profile, at)]
        self.changed.add(node)
        regrouping = Regrouping(at, {}, {profile: nodes}, {})
        return Placed(incoming, at, profile, nodes, seen, [profile], incoming.vouched, regrouping)

    def _meet(self, incoming: Incoming) -> list[UUID]:
        """Makes the nodes that nobody has met; returns them."""
        fresh = []
        for node in incoming.nodes:
            if node not in self.nodes:
                one = self._identifiers[node]
                self.nodes[node] = KnownNode(
                    id=node, kind=one.kind, value=one.value, first_seen=incoming.event.occurred_at
                )
                fresh.append(node)
        return fresh

    def _look_at_nodes(self, incoming: Incoming) -> tuple[list[UUID], list[UUID]]:
        """The nodes vouched for or confirmed for the first time, and those that prove to be older than known."""
        renewed, occurred_at = [], incoming.event.occurred_at
        for node in incoming.vouched:
            if self.nodes[node].asserted_at is None:
                self.nodes[node].vouched = True
                renewed.append(node)
        if incoming.confirmed is not None and self.nodes[incoming.confirmed].confirmed_at is None:
            self.nodes[incoming.confirmed].vouched = True
            renewed.append(incoming.confirmed)
        older = [node for node in incoming.nodes if self.nodes[node].first_seen > occurred_at]
        return renewed, older

    def _link(self, incoming: Incoming) -> list[UUID]:
        """Takes in the links that are new, or observed earlier than known; returns their ends."""
        ends: list[UUID] = []
        event = incoming.event
        for key in incoming.links:
            there = self.links.get(key)
            if there is not None and (there.link.first_observed, there.link.id) <= (event.occurred_at, event.id):
                continue
            (a, b), strength = key
            link = Link(a, b, strength, event.occurred_at, event.id)
            self._keep(KnownLink(link, event.source, incoming.trust, incoming.base))
            ends += [a, b]
        return ends

    def _keep(self, known: KnownLink) -> None:
        key = known.link.pair, known.link.strength
        self.links[key] = known
        for node in known.link.pair:
            self._links_of.setdefault(node, {})[key] = known

    def rearrange(self, base: datetime, without: Collection[UUID] = ()) -> Regrouping | None:
        """Decides anew about everybody, after links were changed by hand; the nodes `without` are gone."""
        at = self._learned_at(base, self.people)
        groups, components, scope = self._partition({}, {person.component for person in self.people.values()}, without)
        for person in list(self.people.values()):
            for node in set(person.nodes) & set(without):
                self.stays.setdefault(node, []).append(Stay(node, person.id, None, at))
            if set(person.nodes) <= set(without):
                self.gone.add(person.id)
                del self.people[person.id]
        regrouping = self._regroup(groups, components, scope, at)
        for person in self.people.values():
            if person.regrouped:
                person.last = at
        return regrouping

    # ── who is who ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _decide(
        self, fresh: list[UUID], ends: Iterable[UUID], renewed: Iterable[UUID]
    ) -> tuple[list[Group], list[frozenset[UUID]], dict[UUID, KnownNode]]:
        """Who is one person now, among all who are connected with these nodes."""
        scope = {node: self.nodes[node] for node in fresh}
        components = {
            self.people[profile].component
            for node in (*ends, *renewed)
            if not self.nodes[node].over_limit and (profile := self.nodes[node].profile) is not None
        }
        return self._partition(scope, components)

    def _partition(
        self, scope: dict[UUID, KnownNode], components: set[UUID], without: Collection[UUID] = ()
    ) -> tuple[list[Group], list[frozenset[UUID]], dict[UUID, KnownNode]]:
        if components:
            for person in self.people.values():
                if person.component in components:
                    scope.update((node, self.nodes[node]) for node in person.nodes if node not in without)
        links = {key: known.link for node in scope for key, known in self._links_of.get(node, {}).items()}
        found = partition(scope, links.values(), self.cannot)
        for node in found.over_limit:
            if not self.nodes[node].over_limit:
                self.nodes[node].over_limit = True
                self.changed.add(node)
        present = {node.id: node.profile for node in scope.values() if node.profile is not None}
        return assign(found.people, scope, present), found.components, scope

    def _before(self, scope: Mapping[UUID, KnownNode]) -> dict[UUID, list[UUID]]:
        profiles = {node.profile for node in scope.values() if node.profile is not None}
        return {profile: self.people[profile].nodes for profile in sorted(profiles)}

    def _regroup(
        self, groups: list[Group], components: list[frozenset[UUID]], scope: dict[UUID, KnownNode], at: datetime
    ) -> Regrouping | None:
        """Gives everybody in `scope` their profile; None if nobody's changed but for nodes that are new to the store."""
        before = self._before(scope)
        moved = [group for group in groups if group.profile is None or list(group.nodes) != before[group.profile]]
        inheriting = heirs(before, groups, scope)
        after: dict[UUID, list[UUID]] = {}
        ids = {group: group.profile or new_id("profile", group.strongest, at) for group in groups}
        for group in moved:
            profile = ids[group]
            after[profile] = list(group.nodes)
            self._settle(profile, group, scope, at, before)
        self._connect(components, at)
        if not moved:
            return None
        for old, group in inheriting.items():
            self.aliases[old] = (ids[group], at)
            del self.people[old]
        regrouping = Regrouping(
            at,
            {profile: nodes for profile, nodes in before.items() if profile in after or profile in inheriting},
            after,
            {old: ids[group] for old, group in inheriting.items()},
        )
        self.regroupings.append(regrouping)
        return regrouping

    def _settle(
        self,
        profile: UUID,
        group: Group,
        scope: Mapping[UUID, KnownNode],
        at: datetime,
        before: Mapping[UUID, list[UUID]],
    ) -> None:
        """Makes or changes one person's row, and notes who moved."""
        first_seen = min(scope[node].first_seen for node in group.nodes)
        for node in group.nodes:
            was = scope[node].profile
            if was != profile:
                self._move(node, was, profile, at)
                scope[node].profile = profile
                self.changed.add(node)
        person = self.people.get(profile)
        if person is None:
            self.people[profile] = Person(
                profile, profile, list(group.nodes), at, first_seen, stored=False, regrouped=True
            )
            return
        self.people[profile] = msgspec.structs.replace(
            person, nodes=list(group.nodes), last=at, first_seen=first_seen, regrouped=True
        )

    def _move(self, node: UUID, was: UUID | None, profile: UUID, at: datetime) -> None:
        stays = self.stays.setdefault(node, [])
        if stays and stays[-1].to_at is None:
            stays[-1].to_at = at
        elif was is not None:
            stays.append(Stay(node, was, None, at))
        stays.append(Stay(node, profile, at))

    def _connect(self, components: Iterable[frozenset[UUID]], at: datetime) -> None:
        """Gives each component its name: one that a profile of it has already, else a new one."""
        taken: set[UUID] = set()
        for component in sorted(components, key=min):
            people = [self.people[profile] for profile in sorted({self._profile_of(node) for node in component})]
            stored = sorted(person.component for person in people if person.stored)
            name = next((known for known in stored if known not in taken), None)
            if name is None:
                name = people[0].id if not people[0].stored else new_id("component", min(component), at)
            taken.add(name)
            for person in people:
                if person.component != name:
                    person.component = name
                    person.regrouped = True

    def _profile_of(self, node: UUID) -> UUID:
        profile = self.nodes[node].profile
        assert profile is not None
        return profile

    # ── when ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _touched(self, incoming: Incoming, changed: Iterable[UUID]) -> list[UUID]:
        """The profiles whose facts the event changes, its own first; of those that exist before it."""
        nodes = [incoming.origin, *changed, *self._owners(incoming)]
        if incoming.found.consents and incoming.found.address is not None:
            nodes.append(incoming.found.address)
        found = (self.nodes[node].profile for node in nodes)
        return list(dict.fromkeys(profile for profile in found if profile is not None))

    def _owners(self, incoming: Incoming) -> set[UUID]:
        """The nodes that have the event's order among their facts, before or after it."""
        entry = incoming.found.report or incoming.found.refund
        if entry is None:
            return set()
        before = self.orders.folded(entry.order_key).owners
        self.orders.add(entry)
        return before | self.orders.folded(entry.order_key).owners

    def _learned_at(self, base: datetime, touched: Iterable[UUID]) -> datetime:
        return max([base, *(self.people[profile].last + MICROSECOND for profile in touched)])

    def _stamp(
        self, incoming: Incoming, fresh: list[UUID], renewed: list[UUID], older: list[UUID], at: datetime
    ) -> None:
        """Writes the moment into what the event changed."""
        for node in fresh:
            self.nodes[node].learned_at = at
            self.changed.add(node)
        for node in renewed:
            if node == incoming.confirmed:
                self.nodes[node].confirmed_at = at
            else:
                self.nodes[node].asserted_at = at
            self.changed.add(node)
        for node in older:
            self.seen_before.append((node, at, self.nodes[node].first_seen))
            self.nodes[node].first_seen = incoming.event.occurred_at
            self.changed.add(node)
            if (profile := self.nodes[node].profile) is not None:
                person = self.people[profile]
                person.first_seen = min(person.first_seen, incoming.event.occurred_at)
        if (entry := incoming.found.report or incoming.found.refund) is not None:
            entry.learned_at = at
        for key in incoming.links:
            known = self.links[key]
            if known.link.id == incoming.event.id and known.learned_at is not None:
                known.learned_at = at

    def _placed(
        self, incoming: Incoming, at: datetime, touched: list[UUID], renewed: list[UUID], regrouping: Regrouping | None
    ) -> Placed:
        profile = self._profile_of(incoming.origin)
        person = self.people[profile]
        own = [profile]
        own += [p for p in touched if p != profile and p in self.people]
        if regrouping is not None:
            own += [p for p in regrouping.after if p not in own]
        for one in own:
            self.people[one].last = at
        return Placed(incoming, at, profile, person.nodes, person.first_seen, own, renewed, regrouping)
