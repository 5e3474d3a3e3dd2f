"""Who is who: a pure function of the set of links.

Links are taken from the strongest, oldest on (Kruskal); one that would join what must stay apart is skipped. So people
part by themselves when an earlier or better link arrives, whatever the order of arrival.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from uuid import UUID

import msgspec

from shared.identifiers import DEGREE_LIMIT, EXCLUSIVE, STRENGTH

# Strength of links. From ALIAS on they may join two exclusive ids; WEAK ones never join two people who are both known.
WEAK, SIGNED, SECRET, ALIAS, BY_HAND = 1, 2, 3, 4, 5
# Nodes of these kinds do not make anybody known: browsers and devices change hands.
ANONYMOUS = frozenset({"anonymous_id", "device_token", "claimed"})

Pair = tuple[UUID, UUID]


class Node(msgspec.Struct, eq=False):
    """A node as identity sees it. `vouched`: a source vouched for it, or its owner pressed the button."""

    id: UUID
    kind: str
    first_seen: datetime
    vouched: bool = False
    over_limit: bool = False

    @property
    def known(self) -> bool:
        """Whether somebody who has this node is a known person."""
        return self.vouched and self.kind not in ANONYMOUS


class Link(msgspec.Struct, frozen=True):
    """Two nodes were observed as one person; `a` < `b`. `id`: of the event that observed it first."""

    a: UUID
    b: UUID
    strength: int
    first_observed: datetime
    id: UUID

    @property
    def pair(self) -> Pair:
        return self.a, self.b


def pair_of(one: UUID, other: UUID) -> Pair:
    return (one, other) if one < other else (other, one)


def rank_of(node: Node) -> tuple[int, datetime, UUID]:
    """The smallest is the strongest, then oldest node: it decides which profile id stays."""
    return -STRENGTH[node.kind], node.first_seen, node.id


def over_limit(nodes: Mapping[UUID, Node], links: Iterable[Link]) -> set[UUID]:
    """The nodes with more neighbours than their kind may have; what once was over its limit stays so."""
    neighbours: dict[UUID, set[UUID]] = {}
    for link in links:
        neighbours.setdefault(link.a, set()).add(link.b)
        neighbours.setdefault(link.b, set()).add(link.a)
    return {
        node.id
        for node in nodes.values()
        if node.over_limit or len(neighbours.get(node.id, ())) > DEGREE_LIMIT[node.kind]
    }


class Partition(msgspec.Struct):
    """What the links say: `people` and `components` are sets of nodes; a component holds whole people."""

    people: list[frozenset[UUID]]
    components: list[frozenset[UUID]]
    over_limit: set[UUID]


def partition(nodes: Mapping[UUID, Node], links: Collection[Link], cannot: Collection[Pair] = ()) -> Partition:
    """Who is one person, and what is connected at all, among `nodes`.

    :param links: all uncut links that touch these nodes; one that leads out of `nodes` leads to an id over its limit
    :param cannot: pairs that a person cut by hand
    """
    full = over_limit(nodes, links)
    joining = [
        link for link in links if link.a in nodes and link.b in nodes and link.a not in full and link.b not in full
    ]
    people, connected = _People(nodes, cannot), _Forest(nodes)
    for link in sorted(joining, key=lambda one: (-one.strength, one.first_observed, one.id, one.a, one.b)):
        connected.join(link.a, link.b)
        people.take(link)
    return Partition(people.forest.groups(), connected.groups(), full)


class _Forest:
    """Union-find."""

    def __init__(self, nodes: Iterable[UUID]) -> None:
        self._parent = {node: node for node in nodes}

    def root(self, node: UUID) -> UUID:
        parent = self._parent
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    def join(self, one: UUID, other: UUID) -> None:
        self._parent[self.root(one)] = self.root(other)

    def groups(self) -> list[frozenset[UUID]]:
        found: dict[UUID, set[UUID]] = {}
        for node in self._parent:
            found.setdefault(self.root(node), set()).add(node)
        return [frozenset(group) for group in found.values()]


class _People:
    """Kruskal with what must stay apart, kept per root."""

    def __init__(self, nodes: Mapping[UUID, Node], cannot: Collection[Pair]) -> None:
        self.forest = _Forest(nodes)
        self._exclusive = {node.id: {node.kind} for node in nodes.values() if node.kind in EXCLUSIVE}
        self._known = {node.id for node in nodes.values() if node.known}
        self._strangers: dict[UUID, set[UUID]] = {}
        for a, b in cannot:
            if a not in nodes or b not in nodes:
                continue
            self._strangers.setdefault(a, set()).add(b)
            self._strangers.setdefault(b, set()).add(a)

    def take(self, link: Link) -> None:
        """Joins the two people, unless something forbids it."""
        one, other = self.forest.root(link.a), self.forest.root(link.b)
        if one == other or self._forbidden(link, one, other):
            return
        self.forest.join(one, other)
        self._exclusive[other] = self._exclusive.get(one, set()) | self._exclusive.get(other, set())
        self._strangers[other] = self._strangers.get(one, set()) | self._strangers.get(other, set())
        if one in self._known:
            self._known.add(other)

    def _forbidden(self, link: Link, one: UUID, other: UUID) -> bool:
        if any(self.forest.root(stranger) == other for stranger in self._strangers.get(one, ())):
            return True
        if link.strength < ALIAS and self._exclusive.get(one, set()) & self._exclusive.get(other, set()):
            return True
        return link.strength == WEAK and one in self._known and other in self._known


class Group(msgspec.Struct, frozen=True):
    """A person after a decision: the nodes, sorted, and the profile id that stays (None: a new one is needed)."""

    nodes: tuple[UUID, ...]
    profile: UUID | None
    strongest: UUID


def assign(people: Iterable[Collection[UUID]], nodes: Mapping[UUID, Node], present: Mapping[UUID, UUID]) -> list[Group]:
    """Which profile id each person keeps. A profile goes where its strongest, then oldest node went; where several meet, that
    of the strongest, then oldest of these stays.

    :param present: node → profile, as it was before
    """
    leading: dict[UUID, UUID] = {}
    for node in sorted((node for node in present if node in nodes), key=lambda node: rank_of(nodes[node])):
        leading.setdefault(present[node], node)
    leaders = set(leading.values())
    groups = []
    for group in people:
        ranked = sorted(group, key=lambda node: rank_of(nodes[node]))
        profile = next((present[node] for node in ranked if node in leaders), None)
        groups.append(Group(tuple(sorted(group)), profile, ranked[0]))
    return groups


def heirs(
    before: Mapping[UUID, Collection[UUID]], groups: Iterable[Group], nodes: Mapping[UUID, Node]
) -> dict[UUID, Group]:
    """For each profile of `before` that nobody keeps: the group that has its strongest, then oldest node."""
    groups = list(groups)
    kept = {group.profile for group in groups}
    home = {node: group for group in groups for node in group.nodes}
    return {
        profile: home[min((node for node in members if node in home), key=lambda node: rank_of(nodes[node]))]
        for profile, members in before.items()
        if profile not in kept and any(node in home for node in members)
    }
