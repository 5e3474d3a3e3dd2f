"""Who is who, as a function of the set of links."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.profile.identity import (
    ALIAS,
    BY_HAND,
    SECRET,
    SIGNED,
    WEAK,
    Link,
    Node,
    assign,
    heirs,
    pair_of,
    partition,
)
from shared.identifiers import DEGREE_LIMIT

START = datetime(2025, 1, 1, tzinfo=UTC)


class Base:
    """Nodes by short names, and the links between them."""

    def __init__(self) -> None:
        self.nodes: dict[UUID, Node] = {}
        self.names: dict[str, UUID] = {}
        self.links: list[Link] = []

    def node(self, name: str, kind: str, *, known: bool = False, seen: int = 0) -> UUID:
        one = Node(UUID(int=len(self.nodes) + 1), kind, START + timedelta(hours=seen), known)
        self.nodes[one.id] = one
        self.names[name] = one.id
        return one.id

    def link(self, one: str, other: str, strength: int = SECRET, at: int = 0) -> None:
        a, b = pair_of(self.names[one], self.names[other])
        self.links.append(Link(a, b, strength, START + timedelta(hours=at), UUID(int=1000 + len(self.links))))

    def people(self, *cannot: tuple[str, str]) -> set[frozenset[str]]:
        by_id = {node: name for name, node in self.names.items()}
        pairs = [pair_of(self.names[a], self.names[b]) for a, b in cannot]
        found = partition(self.nodes, self.links, pairs)
        return {frozenset(by_id[node] for node in person) for person in found.people}


def people(*groups: str) -> set[frozenset[str]]:
    return {frozenset(group.split()) for group in groups}


def test_touch_points_that_were_seen_together_are_one_person() -> None:
    base = Base()
    base.node("cookie", "anonymous_id")
    base.node("user", "user_id")
    base.node("mail", "email")
    base.link("cookie", "user", SIGNED)
    base.link("user", "mail")
    assert base.people() == people("cookie user mail")


def test_two_user_ids_in_one_browser_stay_two_people_and_the_earlier_keeps_the_browser() -> None:
    base = Base()
    base.node("anna", "user_id")
    base.node("boris", "user_id")
    base.node("browser", "anonymous_id")
    base.link("boris", "browser", SIGNED, at=2)
    base.link("anna", "browser", SIGNED, at=1)
    assert base.people() == people("anna browser", "boris")


def test_a_better_link_that_arrives_late_moves_the_browser() -> None:
    base = Base()
    base.node("anna", "user_id")
    base.node("boris", "user_id")
    base.node("browser", "anonymous_id")
    base.link("anna", "browser", WEAK, at=1)
    assert base.people() == people("anna browser", "boris")
    base.link("boris", "browser", SECRET, at=5)
    assert base.people() == people("boris browser", "anna")


def test_a_user_id_and_a_card_may_be_one_person_but_two_cards_may_not() -> None:
    base = Base()
    base.node("user", "user_id")
    base.node("card", "card")
    base.node("other card", "card")
    base.link("user", "card", at=1)
    base.link("user", "other card", at=2)
    assert {len(person) for person in base.people()} == {2, 1}
    assert frozenset({"user", "card"}) in base.people()


def test_an_alias_and_a_merge_by_hand_join_two_user_ids() -> None:
    for strength in (ALIAS, BY_HAND):
        base = Base()
        base.node("old", "user_id")
        base.node("new", "user_id")
        base.link("old", "new", strength)
        assert base.people() == people("old new")


def test_a_public_link_never_joins_two_known_people() -> None:
    base = Base()
    base.node("card", "card", known=True)
    base.node("mail", "email", known=True)
    base.node("browser", "anonymous_id")
    base.link("browser", "card", WEAK, at=1)
    base.link("browser", "mail", WEAK, at=2)
    assert base.people() == people("browser card", "mail")


def test_a_strong_link_joins_two_known_people() -> None:
    base = Base()
    base.node("card", "card", known=True)
    base.node("mail", "email", known=True)
    base.link("card", "mail", SECRET)
    assert base.people() == people("card mail")


def test_a_cut_by_hand_outranks_every_later_observation() -> None:
    base = Base()
    base.node("user", "user_id")
    base.node("mail", "email")
    base.node("browser", "anonymous_id")
    base.link("user", "mail", ALIAS, at=9)
    base.link("user", "browser", at=1)
    base.link("mail", "browser", at=2)
    assert base.people() == people("user mail browser")
    assert base.people(("user", "mail")) == people("user browser", "mail")


def test_an_id_over_its_limit_joins_nobody() -> None:
    base = Base()
    base.node("shop phone", "phone")
    for number in range(DEGREE_LIMIT["phone"]):
        base.node(f"card {number}", "email")
        base.link("shop phone", f"card {number}", at=number)
    assert len(base.people()) == 1
    base.node("one more", "email")
    base.link("shop phone", "one more", at=999)
    assert base.people() == {frozenset({name}) for name in base.names}


def test_what_is_connected_only_by_an_id_over_its_limit_is_no_component() -> None:
    base = Base()
    base.node("shop phone", "phone")
    base.nodes[base.names["shop phone"]].over_limit = True
    base.node("anna", "card")
    base.node("boris", "card")
    base.link("shop phone", "anna")
    base.link("shop phone", "boris")
    assert len(partition(base.nodes, base.links).components) == 3


def test_a_skipped_link_still_connects() -> None:
    base = Base()
    base.node("anna", "user_id")
    base.node("boris", "user_id")
    base.link("anna", "boris")
    found = partition(base.nodes, base.links)
    assert len(found.people) == 2
    assert len(found.components) == 1


def test_the_strongest_then_oldest_nodes_profile_stays() -> None:
    base = Base()
    browser = base.node("browser", "anonymous_id", seen=0)
    mail = base.node("mail", "email", seen=5)
    old_mail = base.node("old mail", "email", seen=1)
    present = {browser: UUID(int=71), mail: UUID(int=72), old_mail: UUID(int=73)}
    (group,) = assign([[browser, mail, old_mail]], base.nodes, present)
    assert group.profile == UUID(int=73)


def test_after_a_split_one_keeps_the_profile_and_the_other_gets_none() -> None:
    base = Base()
    user = base.node("user", "user_id")
    browser = base.node("browser", "anonymous_id")
    profile = UUID(int=70)
    groups = assign([[browser], [user]], base.nodes, {user: profile, browser: profile})
    assert {group.nodes: group.profile for group in groups} == {(user,): profile, (browser,): None}


def test_a_profile_goes_where_its_strongest_node_went_even_if_others_met_somebody_stronger() -> None:
    base = Base()
    anna = base.node("anna", "user_id", seen=5)
    browser = base.node("browser", "anonymous_id")
    newcomer = base.node("newcomer", "user_id", seen=1)
    profile = UUID(int=70)
    groups = assign([[newcomer, browser], [anna]], base.nodes, {anna: profile, browser: profile})
    assert {group.strongest: group.profile for group in groups} == {newcomer: None, anna: profile}


def test_the_heir_of_a_vanished_profile_has_its_strongest_node() -> None:
    base = Base()
    user = base.node("user", "user_id")
    other = base.node("other", "user_id")
    mail = base.node("mail", "email")
    phone = base.node("phone", "phone")
    gone = UUID(int=9)
    present = {user: UUID(int=1), other: UUID(int=2), mail: gone, phone: gone}
    groups = assign([[user, mail], [other, phone]], base.nodes, present)
    before = {UUID(int=1): [user], UUID(int=2): [other], gone: [mail, phone]}
    assert heirs(before, groups, base.nodes)[gone].profile == UUID(int=1)


KINDS = ["user_id", "card", "email", "phone", "anonymous_id"]


@st.composite
def bases(draw: st.DrawFn) -> tuple[dict[UUID, Node], list[Link], list[tuple[UUID, UUID]]]:
    count = draw(st.integers(2, 9))
    nodes = {
        UUID(int=i): Node(UUID(int=i), draw(st.sampled_from(KINDS)), START, draw(st.booleans()))
        for i in range(1, count + 1)
    }
    ends = st.lists(st.sampled_from(sorted(nodes)), min_size=2, max_size=2, unique=True).map(lambda two: pair_of(*two))
    links = [
        Link(
            *draw(ends),
            draw(st.sampled_from([WEAK, SIGNED, SECRET, ALIAS])),
            START + timedelta(hours=draw(st.integers(0, 3))),
            UUID(int=100 + i),
        )
        for i in range(draw(st.integers(0, 14)))
    ]
    return nodes, links, draw(st.lists(ends, max_size=3))


@given(base=bases(), random=st.randoms(use_true_random=False))
def test_the_order_of_the_links_makes_no_difference(base, random) -> None:  # type: ignore[no-untyped-def]
    nodes, links, cannot = base
    expected = partition(nodes, links, cannot)
    random.shuffle(links)
    shuffled = partition(dict(sorted(nodes.items(), reverse=True)), links, list(reversed(cannot)))
    assert set(shuffled.people) == set(expected.people)
    assert set(shuffled.components) == set(expected.components)


@given(base=bases())
def test_what_must_stay_apart_is_never_one_person(base) -> None:  # type: ignore[no-untyped-def]
    nodes, links, cannot = base
    ordinary = [link for link in links if link.strength < ALIAS]
    for person in partition(nodes, ordinary, cannot).people:
        for kind in ("user_id", "card"):
            assert sum(nodes[node].kind == kind for node in person) <= 1
        assert not any(a in person and b in person for a, b in cannot)


@given(base=bases())
def test_people_who_could_be_joined_are_joined(base) -> None:  # type: ignore[no-untyped-def]
    """Nothing that may be taken is left out: each link between two people has a reason to be skipped."""
    nodes, links, cannot = base
    found = partition(nodes, links, cannot)
    home = {node: person for person in found.people for node in person}
    for link in links:
        one, other = home[link.a], home[link.b]
        if one == other:
            continue
        apart = any((a in one and b in other) or (a in other and b in one) for a, b in cannot)
        exclusive = link.strength < ALIAS and any(
            {nodes[n].kind for n in one} & {nodes[n].kind for n in other} & {kind} for kind in ("user_id", "card")
        )
        both_known = link.strength == WEAK and any(nodes[n].known for n in one) and any(nodes[n].known for n in other)
        assert apart or exclusive or both_known
