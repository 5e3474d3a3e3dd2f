"""What the two readings of conditions say of people whom chance seldom makes, and how the base is read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from shared.conditions import compile_sql, parse
from shared.db import connect
from shared.events import Event
from tests.support import databases
from tests.support.condition_people import MOMENT, T, base_of, by_python, by_sql, by_user, check, order, seconds
from tests.support.profile_feed import event, node


@pytest.fixture(scope="module")
async def connection(postgres_server: Any, migrated_template: str) -> Any:
    async with databases.cloned(postgres_server.url, migrated_template) as url:
        tx = await connect(url, "test")
        yield tx
        await tx.close()


def did(
    name: str, message: str, ago: timedelta, user: str = "u-1", heard: timedelta | None = None, **more: Any
) -> Event:
    """Something a known person did so long before T, heard of at once or so long before T."""
    received = seconds(T - (ago if heard is None else heard))
    ids = {"user_id": user, **more.pop("ids", {})}
    return event(name, message, at=seconds(T - ago), received=received, ids=ids, **more)


DAY, HOUR, MICRO = timedelta(days=1), timedelta(hours=1), timedelta(microseconds=1)
ALLOWED = {"channel": "email", "address": "one@example.com"}
VINYL = {"product_id": "p1", "quantity": 2, "price": 10, "category": "Ёлки"}
# What happened; a condition; whether the person meets it.
CASES: dict[str, tuple[list[Event], Any, bool]] = {
    "two reports of an order are one": (
        [order("o-1", "u-1", T - DAY), did("Order Completed", "again", DAY, properties={"order_id": "o-1"})],
        {"did": {"event": "Order Completed", "at_least": 2}},
        False,
    ),
    "a trait that was learned later is not known yet": (
        [
            did("Identify", "1", DAY, traits={"city": "Kazan"}),
            did("Identify", "2", HOUR, heard=-HOUR, traits={"city": "Omsk"}),
        ],
        {"trait": {"city": {"eq": "kazan"}}},
        True,
    ),
    **{
        f"of one moment the more restrictive counts ({first} first)": (
            [
                did("Unsubscribed", first, DAY, properties=ALLOWED, ids={"email": "one@example.com"}),
                did(
                    "Subscription Confirmed",
                    second,
                    DAY,
                    properties=ALLOWED,
                    ids={"email": "one@example.com"},
                    trust="internal",
                ),
            ],
            {"consent": {"email": "confirmed"}},
            False,
        )
        # The ids of the events are derived from these, so one pair has them in either order.
        for first, second in (("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"))
    },
    "a late event makes nobody older before it is learned": (
        [did("Page Viewed", "1", HOUR), did("Page Viewed", "2", 90 * DAY, heard=-HOUR)],
        {"age_in_base": {"gte": "30d"}},
        False,
    ),
    "text beyond ASCII is folded by Python": (
        [did("Searched", "1", DAY, properties={"query": "ЁЛКА"})],
        {"did": {"event": "Searched", "where": {"query": {"eq": "ёлка"}}}},
        True,
    ),
    "a needle in a list is looked for by Python": (
        [did("Searched", "1", DAY, properties={"tags": ["CD", "Vinyl"]})],
        {"did": {"event": "Searched", "where": {"tags": {"contains": "vinyl"}}}},
        True,
    ),
    "goods that came back were not bought": (
        [
            order("o-1", "u-1", T - DAY, products=[VINYL]),
            did("Order Refunded", "r", HOUR, properties={"order_id": "o-1", "products": [VINYL]}),
        ],
        {"bought": {"category": {"eq": "ёлки"}}},
        False,
    ),
    "goods that came back without their order were not bought": (
        [
            order("o-1", "u-1", T - DAY, products=[VINYL]),
            did("Order Refunded", "r", HOUR, properties={"order_id": "unknown", "products": [VINYL]}),
        ],
        {"bought": {"category": {"eq": "ёлки"}}},
        False,
    ),
    "some of the goods were kept": (
        [
            order("o-1", "u-1", T - DAY, products=[VINYL]),
            did("Order Refunded", "r", HOUR, properties={"order_id": "o-1", "products": [VINYL | {"quantity": 1}]}),
        ],
        {"bought": {"category": {"eq": "ёлки"}, "at_least": 1}},
        True,
    ),
    "a refund of an unknown order lowers what was spent": (
        [
            order("o-1", "u-1", T - DAY, total=100),
            did("Order Refunded", "r", HOUR, properties={"order_id": "unknown", "total": 30}),
        ],
        {"orders": {"total": {"eq": 70}}},
        True,
    ),
    "a date in a text is read by Python": (
        [did("Identify", "1", DAY, traits={"renewal": "2024-06-02T00:30:00+03:00"})],
        {"trait": {"renewal": {"gt": "2024-06-01T21:00:00Z"}}},
        True,
    ),
    "the largest group counts, not all groups": (
        [did("Product Viewed", f"{i}", DAY, properties={"product_id": f"p{i % 2}"}) for i in range(4)],
        {"did": {"event": "Product Viewed", "same": "product_id", "at_least": 3}},
        False,
    ),
    "a merge at the very moment counts": (
        [
            did("Page Viewed", "1", DAY),
            event("Page Viewed", "2", at=seconds(T - DAY), ids={"email": "one@example.com"}),
            did("Identify", "3", 0 * DAY, ids={"email": "one@example.com"}),
        ],
        {"did": {"event": "Page Viewed", "at_least": 2}},
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_both_readings_know(case: str, connection: Any) -> None:
    heard, document, expected = CASES[case]
    async with base_of(connection, heard):
        truth = await by_python(connection, document)
        await check(connection, document)
        await check(connection, {"not": document})
    assert list(truth.values()) == [expected]


CHURN = {
    "any": [
        {"days_since_order": {"gte": 180}},
        {"orders": {"count": {"eq": 0}}, "age_in_base": {"gte": "30d"}},
        {"later_than_own_rhythm": True},
    ]
}


async def test_sql_alone_decides_about_people_to_whom_nothing_happened_since(connection: Any) -> None:
    seen = [
        event("Page Viewed", f"{days}", at=seconds(T - timedelta(days=days)), ids={"user_id": f"seen-{days}"})
        for days in (29, 31)
    ]
    bought = [order(f"o-{days}", f"bought-{days}", T - timedelta(days=days)) for days in (179, 181)]
    async with base_of(connection, [*seen, *bought]):
        assert await by_user(connection, CHURN) == {"seen-31": True, "bought-181": True}


async def test_people_who_were_heard_of_after_the_moment_are_left_to_python(connection: Any) -> None:
    heard = [order("o-1", "late", T - timedelta(days=200)), order("o-2", "late", T + timedelta(minutes=1))]
    async with base_of(connection, heard):
        assert await by_user(connection, CHURN) == {"late": False}
        await check(connection, CHURN)


async def test_whom_a_condition_cannot_mean_never_reaches_python(connection: Any) -> None:
    heard = [order(f"o-{i}", f"u-{i}", T - timedelta(days=i)) for i in range(1, 200, 10)]
    with_cart = event(
        "Product Added", "c", at=seconds(T - timedelta(hours=2)), ids={"user_id": "u-1"}, properties={"product_id": "p"}
    )
    async with base_of(connection, [*heard, with_cart]):
        assert await by_user(connection, {"cart": {"total": {"gt": 0}}}) == {"u-1": False}
        assert await by_user(connection, {"days_since_order": {"gte": 180}}) == {"u-181": True, "u-191": True}


async def test_the_node_that_is_named_is_the_strongest_then_the_oldest(connection: Any) -> None:
    heard = [
        event("Identify", "1", at=1, ids={"user_id": "u-1", "email": "one@example.com"}, traits={"city": "Kazan"}),
        event("Identify", "2", at=9, ids={"card": "new"}, traits={"city": "Kazan"}),
        event("Identify", "3", at=5, ids={"card": "new", "email": "two@example.com"}, traits={"city": "Kazan"}),
    ]
    compiled = compile_sql(parse({"trait": {"city": {"eq": "kazan"}}}), MOMENT)
    async with base_of(connection, heard):
        rows = await connection.fetch(compiled.sql, *compiled.params)
        assert {row["node"] for row in rows} == {node("user_id", "u-1"), node("card", "new")}
    assert compiled.exact


async def test_the_base_is_read_in_pages(connection: Any) -> None:
    heard = [order(f"o-{i}", f"u-{i}", T - timedelta(days=i)) for i in range(1, 8)]
    async with base_of(connection, heard):
        everybody, _ = await by_sql(connection, {"orders": {"count": {"eq": 1}}})
        assert len(everybody) == 7
        paged: list[UUID] = []
        while page := (
            await by_sql(connection, {"orders": {"count": {"eq": 1}}}, after=paged[-1] if paged else None, limit=3)
        )[0]:
            assert len(page) <= 3
            paged += page
    assert paged == list(everybody)
