"""A base of a few people, as the profile service makes it of events, and the two readings of conditions over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from shared import cdp
from shared.conditions import Moment, compile_sql, evaluate, needs, parse
from shared.db import Tx
from shared.events import Event
from tests.support.condition_documents import SCALARS, some
from tests.support.profile_feed import START, Feed, event, node

T = START + timedelta(days=250)
SHOP = ZoneInfo("Europe/Moscow")
MOMENT = Moment(
    at=T,
    entered_at=None,
    zone=SHOP,
    holidays=frozenset({T.date()}),
)

# ── people ────────────────────────────────────────────────────────────────────────────────────────────────────────────
VALUES = st.one_of(
    SCALARS,
    st.none(),
    st.lists(SCALARS, max_size=3),
    st.fixed_dictionaries({"city": SCALARS}),
    st.just([{"city": "Kazan"}]),
)
# On the edge of a window, just inside, just outside; a few beyond the moment.
LAGS = st.builds(
    lambda duration, micros: duration + timedelta(microseconds=micros),
    st.sampled_from([timedelta(0), timedelta(hours=1), timedelta(days=10), timedelta(days=30), timedelta(days=180)]),
    st.sampled_from([0, 0, 1, -1]),
)
BACKLOG = st.sampled_from(
    [timedelta(0), timedelta(0), timedelta(microseconds=1), timedelta(hours=2), timedelta(days=20)]
)
PRODUCT_IDS = st.sampled_from(["p1", "P1", "p2", "12"])
CATEGORIES = st.sampled_from(["vinyl", "Vinyl", "Ёлки", "cd", 12, None])


LINES = st.lists(
    some(
        {"product_id": PRODUCT_IDS},
        {"quantity": st.sampled_from([0, 1, 2, 3.5]), "price": st.sampled_from([0, 100, 99.9]), "category": CATEGORIES},
    ),
    min_size=1,
    max_size=3,
)
ORDER_IDS = st.sampled_from(["o1", "o2", "o3"])
TOTALS = st.sampled_from([0, 12.5, 1500, "1500"])
CHANNEL_TOPICS = some(
    {"channel": st.sampled_from(["email", "sms"])},
    {"topics": st.sampled_from([["marketing"], ["news"], ["marketing", "news"]])},
)
ORDERS = some({"order_id": ORDER_IDS}, {"total": TOTALS, "products": LINES, "coupon": VALUES})
INTERNAL = ("Subscription Confirmed", "Email Complained", "Email Opened")
CONTENTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "Order Completed": ORDERS,
    "Order Updated": ORDERS,
    "Order Cancelled": some({"order_id": ORDER_IDS}),
    "Order Refunded": some(
        {"order_id": ORDER_IDS},
        {"total": TOTALS, "products": LINES, "refund_id": st.sampled_from(["r1", "r2"])},
    ),
    "Product Viewed": some({}, {"product_id": VALUES, "price": VALUES, "coupon": VALUES}),
    "Product Added": some({"product_id": PRODUCT_IDS}, {"price": st.sampled_from([100, 1500]), "category": CATEGORIES}),
    "Product Removed": some({"product_id": PRODUCT_IDS}),
    "Cart Viewed": some({"products": LINES}),
    "Email Opened": some({}, {"bot": st.sampled_from([True, False, "true", None])}),
    "Subscription Requested": CHANNEL_TOPICS,
    "Consent Granted": CHANNEL_TOPICS,
    "Subscription Confirmed": CHANNEL_TOPICS,
    "Unsubscribed": CHANNEL_TOPICS,
    "Email Complained": some({}),  # of all topics
}
TRAITS = some(
    {},
    {"city": VALUES, "year": VALUES, "timezone": st.sampled_from(["Asia/Vladivostok", "UTC", "Mars/Phobos", None, 5])},
)


# What happens where a kind is looked at most closely; everything may happen where several are joined.
COUNTED = ["Order Completed", "Order Completed", "Product Viewed", "Product Added"]
BOUGHT = [*["Order Completed"] * 4, "Order Updated", "Order Cancelled", "Order Refunded"]
LAST_BOUGHT = ["Order Completed", "Order Completed", "Order Cancelled"]
ALLOWED = ["Subscription Requested", "Consent Granted", "Subscription Confirmed", "Unsubscribed", "Email Complained"]
HAPPENS = {
    "trait": ["Identify"],
    "local_time": ["Identify"],
    "holiday": ["Identify"],
    "age_in_base": ["Identify", "Product Viewed"],
    "cart": ["Product Added", "Product Added", "Product Removed", "Cart Viewed", "Order Completed"],
    "engagement": ["Email Opened", "Email Opened", "Product Viewed"],
    "did": COUNTED,
    "did_not": COUNTED,
    "orders": BOUGHT,
    "bought": BOUGHT,
    "days_since_order": LAST_BOUGHT,
    "later_than_own_rhythm": LAST_BOUGHT,
    "consent": ALLOWED,
    "reachable": ALLOWED,
}
EVERYTHING = [*CONTENTS, "Identify"]
# Who sends: the ids in an event make nodes one person, so that people grow together around the moment.
IDS = st.one_of(
    st.just({"user_id": "1"}),
    st.dictionaries(
        st.sampled_from(["user_id", "email", "phone", "anonymous_id"]),
        st.sampled_from(["1", "2"]),
        min_size=1,
        max_size=2,
    ),
)
VALUES_OF_IDS = {
    "user_id": {"1": "u-1", "2": "u-2"},
    "email": {"1": "one@example.com", "2": "two@example.com"},
    "phone": {"1": "+79161234561", "2": "+79161234562"},
    "anonymous_id": {"1": "a-1", "2": "a-2"},
}
ADDRESS_OF = {"email": "email", "sms": "phone"}


# Days before T, on both sides of being late, which two orders never are: after 17 days with gaps of
# 10, after 30 with gaps of 20, after 18 with gaps of 2 and 20.
RHYTHMS = [(300, 200), (37, 27, 17), (38, 28, 18), (70, 50, 30), (71, 51, 31), (40, 38, 18), (41, 39, 19)]


def seconds(moment: datetime) -> float:
    return (moment - START).total_seconds()


def order(order_id: str, user: str, at: datetime, total: float = 100, **more: Any) -> Event:
    return event(
        "Order Completed",
        order_id,
        at=seconds(at),
        ids={"user_id": user},
        properties={"order_id": order_id, "total": total, **more},
    )


@st.composite
def events(draw: st.DrawFn, names: Sequence[str]) -> list[Event]:
    """What a few people did, in the order in which the shop heard of it; sometimes one of them buys regularly.

    In most examples nothing is heard after the moment: what SQL reads from present rows would not be looked at else.
    """
    until = draw(st.sampled_from([T - timedelta(minutes=1), T - timedelta(minutes=1), T + timedelta(days=30)]))
    found = [draw(one_event(str(number), names, until)) for number in range(draw(st.integers(1, 12)))]
    for days in draw(st.sampled_from([(), *RHYTHMS])):
        found.append(order(f"rhythm-{days}", "regular", T - timedelta(days=days)))
    return sorted(found, key=lambda one: one.received_at)


@st.composite
def one_event(draw: st.DrawFn, message: str, names: Sequence[str], until: datetime) -> Event:
    name = draw(st.sampled_from(names))
    properties = draw(CONTENTS[name]) if name in CONTENTS else {}
    ids = {kind: VALUES_OF_IDS[kind][which] for kind, which in draw(IDS).items()}
    if (channel := properties.get("channel")) is not None:
        kind = ADDRESS_OF[channel]
        ids[kind] = properties["address"] = VALUES_OF_IDS[kind][draw(st.sampled_from(["1", "2"]))]
    occurred_at = min(T - draw(LAGS), until)
    return event(
        name,
        message,
        at=seconds(occurred_at),
        received=seconds(min(occurred_at + draw(BACKLOG), until)),
        trust="internal" if name in INTERNAL else draw(st.sampled_from(["secret", "secret", "secret", "public"])),
        ids=ids,
        properties=properties,
        traits=draw(TRAITS) if name == "Identify" else {},
        history=draw(st.booleans()),
    )


# ── the two readings ──────────────────────────────────────────────────────────────────────────────────────────────────
async def by_python(tx: Tx, document: Any) -> dict[UUID, bool]:
    """Everybody with a node at T, and whether they meet the condition."""
    condition = parse(document)
    members = await tx.fetch(
        "SELECT profile, min(node::text)::uuid AS node FROM cdp.membership "
        "WHERE from_at <= $1 AND (to_at IS NULL OR to_at > $1) GROUP BY profile",
        T,
    )
    wanted = needs(condition)
    since = None if wanted.look_back is None else T - wanted.look_back
    questions = [
        cdp.FactsQuestion(
            node=row["node"], at=T, names=wanted.names, since=since, lines=wanted.lines, suppressions=True
        )
        for row in members
    ]
    found = await cdp.facts(tx, questions)
    return {
        row["profile"]: evaluate(condition, known, MOMENT) for row, known in zip(members, found, strict=True) if known
    }


async def by_sql(tx: Tx, document: Any, **page: Any) -> tuple[dict[UUID, bool], bool]:
    """Whom the statement finds, and whether it is certain of each; and whether it says to be exact."""
    compiled = compile_sql(parse(document), MOMENT, **page)
    rows = await tx.fetch(compiled.sql, *compiled.params)
    assert [row["profile"] for row in rows] == sorted(row["profile"] for row in rows)
    return {row["profile"]: row["certain"] for row in rows}, compiled.exact


async def check(tx: Tx, document: Any) -> None:
    truth = await by_python(tx, document)
    found, exact = await by_sql(tx, document)
    assert {profile for profile, holds in truth.items() if holds} <= set(found), f"SQL overlooks somebody: {document}"
    wrong = {profile for profile, certain in found.items() if certain and not truth[profile]}
    assert not wrong, f"SQL is certain of somebody who does not meet it: {document}"
    if exact:
        assert all(found.values())


@asynccontextmanager
async def base_of(tx: Tx, heard: list[Event]) -> AsyncIterator[None]:
    """Lets the profile service hear of the events, and forgets everything at the end."""
    feed = Feed(None)  # type: ignore[arg-type]  # it is handed the connection
    transaction = tx.transaction()
    await transaction.start()
    try:
        half = len(heard) // 2
        for batch in filter(None, (heard[:half], heard[half:])):
            applied = await feed.handler(tx, feed.batch(batch))
            assert not applied.dead, applied
        await tx.execute(
            """
            INSERT INTO dispatch.suppression (node, channel, id, kind, value, why, "by", at)
            VALUES ($1, '*', gen_random_uuid(), 'email', '', '', 'test', $2)
            """,
            node("email", "one@example.com"),
            T - timedelta(days=1),
        )
        yield
    finally:
        await transaction.rollback()


async def by_user(tx: Tx, document: Any) -> dict[str, bool]:
    """Whom the statement finds, by user id, and whether it is certain."""
    compiled = compile_sql(parse(document), MOMENT)
    rows = await tx.fetch(
        f"SELECT n.value, found.certain FROM ({compiled.sql}) found JOIN cdp.node n ON n.id = found.node",
        *compiled.params,
    )
    return {row["value"]: row["certain"] for row in rows}
