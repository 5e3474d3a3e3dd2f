"""Whoever slept with records in hand is refused by the position alone: nobody ended a connection of theirs."""

from __future__ import annotations

import asyncio
import itertools

import asyncpg
import pytest
from prometheus_client import REGISTRY

from scripts.kafka import Kafka
from shared.batch import Applied, Batch
from shared.bus.base import Outgoing
from shared.consumer import Consumer
from shared.db import Tx
from shared.events import EVENTS
from shared.service import Context
from tests.support.contexts import context_for, running
from tests.support.wait import until

VALUES = [f"value {number:02}" for number in range(20)]
_prefixes = itertools.count(1)


@pytest.fixture(params=["log table", "kafka"])
def bus_url(request: pytest.FixtureRequest) -> str | None:
    """None: the log table in the database."""
    if request.param == "log table":
        return None
    kafka: Kafka = request.getfixturevalue("kafka")
    return f"{kafka.url}/fencing{next(_prefixes)}"


@pytest.fixture
async def effects_url(database_url: str) -> str:
    """A database in which the consumer that stands for profile has a table for its effects."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE public.effect (value text)")
    await connection.close()
    return database_url


async def notes(tx: Tx, batch: Batch) -> Applied:
    values = [record.value.decode() for record in batch.records]
    await tx.execute("INSERT INTO public.effect SELECT * FROM unnest($1::text[])", values)
    return Applied(applied=len(values))


def consumer(context: Context) -> Consumer:
    return Consumer(context, group="profile", topics=[EVENTS], handler=notes, schema="profile", by_header=False)


def counted(name: str) -> float:
    """Of all groups and errors."""
    return sum(s.value for m in REGISTRY.collect() for s in m.samples if s.name == name)


async def back_ends(context: Context, member: str) -> set[int]:
    async with context.database.connection() as connection:
        rows = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = $1", member)
    return {row["pid"] for row in rows}


async def test_a_batch_in_the_hands_of_a_sleeper_whose_connections_live_is_refused_by_its_position(
    effects_url: str, bus_url: str | None
) -> None:
    asleep, go_on = asyncio.Event(), asyncio.Event()

    async def sleeps() -> None:
        asleep.set()
        await go_on.wait()

    async with (
        context_for(effects_url, bus_url=bus_url, partitions=1, leases=False) as sleeper,
        context_for(effects_url, bus_url=bus_url, partitions=1, leases=False) as successor,
    ):
        sleeper.hooks.arm("consumer.fetched", sleeps)
        await sleeper.bus.append([Outgoing(EVENTS, b"key", value.encode()) for value in VALUES])
        renewing = asyncio.create_task(sleeper.leases.run())
        async with running(consumer(sleeper).loops()):
            await until(asleep.is_set, what="the sleeper holds records that it has not handled")
            alive = await back_ends(sleeper, sleeper.member)
            # Given back and not expired: whoever takes it over has nobody to end.
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            async with running({"leases": successor.leases.run, **consumer(successor).loops()}):
                await until(lambda: has_all(successor), what="the successor has handled them", every=0.05)
                assert alive <= await back_ends(successor, sleeper.member), "the sleeper's connections are as they were"
                fenced, retried = counted("dripline_fenced_total"), counted("dripline_batch_retries_total")
                go_on.set()
                await until(
                    lambda: counted("dripline_fenced_total") == fenced + 1, what="the sleeper's batch is refused"
                )
        assert counted("dripline_batch_retries_total") == retried, "no connection was lost: the position refused it"
        assert await effects(successor) == VALUES, "every record took effect once"


async def effects(context: Context) -> list[str]:
    async with context.database.connection() as connection:
        return [row["value"] for row in await connection.fetch("SELECT value FROM public.effect ORDER BY 1")]


async def has_all(context: Context) -> bool:
    return await effects(context) == VALUES
