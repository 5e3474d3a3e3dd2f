"""What only the bus on Kafka has to show: identity, lag tools, replication, and what becomes of a failed producer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence

import aiokafka.errors
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from scripts.kafka import Kafka
from shared.bus import kafka as kafka_module
from shared.bus.base import Outgoing, OutOfRange, RecordTooLarge, partition_of
from shared.bus.kafka import KafkaBus
from shared.bus.kafka_cluster import Address, Cluster
from shared.bus.kafka_writer import KafkaWriter
from shared.errors import ConfigurationError, is_transient
from shared.events import TOPICS
from tests.contracts.conftest import OTHER_TOPIC, PARTITIONS, TOPIC, KafkaWorld, World, opened
from tests.contracts.test_bus import Reader, keys_in_different_partitions, record
from tests.support.wait import until


@pytest.fixture
async def own(own_kafka_world: World) -> tuple[KafkaBus, Kafka]:
    bus = await own_kafka_world.open()
    assert isinstance(bus, KafkaBus)
    assert isinstance(own_kafka_world.server, Kafka)
    return bus, own_kafka_world.server


async def test_committed_positions_are_seen_by_kafkas_own_tools(kafka_world: World, kafka: Kafka) -> None:
    assert isinstance(kafka_world, KafkaWorld)
    bus = await kafka_world.open()
    await bus.append([record("a", str(n)) for n in range(7)])
    partition = partition_of(b"a", PARTITIONS)
    await bus.commit("profile", TOPIC, {partition: 5})

    def lag() -> str | None:
        table = kafka.tool("consumer.group.ConsumerGroupCommand", "--describe", "--group", "profile", "--offsets")
        for line in table.splitlines():
            columns = line.split()
            if columns[1:3] == [kafka_world.name(TOPIC), str(partition)]:
                return " ".join(columns[3:6])
        return None

    found = await until(lag, limit=30, what="the group's lag is shown", every=1)
    assert found == "5 7 2"


async def test_a_topic_made_anew_under_a_running_bus_is_refused_not_read(
    kafka_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_module, "LOOK_SECONDS", 0.2)
    bus = await kafka_world.open("one")
    await bus.append([record("a", "old")])
    positions = await bus.beginnings(TOPIC)
    await kafka_world.make_anew(TOPIC)
    await kafka_world.open("two")

    async def refused() -> bool:
        try:
            await bus.fetch(TOPIC, positions, limit=10, wait=0.1)
        except OutOfRange as problem:
            return "made anew" in str(problem)
        except Exception as problem:
            assert is_transient(problem)
        return False

    await until(refused, what="the bus refuses the new topic")
    for act in (bus.append([record("a")]), bus.publish([record("a")]), bus.ends(TOPIC)):
        with pytest.raises(OutOfRange, match="made anew"):
            await act
    await bus.append([record("a", topic=OTHER_TOPIC)])


async def test_nothing_of_a_failed_publish_comes_later_than_the_next(own: tuple[KafkaBus, Kafka]) -> None:
    """The broker stands still in the middle; the call fails; the next one begins a new producer."""
    bus, server = own
    bus._publisher = KafkaWriter(bus._cluster.address, "impatient", {TOPIC: PARTITIONS}, timeout=1.0)
    keys = keys_in_different_partitions()
    await bus.publish([record(key, "0") for key in keys])
    server.pause()
    try:
        with pytest.raises(Exception) as failure:
            # More than one batch for each partition: what was queued behind the first must never be sent.
            await bus.publish([record(key, b"1 %d" % n + b"." * 50_000) for n in range(20) for key in keys])
        assert is_transient(failure.value)
    finally:
        server.resume()

    await until(lambda: _passes(bus.publish, "2", keys), limit=30, what="the next publish passes")
    reader = Reader(bus)

    async def all_of_the_next() -> bool:
        await reader.read(wait=0.2)
        return reader.values.count(b"2") >= len(keys)

    await until(all_of_the_next, what="what the next call wrote is read")
    for _ in range(5):
        await reader.read(wait=0.3)
    for key in keys:
        calls = [one.value[:1] for one in reader.records if one.key == key.encode()]
        assert calls == sorted(calls), "something of the failed call came after the next one"
        failed = [
            one.value.split(b".")[0] for one in reader.records if one.key == key.encode() and one.value[:1] == b"1"
        ]
        assert failed == [b"1 %d" % n for n in range(len(failed))], "the failed call left a gap"


async def test_what_failed_while_no_broker_was_there_is_never_written_later(own: tuple[KafkaBus, Kafka]) -> None:
    bus, server = own
    bus._publisher = KafkaWriter(bus._cluster.address, "impatient", {TOPIC: PARTITIONS}, timeout=1.0)
    await bus.publish([record("a", "0")])
    server.kill()
    with pytest.raises(Exception) as failure:
        await bus.publish([record("a", "1")])
    assert is_transient(failure.value)
    server.start()
    await until(lambda: _passes(bus.publish, "2"), limit=30, what="the next publish passes")
    reader = Reader(bus)
    await reader.read_until(2)
    for _ in range(6):  # the time in which a producer that is still alive would find the broker again
        await reader.read(wait=0.5)
    assert reader.values == [b"0", b"2"]


async def test_a_caller_that_gives_up_ends_the_publishing_producer(own: tuple[KafkaBus, Kafka]) -> None:
    bus, server = own
    await bus.publish([record("a", "0")])
    server.pause()
    try:
        given_up = asyncio.create_task(bus.publish([record("a", "1")]))
        await asyncio.sleep(0.2)  # the request is under way or not: both must be right
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
    finally:
        server.resume()
    await bus.publish([record("a", "2")])
    reader = Reader(bus)
    await reader.read_until(2)
    await reader.read(wait=1)
    assert reader.values in ([b"0", b"2"], [b"0", b"1", b"2"])


async def test_an_append_that_no_broker_acknowledges_fails_in_its_time_and_the_next_passes(
    own: tuple[KafkaBus, Kafka],
) -> None:
    bus, server = own
    bus._appender = KafkaWriter(bus._cluster.address, "impatient", {TOPIC: PARTITIONS}, timeout=1.0)
    await bus.append([record("a", "0")])
    server.pause()
    try:
        with pytest.raises(Exception) as failure:
            await asyncio.wait_for(bus.append([record("a", "1")]), 5)
        assert is_transient(failure.value)
        assert not isinstance(failure.value, asyncio.CancelledError)
    finally:
        server.resume()
    await until(lambda: _passes(bus.append, "2"), limit=30, what="the bus appends again")


async def _passes(
    write: Callable[[Sequence[Outgoing]], Awaitable[None]], value: str, keys: Sequence[str] = ("a",)
) -> bool:
    try:
        await write([record(key, value) for key in keys])
    except Exception as problem:
        assert is_transient(problem)
        return False
    return True


async def test_control_records_of_somebody_elses_transactions_are_passed_over(kafka_world: World) -> None:
    assert isinstance(kafka_world, KafkaWorld)
    bus = await kafka_world.open()
    partition = partition_of(b"a", PARTITIONS)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_world.bootstrap, transactional_id="somebody")
    await producer.start()
    try:
        for value in (b"1", b"2"):
            async with producer.transaction():
                await producer.send_and_wait(kafka_world.name(TOPIC), value, key=b"a", partition=partition)
    finally:
        await producer.stop()
    await bus.append([record("a", "3")])
    reader = Reader(bus)
    assert [one.value for one in await reader.read_until(3)] == [b"1", b"2", b"3"]
    # From a position at which there is nothing but a control record, a reader gets on, too.
    second = reader.records[1].number
    found = await bus.fetch(TOPIC, {partition: second + 1}, limit=10, wait=5)
    assert [one.value for one in found[partition]] == [b"3"]


async def test_leaders_of_new_topics_are_given_longer_than_those_of_known_ones(
    kafka_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_module, "STARTING_SECONDS", 0.0)
    bus = await kafka_world.open()
    assert set(await bus.ends(TOPIC)) == set(range(PARTITIONS))


async def test_one_replica_is_warned_of(kafka_world: World) -> None:
    bus = await kafka_world.open()
    assert isinstance(bus, KafkaBus)
    assert [warning.split(" has ")[0] for warning in bus.warnings] == [f"bus topic {topic}" for topic in TOPICS]


async def test_deployments_with_different_prefixes_share_a_cluster(kafka: Kafka) -> None:
    async with (
        opened(KafkaWorld("kafka", f"{kafka.url}/shop-a")) as one,
        opened(KafkaWorld("kafka", f"{kafka.url}/shop-b")) as two,
    ):
        a, b = await one.open(), await two.open()
        await a.append([record("k", "of a")])
        assert [r.value for r in await Reader(a).read_until(1)] == [b"of a"]
        assert await Reader(b).read(wait=0.3) == []


async def test_a_record_over_the_topics_own_limit_is_too_large_and_its_neighbours_may_try_again(
    kafka_world: World,
) -> None:
    assert isinstance(kafka_world, KafkaWorld)
    bus = await kafka_world.open()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_world.bootstrap)
    await admin.start()
    limit = {"max.message.bytes": str(512 * 1024)}
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, kafka_world.name(TOPIC), limit)])
    await admin.close()
    large, small = record("a", b"x" * (1 << 20)), record("a", "small")

    async def refused() -> bool:  # the limit takes a moment to reach the broker's log
        outcome = await asyncio.gather(bus.append([large]), bus.append([small]), return_exceptions=True)
        assert outcome[1] is None or is_transient(outcome[1]), outcome[1]
        return isinstance(outcome[0], RecordTooLarge)

    await until(refused, what="the large record is refused")
    await bus.append([small])


async def test_no_broker_is_a_transient_error_and_quick() -> None:
    with pytest.raises(aiokafka.errors.KafkaConnectionError) as failure:
        await asyncio.wait_for(Cluster.connect(Address.parse("kafka://127.0.0.1:1"), "nobody"), 5)
    assert is_transient(failure.value)


@pytest.mark.parametrize(
    ("url", "brokers", "prefix", "protocol"),
    [
        ("kafka://one:9092", ("one:9092",), "", "PLAINTEXT"),
        ("kafka://one:9092,two:9093/shop", ("one:9092", "two:9093"), "shop", "PLAINTEXT"),
        ("kafka://us%40er:p%2Fw@one:9092?mechanism=scram-sha-512", ("one:9092",), "", "SASL_PLAINTEXT"),
        ("kafkas://one:9093", ("one:9093",), "", "SSL"),
        ("kafkas://user:pw@one:9093", ("one:9093",), "", "SASL_SSL"),
    ],
)
def test_a_url_says_where_the_brokers_are(url: str, brokers: tuple[str, ...], prefix: str, protocol: str) -> None:
    address = Address.parse(url)
    assert (address.brokers, address.prefix, address.security["security_protocol"]) == (brokers, prefix, protocol)
    if "us%40er" in url:
        assert address.security["sasl_plain_username"] == "us@er"
        assert address.security["sasl_plain_password"] == "p/w"
        assert address.security["sasl_mechanism"] == "SCRAM-SHA-512"


@pytest.mark.parametrize("url", ["kafka://", "http://one:9092", "kafka://u:p@one?mechanism=GSSAPI"])
def test_a_url_that_is_none_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Address.parse(url)


def test_what_a_broker_answers_and_aiokafka_calls_retriable_is_transient() -> None:
    """`is_transient` is a closed list; a new version of the library must not bring a retriable answer it lacks."""
    errors = [
        error
        for _, error in inspect.getmembers(aiokafka.errors, inspect.isclass)
        if issubclass(error, aiokafka.errors.BrokerResponseError) and error.retriable
    ]
    assert errors
    missing = [error.__name__ for error in errors if not is_transient(error())]
    assert missing == []
