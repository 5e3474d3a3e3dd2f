"""A batch of events becomes people and facts, in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal as D
from typing import Any
from uuid import UUID

import pytest

from shared import cdp
from shared.clock import MICROSECOND
from shared.consumer import Applied
from shared.db import Database
from shared.erasure import erase
from shared.errors import Permanent
from shared.events import (
    HISTORY,
    ProfileEvent,
    ProfileMerged,
    ProfileRecord,
    ProfileSplit,
    decode_profile_record,
    encode,
)
from shared.facts.model import Facts
from shared.identifiers import DEGREE_LIMIT
from tests.support.hostile import BROKEN_VALUES
from tests.support.profile_dump import differences_to_rows, membership_faults, people
from tests.support.profile_feed import SECRET, START, Feed, event, node


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, member="test", role="dripline_profile")
    yield opened
    await opened.close()


@pytest.fixture
def feed(database: Database) -> Feed:
    return Feed(database)


def seconds(count: float) -> datetime:
    return START + timedelta(seconds=count)


def records(applied: Applied) -> list[ProfileRecord]:
    return [decode_profile_record(record.value) for record in applied.publish]


def events_of(applied: Applied) -> list[ProfileEvent]:
    return [record for record in records(applied) if isinstance(record, ProfileEvent)]


async def facts(database: Database, kind: str, value: str, at: datetime | None = None) -> Facts:
    async with database.transaction() as tx:
        (found,) = await cdp.facts(tx, [cdp.FactsQuestion(node=node(kind, value), at=at)])
    assert found is not None
    return found


async def rows(database: Database, sql: str, *arguments: Any) -> list[Any]:
    async with database.connection() as connection:
        return [tuple(row) for row in await connection.fetch(sql, *arguments)]


# ── one customer ───────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_annas_day(database: Database, feed: Feed) -> None:
    """The walkthrough: a cart in a browser, a login, an order at the till that is applied late."""
    server = event("Identify", "s-1", at=-9000, ids={"user_id": "u-9", "email": "anna@example.com"})
    card = event("Identify", "s-2", at=-8000, ids={"user_id": "u-9", "card": "c-5"})
    await feed(server, card)
    (cart,) = events_of(
        await feed(
            event(
                "Product Added",
                "m-1",
                ids={"anonymous_id": "a-77"},
                trust="public",
                properties={"product_id": "p-1", "price": 1500},
            )
        )
    )
    assert cart.facts.cart.total == D(1500)
    login = event(
        "Identify",
        "m-2",
        at=1200,
        ids={"user_id": "u-9", "anonymous_id": "a-77", "email": "anna@example.com"},
        trust="signed",
    )
    merged, _, seen = records(await feed(login))
    assert isinstance(merged, ProfileMerged)
    assert isinstance(seen, ProfileEvent)
    assert (merged.loser, merged.winner) == (cart.profile, seen.profile)
    assert seen.facts.cart.total == D(1500)
    assert [(it.value, it.status) for it in seen.facts.addresses] == [("anna@example.com", "asserted")]
    till = event(
        "Order Completed",
        "t-1",
        at=2400,
        ids={"card": "c-5"},
        properties={
            "store_id": "shop-1",
            "terminal_id": "2",
            "receipt_id": "881",
            "channel": "pos",
            "total": 1500,
            "products": [{"product_id": "p-1", "quantity": 1, "price": 1500}],
        },
    )
    feed.now = seconds(3900)
    (order,) = events_of(await feed(till))
    assert (order.learned_at, order.order_key, order.first) == (seconds(2400), "shop-1/2/881", True)
    assert order.facts.cart.items == []
    assert [(it.key, it.total, it.channel) for it in order.facts.orders] == [("shop-1/2/881", D(1500), "pos")]
    before = await facts(database, "user_id", "u-9", at=seconds(2399))
    assert before.cart.total == D(1500)
    assert before.orders == []


async def test_an_address_that_only_a_website_named_is_claimed(database: Database, feed: Feed) -> None:
    await feed(
        event(
            "Identify",
            "m",
            ids={"anonymous_id": "a", "email": "x@example.com"},
            trust="public",
            traits={"email": "x@example.com"},
        )
    )
    found = await facts(database, "anonymous_id", "a")
    assert [(it.value, it.status) for it in found.addresses] == [("x@example.com", "claimed")]


async def test_a_website_does_not_override_what_the_server_said(database: Database, feed: Feed) -> None:
    await feed(event("Identify", "m1", at=1, ids={"user_id": "u", "anonymous_id": "a"}, traits={"city": "Kazan"}))
    await feed(
        event(
            "Identify",
            "m2",
            at=9,
            ids={"anonymous_id": "a"},
            trust="public",
            traits={"city": "Elsewhere", "pet": "cat"},
        )
    )
    assert (await facts(database, "user_id", "u")).traits == {"city": "Kazan", "pet": "cat"}


async def test_a_website_cannot_merge_two_known_people(database: Database, feed: Feed) -> None:
    await feed(
        event("Identify", "m1", at=1, ids={"card": "c"}),
        event("Identify", "m2", at=2, ids={"email": "known@example.com"}),
        event("Identify", "m3", at=3, ids={"card": "c", "anonymous_id": "a"}),
    )
    await feed(event("Identify", "m4", at=4, ids={"anonymous_id": "a", "email": "known@example.com"}, trust="public"))
    assert node("email", "known@example.com") not in (await facts(database, "card", "c")).nodes


async def test_the_zone_is_the_trait_timezone_if_it_is_one(database: Database, feed: Feed) -> None:
    await feed(event("Identify", "m1", at=1, ids={"user_id": "u"}, traits={"timezone": "Asia/Yekaterinburg"}))
    assert (await facts(database, "user_id", "u")).zone == "Asia/Yekaterinburg"
    assert await rows(database, "SELECT timezone FROM cdp.profile") == [("Asia/Yekaterinburg",)]
    await feed(event("Identify", "m2", at=2, ids={"user_id": "u"}, traits={"timezone": "Mars/Olympus"}))
    assert (await facts(database, "user_id", "u")).zone is None


# ── repeats ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_repeat_takes_effect_once_and_another_body_is_a_conflict(database: Database, feed: Feed) -> None:
    one = event("Product Added", "m", ids={"anonymous_id": "a"}, properties={"product_id": "p"})
    other = event("Product Added", "m", ids={"anonymous_id": "a"}, properties={"product_id": "q"})
    first = await feed(one, one, other)
    again = await feed(one, other)
    assert (first.applied, first.repeated, first.conflicting) == (1, 1, 1)
    assert (again.applied, again.repeated, again.conflicting) == (0, 1, 1)
    assert [it.product_id for it in (await facts(database, "anonymous_id", "a")).cart.items] == ["p"]
    assert again.publish == []


async def test_the_counts_of_a_batch_add_up(feed: Feed) -> None:
    batch = [
        event("Product Viewed", f"m{n % 7}", ids={"anonymous_id": "a"}, properties={"n": n % 9}) for n in range(30)
    ]
    applied = await feed(*batch)
    assert applied.applied + applied.repeated + applied.conflicting + applied.erased == 30
    assert applied.applied == 7


# ── time ───────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_learned_at_is_received_at_and_rises_for_one_person(database: Database, feed: Feed) -> None:
    applied = await feed(
        event("Product Viewed", "m1", at=0, received=10, ids={"user_id": "u"}),
        event("Product Viewed", "m2", at=0, received=10, ids={"user_id": "u"}),
        event("Product Viewed", "m3", at=0, received=5, ids={"user_id": "u"}),
        event("Product Viewed", "m4", at=0, received=7, ids={"user_id": "other"}),
    )
    learned = [it.learned_at for it in events_of(applied)]
    assert learned == [seconds(10), seconds(10) + MICROSECOND, seconds(10) + 2 * MICROSECOND, seconds(7)]


async def test_two_people_who_merge_learn_after_both(database: Database, feed: Feed) -> None:
    await feed(event("Product Viewed", "m1", at=0, received=100, ids={"user_id": "u"}))
    await feed(event("Product Viewed", "m2", at=0, received=200, ids={"anonymous_id": "a"}))
    applied = await feed(event("Identify", "m3", at=0, received=50, ids={"user_id": "u", "anonymous_id": "a"}))
    assert events_of(applied)[0].learned_at == seconds(200) + MICROSECOND


async def test_received_at_is_never_later_than_now(database: Database, feed: Feed) -> None:
    feed.now = seconds(50)
    applied = await feed(event("Product Viewed", "m1", at=90, received=99, ids={"user_id": "u"}))
    (published,) = events_of(applied)
    assert (published.learned_at, published.event.received_at, published.event.occurred_at) == (seconds(50),) * 3


async def test_an_event_is_learned_after_the_marks_made_before_it_came(database: Database, feed: Feed) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO platform.mark (f, epoch, ends) VALUES ($1, 'epoch', '{1,0}'), ($2, 'epoch', '{2,0}')",
            seconds(100),
            seconds(200),
        )
    applied = await feed(*(event("Product Viewed", f"m{n}", at=n, ids={"user_id": f"u{n}"}) for n in range(3)))
    assert [it.learned_at for it in events_of(applied)] == [
        seconds(0),
        seconds(100) + MICROSECOND,
        seconds(200) + MICROSECOND,
    ]


async def test_history_is_learned_now_and_after_the_latest_mark_and_publishes_only_who_merged(
    database: Database,
) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO platform.mark (f, epoch, ends) VALUES ($1, 'epoch', '{0,0}')", seconds(5000)
        )
    feed = Feed(database, topic=HISTORY)
    feed.now = seconds(100)
    await feed(
        event(
            "Order Completed", "h1", at=1, ids={"user_id": "u"}, properties={"order_id": "o", "total": 7}, history=True
        )
    )
    await feed(event("Product Viewed", "h2", at=2, ids={"card": "c"}, history=True))
    applied = await feed(event("Identify", "h3", at=3, ids={"user_id": "u", "card": "c"}, history=True))
    assert {type(it) for it in records(applied)} == {ProfileMerged}
    found = await facts(database, "card", "c")
    assert (
        found.last_learned_at == seconds(5000) + 3 * MICROSECOND
        or found.last_learned_at == seconds(5000) + 2 * MICROSECOND
    )
    assert [(it.total, it.history) for it in found.orders] == [(D(7), True)]


# ── orders ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_three_reports_of_one_order_are_one_order_and_one_of_them_is_first(
    database: Database, feed: Feed
) -> None:
    browser = event(
        "Order Completed",
        "b",
        at=1,
        ids={"anonymous_id": "a"},
        trust="public",
        properties={"order_id": "o", "total": 1},
    )
    server = event("Order Completed", "s", at=2, ids={"user_id": "u"}, properties={"order_id": "o", "total": 99.5})
    nightly = event("Order Completed", "n", at=3, ids={"card": "c"}, properties={"order_id": " o ", "total": 99.5})
    flags = []
    for one in (browser, server, nightly):
        (published,) = events_of(await feed(one))
        flags.append((published.order_key, published.first))
    assert flags == [("o", False), ("o", True), ("o", False)]
    assert (await facts(database, "anonymous_id", "a")).orders == []
    assert (await facts(database, "user_id", "u")).orders == []
    (order,) = (await facts(database, "card", "c")).orders
    assert (order.total, order.learned_at) == (D("99.5"), seconds(1))
    assert await rows(database, "SELECT key, node, total, first_learned_at FROM cdp.order_entity") == [
        ("o", node("card", "c"), D("99.5"), seconds(1))
    ]
    assert await differences_to_rows(database) == []


async def test_a_refund_may_come_before_its_order_and_from_elsewhere(database: Database, feed: Feed) -> None:
    await feed(event("Order Refunded", "r", at=1, ids={"card": "c"}, properties={"order_id": "o", "total": -5}))
    (alone,) = (await facts(database, "card", "c")).refunds
    assert (alone.order_key, alone.amount) == ("o", D(5))
    await feed(event("Order Completed", "o", at=2, ids={"user_id": "u"}, properties={"order_id": "o", "total": 20}))
    (order,) = (await facts(database, "user_id", "u")).orders
    assert order.refunded == D(5)
    assert (await facts(database, "card", "c")).refunds == []
    assert await differences_to_rows(database) == []


async def test_goods_sent_back_without_an_amount_before_their_order_is_known_lower_it_by_their_price(
    database: Database, feed: Feed
) -> None:
    back = {"order_id": "o", "products": [{"product_id": "p", "quantity": 1}]}
    bought = [{"product_id": "p", "quantity": 2, "price": 5}, {"product_id": "q", "quantity": 1, "price": 7}]
    await feed(event("Order Refunded", "r", at=1, ids={"user_id": "u"}, properties=back))
    (alone,) = (await facts(database, "user_id", "u")).refunds
    assert alone.amount is None
    properties = {"order_id": "o", "total": 17, "products": bought}
    await feed(event("Order Completed", "o", at=2, ids={"user_id": "u"}, properties=properties))
    (order,) = (await facts(database, "user_id", "u")).orders
    assert (order.refunded, [line.returned for line in order.lines]) == (D(5), [D(1), D(0)])
    assert await rows(database, "SELECT total, refunded FROM cdp.order_entity") == [(D(17), D(5))]
    assert await differences_to_rows(database) == []


async def test_an_order_in_another_currency_is_the_records_own_fault(feed: Feed) -> None:
    with pytest.raises(Permanent) as problem:
        await feed(
            event(
                "Order Completed",
                "m",
                ids={"user_id": "u"},
                properties={"order_id": "o", "total": 5, "currency": "USD"},
            )
        )
    assert problem.value.pointer == "/properties/currency"


# ── people change ──────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_an_earlier_link_that_arrives_late_splits_a_person(database: Database, feed: Feed) -> None:
    await feed(
        event("Product Added", "m1", at=9, ids={"anonymous_id": "a"}, trust="public", properties={"product_id": "p"})
    )
    await feed(event("Identify", "m2", at=50, ids={"user_id": "anna", "anonymous_id": "a"}, traits={"name": "Anna"}))
    applied = await feed(
        event(
            "Identify",
            "m3",
            at=20,
            received=60,
            ids={"user_id": "boris", "anonymous_id": "a"},
            traits={"name": "Boris"},
        )
    )
    split = [it for it in records(applied) if isinstance(it, ProfileSplit)]
    assert {tuple(it.nodes) for it in split} == {(node("anonymous_id", "a"),)}
    assert {key.key for key in applied.publish[:2]} == {
        str(split[0].profile).encode(),
        str(split[0].new_profile).encode(),
    }
    anna, boris = await facts(database, "user_id", "anna"), await facts(database, "user_id", "boris")
    assert (anna.traits, anna.cart.items) == ({"name": "Anna"}, [])
    assert (boris.traits, [it.product_id for it in boris.cart.items]) == ({"name": "Boris"}, ["p"])
    then = await facts(database, "user_id", "anna", at=seconds(55))
    assert [it.product_id for it in then.cart.items] == ["p"]
    assert await membership_faults(database) == []
    assert await differences_to_rows(database) == []


async def test_crossing_the_limit_of_links_parts_everybody(database: Database, feed: Feed) -> None:
    limit = DEGREE_LIMIT["phone"]
    shop = "+74950000000"
    await feed(
        *(event("Identify", f"m{n}", at=n, ids={"email": f"{n}@example.com", "phone": shop}) for n in range(limit))
    )
    async with database.transaction() as tx:
        assert len(await people(tx)) == 1
    await feed(event("Identify", "one more", at=99, ids={"email": "more@example.com", "phone": shop}))
    async with database.transaction() as tx:
        assert sorted(len(nodes) for nodes in (await people(tx)).values()) == [1] * (limit + 2)
        components = await tx.fetchval("SELECT count(DISTINCT component) FROM profile.profile")
    assert components == limit + 2
    await feed(event("Identify", "and one", at=100, ids={"email": "and@example.com", "phone": shop}))
    assert await differences_to_rows(database) == []
    assert await membership_faults(database) == []


async def test_an_alias_of_the_server_joins_two_user_ids_and_a_websites_does_not(
    database: Database, feed: Feed
) -> None:
    await feed(
        event("Identify", "m1", at=1, ids={"user_id": "old"}), event("Identify", "m2", at=2, ids={"user_id": "new"})
    )
    pair = [("user_id", "new"), ("user_id", "old")]
    await feed(event("Alias", "m3", at=3, ids=[*pair, ("anonymous_id", "x")], trust="public", type="alias"))
    assert node("user_id", "old") not in (await facts(database, "user_id", "new")).nodes
    await feed(event("Alias", "m4", at=4, ids=pair, type="alias"))
    assert node("user_id", "old") in (await facts(database, "user_id", "new")).nodes


async def test_profile_ids_are_never_reused(database: Database, feed: Feed) -> None:
    seen: set[UUID] = set()
    for turn in range(4):
        # each time an earlier observation takes the browser over
        user = ["anna", "boris"][turn % 2]
        await feed(
            event(
                "Identify", f"m{turn}", at=100 - turn, received=200 + turn, ids={"user_id": user, "anonymous_id": "a"}
            )
        )
        async with database.transaction() as tx:
            seen |= set(await people(tx))
            aliases = {row["old"] for row in await tx.fetch("SELECT old FROM profile.profile_alias")}
            assert not aliases & set(await people(tx))
    assert await membership_faults(database) == []


# ── erasure, purge ─────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_what_occurred_before_an_erasure_is_dropped_and_what_comes_later_starts_anew(
    database: Database, feed: Feed
) -> None:
    async with database.transaction() as tx:
        await erase(tx, SECRET, [node("email", "gone@example.com")], seconds(100))
    before = event("Identify", "m1", at=50, received=150, ids={"user_id": "u", "email": "gone@example.com"})
    applied = await feed(before, event("Product Viewed", "m2", at=60, ids={"user_id": "u"}))
    assert (applied.erased, applied.applied) == (1, 1)
    assert (await facts(database, "user_id", "u")).addresses == []
    later = await feed(event("Identify", "m3", at=101, ids={"user_id": "u", "email": "gone@example.com"}))
    assert later.erased == 0
    assert len((await facts(database, "user_id", "u")).addresses) == 1


async def test_our_own_events_about_somebody_erased_are_dropped(database: Database, feed: Feed) -> None:
    origin = node("email", "gone@example.com")
    async with database.transaction() as tx:
        await erase(tx, SECRET, [origin], seconds(100))
    applied = await feed(event("Email Delivered", "m", at=200, ids=[], origin=origin, trust="internal"))
    assert applied.erased == 1


def requested(message: str, at: float) -> Any:
    return event(
        "Subscription Requested",
        message,
        at=at,
        ids={"anonymous_id": "a", "email": "typo@example.com"},
        trust="public",
        traits={"email": "typo@example.com"},
        properties={"channel": "email", "address": "typo@example.com", "topics": ["news"]},
    )


def purge_event(message: str, at: float) -> Any:
    return event(
        "Contact Purged",
        message,
        at=at,
        ids=[],
        origin=node("email", "typo@example.com"),
        trust="internal",
        properties={"channel": "email", "address": "typo@example.com", "reason": "never confirmed"},
    )


async def test_a_purged_contact_is_gone_with_its_address_and_a_hash_stays(database: Database, feed: Feed) -> None:
    await feed(requested("m1", 1))
    await feed(
        event("Product Added", "m2", at=2, ids={"anonymous_id": "a"}, trust="public", properties={"product_id": "p"})
    )
    applied = await feed(purge_event("m3", 100))
    assert applied.applied == 1
    found = await facts(database, "anonymous_id", "a")
    assert (found.addresses, found.consents, found.traits) == ([], [], {})
    assert len(found.cart.items) == 1
    for table in ("node", "event", "trait", "consent", "profile"):
        assert not await rows(database, f"SELECT 1 FROM profile.{table} t WHERE t::text LIKE '%typo@example%'"), table
    async with database.transaction() as tx:
        address = node("email", "typo@example.com")
        assert await cdp.purged_at(tx, SECRET, [address], timedelta(days=30), seconds(200)) == {
            address: seconds(100) + MICROSECOND
        }
        assert await cdp.purged_at(tx, SECRET, [address], timedelta(days=30), seconds(31 * 86_400)) == {}
    assert await membership_faults(database) == []
    await feed(requested("m4", 300))
    again = await facts(database, "anonymous_id", "a")
    assert [(it.value, it.status) for it in again.addresses] == [("typo@example.com", "claimed")]
    assert [(it.state, it.topic) for it in again.consents] == [("requested", "news")]


@pytest.mark.parametrize(
    ("kind", "channel", "typed", "digits"),
    [
        ("phone", "sms", "8 (903) 123-45-67", "123-45-67"),
        ("email", "email", "Anna@Почта.рф", "почта"),
    ],
)
async def test_an_address_is_purged_in_whatever_way_it_was_typed(
    database: Database, feed: Feed, kind: str, channel: str, typed: str, digits: str
) -> None:
    said = {"channel": channel, "address": typed, "topics": ["news"], "form": {"contact": typed, "kept": "yes"}}
    ids = {"anonymous_id": "a", kind: typed}
    await feed(
        event("Subscription Requested", "m1", at=1, ids=ids, trust="public", traits={kind: typed}, properties=said),
        event("Form Sent", "m2", at=2, ids={"anonymous_id": "a"}, trust="public", properties={"call_me": typed}),
        event("Form Sent", "m3", at=3, ids={"anonymous_id": "a"}, trust="public", properties={"call_me": "no"}),
    )
    purge = {"channel": channel, "address": typed, "reason": "never confirmed"}
    await feed(
        event("Contact Purged", "m4", at=9, ids=[], origin=node(kind, typed), trust="internal", properties=purge)
    )
    for table in ("node", "event", "trait", "consent", "profile"):
        told = await rows(
            database, f"SELECT t::text FROM profile.{table} t WHERE lower(t::text) LIKE $1", f"%{digits}%"
        )
        assert told == [], table
    kept = await rows(
        database, "SELECT properties FROM profile.event WHERE name <> 'Contact Purged' ORDER BY learned_at"
    )
    assert [properties for (properties,) in kept] == [
        {"channel": channel, "topics": ["news"], "form": {"kept": "yes"}},
        {},
        {"call_me": "no"},
    ]
    assert (await facts(database, "anonymous_id", "a")).traits == {}
    assert await differences_to_rows(database) == []


@pytest.mark.parametrize("how", ["asserted", "confirmed"])
async def test_a_contact_that_anybody_asserted_or_confirmed_is_not_purged(
    database: Database, feed: Feed, how: str
) -> None:
    await feed(requested("m1", 1))
    if how == "asserted":
        await feed(event("Identify", "m2", at=2, ids={"user_id": "u", "email": "typo@example.com"}))
    else:
        properties = {"channel": "email", "address": "typo@example.com", "topics": ["news"]}
        await feed(
            event(
                "Subscription Confirmed",
                "m2",
                at=2,
                ids={"email": "typo@example.com"},
                trust="internal",
                properties=properties,
            )
        )
    await feed(purge_event("m3", 100))
    assert [it.status for it in (await facts(database, "email", "typo@example.com")).addresses] == [how]
    assert await rows(database, "SELECT 1 FROM profile.purged") == []


async def test_an_opt_out_stays_when_its_contact_is_purged(database: Database, feed: Feed) -> None:
    await feed(requested("m1", 1))
    properties = {"channel": "email", "address": "typo@example.com"}
    await feed(
        event("Unsubscribed", "m2", at=2, ids={"email": "typo@example.com"}, trust="internal", properties=properties)
    )
    await feed(purge_event("m3", 100), requested("m4", 200))
    assert {it.topic: it.state for it in (await facts(database, "anonymous_id", "a")).consents} == {
        "*": "withdrawn",
        "news": "withdrawn",
    }


async def test_a_request_after_the_purge_in_the_same_batch_is_applied_after_it(database: Database, feed: Feed) -> None:
    applied = await feed(requested("m1", 1), purge_event("m2", 100), requested("m3", 200))
    assert applied.applied == 3
    assert [it.value for it in (await facts(database, "anonymous_id", "a")).addresses] == ["typo@example.com"]
    assert await differences_to_rows(database) == []


# ── hostile records ────────────────────────────────────────────────────────────────────────────────────────────────────
def broken(field: str, value: bytes) -> bytes:
    """An otherwise good event with `value` in one of its fields."""
    one = event(
        "Product Added", "bad", ids={"anonymous_id": "a"}, properties={"product_id": "MARK"}, traits={"x": "TRAIT"}
    )
    text = encode(one)
    replaced = {
        "properties": (b'"MARK"', value),
        "traits": (b'"TRAIT"', value),
        "name": (b'"Product Added"', value),
        "message_id": (b'"bad"', value),
        "value": (b'"a"', value),
        "occurred_at": (b'"2025-03-03T10:00:00Z"', value),
        "hash": (f'"{one.hash}"'.encode(), value),
    }[field]
    assert replaced[0] in text
    return text.replace(*replaced, 1)


@pytest.mark.parametrize("field", ["properties", "traits", "name", "message_id", "value", "occurred_at", "hash"])
async def test_a_record_that_cannot_be_stored_hurts_nobody_else(database: Database, feed: Feed, field: str) -> None:
    """Whatever is in it, it is either stored or refused by itself; the transaction is clean again under a savepoint."""
    good = [event("Product Viewed", f"good{n}", at=n, ids={"user_id": f"u{n}"}) for n in range(2)]
    for name, value in BROKEN_VALUES.items():
        async with database.transaction() as tx:
            try:
                async with tx.transaction():
                    await feed.handler(tx, feed.batch([broken(field, value)]))
            except Exception as problem:
                assert str(problem), name
            await feed.handler(tx, feed.batch(good))
    assert await rows(database, "SELECT count(*) FROM profile.event WHERE name = 'Product Viewed'") == [(2,)]


async def test_nul_is_refused_with_the_name_of_its_field(feed: Feed) -> None:
    one = event(
        "Product Added",
        "m",
        ids={"anonymous_id": "a"},
        properties={"product_id": "p", "products": [{"name": "a\x00b"}]},
    )
    with pytest.raises(Permanent) as problem:
        await feed(one)
    assert problem.value.pointer == "/properties/products/0/name"


async def test_a_text_that_only_looks_like_nul_is_stored(database: Database, feed: Feed) -> None:
    applied = await feed(event("Product Added", "m", ids={"anonymous_id": "a"}, properties={"product_id": "\\u0000"}))
    assert applied.applied == 1
    assert (await facts(database, "anonymous_id", "a")).cart.items[0].product_id == "\\u0000"


# ── batches ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def a_bit_of_everything(number: int) -> Any:
    who = {"user_id": f"u-{number % 200}", "anonymous_id": f"a-{number}"}
    kind = number % 6
    if kind == 0:
        return event(
            "Order Completed",
            f"m{number}",
            at=number,
            ids=who,
            properties={"order_id": number, "total": 5, "products": [{"product_id": "p"}]},
        )
    if kind == 1:
        return event(
            "Identify", f"m{number}", at=number, ids={**who, "email": f"{number}@example.com"}, traits={"n": number}
        )
    if kind == 2:
        address = f"{number % 90}@example.com"
        return event(
            "Consent Granted",
            f"m{number}",
            at=number,
            ids={**who, "email": address},
            properties={"channel": "email", "address": address},
        )
    if kind == 3:
        return event(
            "Order Refunded", f"m{number}", at=number, ids=who, properties={"order_id": number - 3, "total": 1}
        )
    if kind == 4:
        return event(
            "Product Added", f"m{number}", at=-number, received=number, ids=who, properties={"product_id": "p"}
        )
    return event("Product Viewed", f"m{number}", at=number, ids={"anonymous_id": f"a-{number - 6}"}, trust="public")


async def test_the_number_of_statements_does_not_depend_on_the_size_of_the_batch(
    database: Database, feed: Feed
) -> None:
    async def count(first: int, size: int) -> int:
        statements: list[str] = []
        async with database.transaction() as tx:
            tx.add_query_logger(lambda record: statements.append(record.query))
            await feed.handler(tx, feed.batch([a_bit_of_everything(n) for n in range(first, first + size)]))
        return len(statements)

    await count(0, 600)
    small, large = await count(10_000, 60), await count(20_000, 500)
    assert large <= small
    assert large < 60


async def test_a_large_mixed_batch_leaves_everything_consistent(database: Database, feed: Feed) -> None:
    applied = await feed(*(a_bit_of_everything(n) for n in range(500)))
    assert applied.applied == 500
    assert len(events_of(applied)) == 500
    assert await membership_faults(database) == []
    assert await differences_to_rows(database) == []
    by_person: dict[UUID, list[datetime]] = {}
    for published in events_of(applied):
        by_person.setdefault(published.profile, []).append(published.learned_at)
    assert all(moments == sorted(set(moments)) for moments in by_person.values())


# ── side by side ───────────────────────────────────────────────────────────────────────────────────────────────────────
async def until_somebody_waits(database: Database) -> None:
    """Until a transaction of this test waits for another one."""
    async with asyncio.timeout(10):
        while not await rows(database, "SELECT 1 FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.005)


async def test_a_batch_whose_people_grow_while_it_waits_locks_the_greater_set(database: Database) -> None:
    """B has read that the browser is somebody by itself; before it gets the lock, A makes it Anna's."""
    feed, other = Feed(database), Feed(database, partition=1)
    await feed(event("Identify", "m1", at=1, ids={"user_id": "anna", "email": "anna@example.com"}))
    await feed(event("Product Viewed", "m2", at=2, ids={"anonymous_id": "a"}, trust="public"))
    login = event("Identify", "m3", at=3, ids={"user_id": "anna", "anonymous_id": "a"}, trust="signed")
    card = event("Identify", "m4", at=4, ids={"card": "c", "anonymous_id": "a"})
    async with database.transaction() as tx:
        await feed.handler(tx, feed.batch([login]))
        waiting = asyncio.create_task(other(card))
        await until_somebody_waits(database)
    applied = await waiting
    assert other.handler.grown == 1
    (published,) = events_of(applied)
    assert published.nodes == sorted(
        [node("user_id", "anna"), node("email", "anna@example.com"), node("anonymous_id", "a"), node("card", "c")]
    )
    assert await membership_faults(database) == []
    assert await differences_to_rows(database) == []


