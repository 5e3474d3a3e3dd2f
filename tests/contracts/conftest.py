"""The worlds in which the contract of the bus is held: a log table in PostgreSQL, and Kafka, both real.

A world opens buses and does from outside what the bus itself must not do: stall a writer, forget old records, make a
bus topic anew, kill the server.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from scripts.kafka import Kafka
from shared.bus.base import Bus, Outgoing, partition_of
from shared.bus.kafka import KafkaBus
from shared.bus.postgres import PostgresBus
from shared.embedded_postgres import EmbeddedPostgres
from shared.events import EVENTS, MESSAGES, TOPICS
from shared.wake import Wake
from tests.support.wait import until

TOPIC, OTHER_TOPIC = EVENTS, MESSAGES
PARTITIONS = 4
BOTH = pytest.mark.parametrize("kind", ["postgres", "kafka"])
_prefixes = itertools.count(1)


class Server(Protocol):
    """What a bus runs on, to be killed and started."""

    def start(self) -> None: ...

    def kill(self) -> None: ...


@dataclass
class World:
    """One implementation. Buses that `open` gave are closed at the end."""

    kind: str
    url: str
    server: Server | None = None
    open_buses: list[Bus] = field(default_factory=list)

    async def open(self, member: str = "one", partitions: int = PARTITIONS) -> Bus:
        """Another process's bus, as far as the bus can tell: with wake-ups of its own."""
        implementation = KafkaBus if self.kind == "kafka" else PostgresBus
        bus = await implementation.open(self.url, partitions=partitions, member=member, wake=Wake(), topics=TOPICS)
        self.open_buses.append(bus)
        return bus

    async def stalled_writer(self, record: Outgoing) -> Callable[[], Awaitable[None]]:
        """Begins to write a record and stops before it is there; what is returned finishes it."""
        raise NotImplementedError

    async def forget(self, topic: str, partition: int, before: int) -> None:
        """Records below this number are gone, as retention would do it."""
        raise NotImplementedError

    async def make_anew(self, topic: str) -> None:
        """Deletes the bus topic; whoever opens the bus next makes it again."""
        raise NotImplementedError

    async def close(self) -> None:
        for bus in self.open_buses:
            await bus.close()


class PostgresWorld(World):
    async def stalled_writer(self, record: Outgoing) -> Callable[[], Awaitable[None]]:
        connection = await asyncpg.connect(self.url)
        transaction = connection.transaction()
        await transaction.start()
        partition = partition_of(record.key, PARTITIONS)
        await connection.execute(
            "SELECT bus.append($1, $2, $3, $4, $5)",
            [record.topic], [partition], [record.key], [record.value], [b"\x80"],
        )  # fmt: skip

        async def finish() -> None:
            await transaction.commit()
            await connection.close()

        return finish

    async def forget(self, topic: str, partition: int, before: int) -> None:
        """The records are moved to a day long gone; then the bus's own clean-up drops that day."""
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute("CREATE TABLE bus.record_1 PARTITION OF bus.record FOR VALUES FROM (1) TO (2)")
            await connection.execute(
                "UPDATE bus.record SET day = 1 WHERE topic = $1 AND partition = $2 AND number < $3",
                topic, partition, before,
            )  # fmt: skip
        finally:
            await connection.close()
        bus = await self.open("clean-up")
        await bus.maintain({topic: {partition: before}})

    async def make_anew(self, topic: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            for table, column in (("record", "topic"), ("partition", "topic"), ("topic", "name")):
                await connection.execute(f"DELETE FROM bus.{table} WHERE {column} = $1", topic)
        finally:
            await connection.close()


class KafkaWorld(World):
    @property
    def bootstrap(self) -> str:
        return self.url.removeprefix("kafka://").partition("/")[0]

    def name(self, topic: str) -> str:
        """What Kafka calls it."""
        return f"{self.url.rpartition('/')[2]}.{topic}"

    async def stalled_writer(self, record: Outgoing) -> Callable[[], Awaitable[None]]:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, enable_idempotence=True)
        await producer.start()
        batch = producer.create_batch()
        batch.append(timestamp=None, key=record.key, value=record.value)

        async def finish() -> None:
            partition = partition_of(record.key, PARTITIONS)
            await (await producer.send_batch(batch, self.name(record.topic), partition=partition))
            await producer.stop()

        return finish

    async def forget(self, topic: str, partition: int, before: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            await admin.delete_records({TopicPartition(self.name(topic), partition): RecordsToDelete(before)})
        finally:
            await admin.close()

    async def make_anew(self, topic: str) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()

        async def gone() -> bool:
            return self.name(topic) not in await admin.list_topics()

        try:
            await admin.delete_topics([self.name(topic)])
            await until(gone, what="the topic is deleted")
        finally:
            await admin.close()


@asynccontextmanager
async def opened(world: World) -> AsyncIterator[World]:
    """The world, and afterwards its buses closed."""
    try:
        yield world
    finally:
        await world.close()


@pytest.fixture
async def postgres_world(database_url: str) -> AsyncIterator[World]:
    async with opened(PostgresWorld("postgres", database_url)) as world:
        yield world


@pytest.fixture
async def kafka_world(kafka: Kafka) -> AsyncIterator[World]:
    async with opened(KafkaWorld("kafka", f"{kafka.url}/test{next(_prefixes)}")) as world:
        yield world


@pytest.fixture
async def own_postgres_world(own_postgres: EmbeddedPostgres) -> AsyncIterator[World]:
    from services.migrate import migrate

    await migrate(own_postgres.url)
    async with opened(PostgresWorld("postgres", own_postgres.url, own_postgres)) as world:
        yield world


@pytest.fixture
async def own_kafka_world(own_kafka: Kafka) -> AsyncIterator[World]:
    async with opened(KafkaWorld("kafka", f"{own_kafka.url}/own", own_kafka)) as world:
        yield world


@pytest.fixture
def world(kind: str, request: pytest.FixtureRequest) -> World:
    """An empty bus on the session's server."""
    found: World = request.getfixturevalue(f"{kind}_world")
    return found


@pytest.fixture
def own_world(kind: str, request: pytest.FixtureRequest) -> World:
    """An empty bus on a server for this test alone, which it may kill."""
    found: World = request.getfixturevalue(f"own_{kind}_world")
    return found
