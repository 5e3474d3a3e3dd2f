"""The final profile does not depend on the order, number or route of arrivals."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.db import Database
from shared.events import Event
from tests.support.profile_dump import differences_to_rows, dump, empty, membership_faults
from tests.support.profile_events import one_event
from tests.support.profile_feed import START, Feed

WORKERS = 3
END = START + timedelta(days=20)
EXAMPLES = int(os.environ.get("ORDER_EXAMPLES", "200"))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, member="test", role="dripline_profile", size=WORKERS + 1)
    yield opened
    await opened.close()


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[Event], list[list[list[Event]]]]:
    """Events, and for each worker its batches: all events at least once, some again, in any order and cut anywhere."""
    events = [draw(one_event(number)) for number in range(draw(st.integers(2, 14)))]
    again = draw(st.lists(st.sampled_from(events), max_size=4))
    arrivals = draw(st.permutations(events + again))
    routes: list[list[list[Event]]] = [[] for _ in range(WORKERS)]
    while arrivals:
        size, worker = draw(st.integers(1, 6)), draw(st.integers(0, WORKERS - 1))
        routes[worker].append(arrivals[:size])
        arrivals = arrivals[size:]
    return events, routes


async def deliver(feed: Feed, batches: list[list[Event]], retries: list[str]) -> None:
    for batch in batches:
        while True:
            try:
                await feed(*batch)
                break
            except (
                asyncpg.DeadlockDetectedError,
                asyncpg.LockNotAvailableError,
                asyncpg.SerializationError,
            ) as problem:
                retries.append(type(problem).__name__)


@pytest.mark.timeout(900)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(delivery=deliveries())
async def test_any_order_number_and_route_of_arrivals_gives_the_same_people(
    database: Database, delivery: tuple[list[Event], list[list[list[Event]]]]
) -> None:
    events, routes = delivery
    await empty(database)
    await Feed(database)(*events)
    expected = await dump(database, END)

    await empty(database)
    retries: list[str] = []
    workers = [Feed(database, partition=number) for number in range(WORKERS)]
    await asyncio.gather(*(deliver(feed, batches, retries) for feed, batches in zip(workers, routes, strict=True)))

    assert await dump(database, END) == expected
    assert retries == []
    assert await differences_to_rows(database) == []
    assert await membership_faults(database) == []