async def test_two_batches_that_meet_the_same_newcomer_make_one_person(database: Database) -> None:
    feed, other = Feed(database), Feed(database, partition=1)
    first = event("Product Added", "m1", at=1, ids={"anonymous_id": "a"}, properties={"product_id": "p"})
    second = event("Product Added", "m2", at=2, ids={"anonymous_id": "a"}, properties={"product_id": "q"})
    async with database.transaction() as tx:
        await feed.handler(tx, feed.batch([first]))
        waiting = asyncio.create_task(other(second))
        await until_somebody_waits(database)
    (published,) = events_of(await waiting)
    assert [it.product_id for it in published.facts.cart.items] == ["p", "q"]
    async with database.transaction() as tx:
        assert len(await people(tx)) == 1


async def test_two_batches_that_report_the_same_order_make_one_order(database: Database) -> None:
    feed, other = Feed(database), Feed(database, partition=1)
    browser = event(
        "Order Completed", "m1", at=1, ids={"anonymous_id": "a"}, trust="public", properties={"order_id": "o"}
    )
    server = event("Order Completed", "m2", at=2, ids={"user_id": "u"}, properties={"order_id": "o", "total": 7})
    async with database.transaction() as tx:
        await feed.handler(tx, feed.batch([browser]))
        waiting = asyncio.create_task(other(server))
        await until_somebody_waits(database)
    (published,) = events_of(await waiting)
    assert (published.first, published.facts.orders[0].learned_at) == (True, seconds(1))
    assert (await facts(database, "anonymous_id", "a")).orders == []
    assert await differences_to_rows(database) == []
