"""The read side of the CDP store: facts as of T, people, events, who belonged together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal as D

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import cdp
from shared.clock import MICROSECOND
from shared.db import Database
from shared.events import Event, ProfileEvent, decode_profile_record
from shared.facts.model import Facts
from tests.support.profile_dump import empty, people
from tests.support.profile_events import one_event
from tests.support.profile_feed import NAMESPACE, START, Feed, event, node


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, member="test", role="dripline_profile")
    yield opened
    await opened.close()


@pytest.fixture
async def reader(database_url: str) -> AsyncIterator[Database]:
    """As triggers reads: by a role that sees nothing of profile's own tables."""
    opened = await Database.open(database_url, member="test", role="dripline_triggers")
    yield opened
    await opened.close()


def seconds(count: float) -> datetime:
    return START + timedelta(seconds=count)


async def facts_of(database: Database, *questions: cdp.FactsQuestion) -> list[Facts | None]:
    async with database.transaction() as tx:
        return await cdp.facts(tx, questions)


def without_moment(facts: Facts | None) -> Facts:
    """Everything but the moment that was asked about."""
    assert facts is not None
    return msgspec.structs.replace(facts, as_of=None, last_learned_at=None)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events in the order in which they are received: that of what occurred is another one."""
    events = draw(st.permutations([draw(one_event(number)) for number in range(draw(st.integers(2, 10)))]))
    for number, one in enumerate(events):
        one.received_at = START + timedelta(hours=7, seconds=number)
    return events


@pytest.mark.timeout(600)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(events=histories())
async def test_what_was_known_at_a_moment_is_found_again_later(database: Database, events: list[Event]) -> None:
    """After each event what was published of its person, and everybody's facts, are noted; at the end the same are derived
    from rows as of each moment."""
    await empty(database)
    feed = Feed(database)
    noted: list[tuple[cdp.FactsQuestion, Facts]] = []
    for one in events:
        applied = await feed(one)
        published = [decode_profile_record(record.value) for record in applied.publish]
        noted += [
            (cdp.FactsQuestion(node=it.event.origin, at=it.learned_at, lines=False), without_moment(it.facts))
            for it in published
            if isinstance(it, ProfileEvent)
        ]
        async with database.transaction() as tx:
            persons = await people(tx)
            asked = [cdp.FactsQuestion(node=nodes[0], names=cdp.ALL_NAMES) for nodes in persons.values()]
            now = await cdp.facts(tx, asked)
            last = max(
                facts.last_learned_at for facts in now if facts is not None and facts.last_learned_at is not None
            )
            noted += [
                (msgspec.structs.replace(question, at=last), without_moment(facts))
                for question, facts in zip(asked, now, strict=True)
            ]
    later = await facts_of(database, *(question for question, _ in noted))
    for (question, expected), found in zip(noted, later, strict=True):
        assert without_moment(found) == expected, f"as of {question.at}"


async def test_nobody_had_the_node_before_it_was_learned(database: Database) -> None:
    await Feed(database)(event("Product Viewed", "m", at=10, ids={"anonymous_id": "a"}))
    asked = node("anonymous_id", "a")
    found = await facts_of(
        database,
        cdp.FactsQuestion(node=asked, at=seconds(10)),
        cdp.FactsQuestion(node=asked, at=seconds(10) - MICROSECOND),
    )
    assert found[0] is not None
    assert found[1] is None


async def test_a_question_about_a_stranger_has_no_answer(database: Database) -> None:
    stranger = node("anonymous_id", "nobody")
    async with database.transaction() as tx:
        assert await cdp.facts(tx, [cdp.FactsQuestion(node=stranger)]) == [None]
        assert await cdp.people_of(tx, [(stranger, None), (stranger, START)]) == [None, None]
        assert await cdp.events_of(tx, [cdp.EventsQuestion(nodes=[stranger], names=cdp.ALL_NAMES)]) == [[]]


async def test_the_other_services_read_through_views_alone(database: Database, reader: Database) -> None:
    await Feed(database)(event("Order Completed", "m", ids={"user_id": "u"}, properties={"order_id": "o", "total": 5}))
    (facts,) = await facts_of(
        reader, cdp.FactsQuestion(node=node("user_id", "u"), names=frozenset({"Order Completed"}))
    )
    assert facts is not None
    assert facts.orders[0].total == D(5)
    assert [(it.name, it.first, it.order_key) for it in facts.events] == [("Order Completed", True, "o")]
    async with reader.connection() as connection:
        with pytest.raises(Exception, match="permission denied"):
            await connection.fetch("SELECT * FROM profile.node")


async def test_people_of_says_whose_a_node_was(database: Database) -> None:
    feed = Feed(database)
    await feed(event("Product Viewed", "m1", at=1, ids={"anonymous_id": "a"}, trust="public"))
    await feed(event("Product Viewed", "m2", at=2, ids={"user_id": "u"}))
    await feed(event("Identify", "m3", at=3, ids={"user_id": "u", "anonymous_id": "a"}, trust="signed"))
    anonymous, user = node("anonymous_id", "a"), node("user_id", "u")
    async with database.transaction() as tx:
        before, after, now = await cdp.people_of(
            tx, [(anonymous, seconds(2)), (anonymous, seconds(3)), (anonymous, None)]
        )
        assert before is not None
        assert after is not None
        assert before.nodes == [anonymous]
        assert after.nodes == sorted([anonymous, user])
        assert now == after
        assert await cdp.current_profiles(tx, [before.profile, after.profile]) == {
            before.profile: after.profile,
            after.profile: after.profile,
        }


async def test_together_are_all_who_ever_shared_a_profile_in_that_time_transitively(database: Database) -> None:
    feed = Feed(database)
    await feed(event("Identify", "m1", at=1, ids={"user_id": "u", "email": "a@example.com"}))
    await feed(event("Identify", "m2", at=2, ids={"card": "c", "phone": "+79161234567"}))
    await feed(event("Identify", "m3", at=3, ids={"user_id": "u", "card": "c"}))
    await feed(event("Product Viewed", "m4", at=4, ids={"anonymous_id": "stranger"}))
    user, mail, card, phone = (
        node("user_id", "u"),
        node("email", "a@example.com"),
        node("card", "c"),
        node("phone", "+79161234567"),
    )
    async with database.transaction() as tx:
        early, late = await cdp.together(tx, [(mail, seconds(1), seconds(2)), (mail, seconds(2.5), seconds(9))])
    assert early == sorted([user, mail])
    assert late == sorted([user, mail, card, phone])


async def test_events_of_are_in_the_order_of_learning_and_within_the_bounds(database: Database) -> None:
    feed = Feed(database)
    names = ["Product Viewed", "Product Added", "Product Viewed", "Page Viewed"]
    for number, name in enumerate(names):
        await feed(event(name, f"m{number}", at=number, ids={"anonymous_id": "a"}, properties={"n": number}))
    nodes = [node("anonymous_id", "a")]
    async with database.transaction() as tx:
        everything, some, part = await cdp.events_of(
            tx,
            [
                cdp.EventsQuestion(nodes=nodes, names=cdp.ALL_NAMES),
                cdp.EventsQuestion(nodes=nodes, names=frozenset({"Product Viewed"})),
                cdp.EventsQuestion(
                    nodes=nodes, names=cdp.ALL_NAMES, learned_after=seconds(0), learned_until=seconds(2)
                ),
            ],
        )
    assert [it.properties["n"] for it in everything] == [0, 1, 2, 3]
    assert [it.properties["n"] for it in some] == [0, 2]
    assert [it.properties["n"] for it in part] == [1, 2]


async def test_events_come_with_facts_only_when_asked_for_and_since_looks_at_occurred_at(database: Database) -> None:
    feed = Feed(database)
    await feed(event("Product Viewed", "old", at=0, received=100, ids={"anonymous_id": "a"}))
    await feed(event("Product Viewed", "new", at=50, received=60, ids={"anonymous_id": "a"}))
    asked, viewed = node("anonymous_id", "a"), frozenset({"Product Viewed"})
    none, both, recent = await facts_of(
        database,
        cdp.FactsQuestion(node=asked),
        cdp.FactsQuestion(node=asked, names=viewed),
        cdp.FactsQuestion(node=asked, names=viewed, since=seconds(20)),
    )
    assert none is not None
    assert both is not None
    assert recent is not None
    assert none.events == []
    assert len(both.events) == 2
    assert [it.occurred_at for it in recent.events] == [seconds(50)]


async def test_the_number_of_statements_does_not_depend_on_how_many_are_asked(database: Database) -> None:
    feed = Feed(database)
    await feed(
        *(
            event(
                "Order Completed",
                f"m{n}",
                at=n,
                ids={"user_id": f"u-{n}"},
                properties={"order_id": n, "total": 5, "products": [{"product_id": "p"}]},
            )
            for n in range(60)
        )
    )

    async def count(number: int) -> int:
        statements: list[str] = []
        async with database.transaction() as tx:
            tx.add_query_logger(lambda record: statements.append(record.query))
            questions = [
                cdp.FactsQuestion(
                    node=node("user_id", f"u-{n}"), at=seconds(n - 0.5) if n % 2 else None, names=cdp.ALL_NAMES
                )
                for n in range(number)
            ]
            await cdp.facts(tx, [*questions, *(msgspec.structs.replace(it, at=seconds(99)) for it in questions)])
        return len(statements)

    assert await count(4) == await count(60)


async def test_an_identifier_is_found_as_a_person_writes_it(database: Database) -> None:
    await Feed(database)(
        event("Identify", "m", ids={"user_id": "u", "email": "anna@example.com", "phone": "+79161234567"})
    )
    asked = [
        ("email", " Anna@Example.COM "),
        ("phone", "8 916 123-45-67"),
        ("email", "not an address"),
        ("user_id", "U"),
    ]
    async with database.transaction() as tx:
        assert await cdp.nodes_by_identifier(tx, NAMESPACE, "RU", asked) == [
            node("email", "anna@example.com"),
            node("phone", "+79161234567"),
            None,
            None,
        ]
