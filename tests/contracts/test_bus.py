"""The contract of the bus (`shared.bus.base`), held for the log table and for Kafka by the same tests."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping

import pytest

from shared.bus.base import Bus, Outgoing, OutOfRange, Record, RecordTooLarge, partition_of
from shared.errors import is_transient
from tests.contracts.conftest import BOTH, OTHER_TOPIC, PARTITIONS, TOPIC, World
from tests.support.wait import until

pytestmark = BOTH


def record(key: str | bytes, value: str | bytes = b"", topic: str = TOPIC, **headers: bytes) -> Outgoing:
    as_bytes = [part.encode() if isinstance(part, str) else part for part in (key, value)]
    return Outgoing(topic, as_bytes[0], as_bytes[1], headers)


def keys_in_different_partitions() -> list[str]:
    """One key for each partition, in the order of the partitions."""
    found: dict[int, str] = {}
    for number in range(1000):
        found.setdefault(partition_of(str(number).encode(), PARTITIONS), str(number))
    return [found[partition] for partition in range(PARTITIONS)]


class Reader:
    """Reads a bus topic from the beginning on, keeping its own positions."""

    def __init__(self, bus: Bus, topic: str = TOPIC) -> None:
        self.bus, self.topic = bus, topic
        self.positions: dict[int, int] = {}
        self.records: list[Record] = []

    async def read(self, wait: float = 0.0, limit: int = 1000) -> list[Record]:
        if not self.positions:
            self.positions = dict(await self.bus.beginnings(self.topic))
        found = await self.bus.fetch(self.topic, self.positions, limit=limit, wait=wait)
        for partition, records in found.items():
            self.positions[partition] = records[-1].number + 1
            self.records += records
        return [one for records in found.values() for one in records]

    async def read_until(self, count: int) -> list[Record]:
        """At least so many in all; more than `count` are a failure of the test, not of the wait."""

        async def enough() -> bool:
            await self.read(wait=0.2)
            return len(self.records) >= count

        await until(enough, what=f"{count} records are read")
        return self.records

    @property
    def values(self) -> list[bytes]:
        return [one.value for one in self.records]


def by_partition(records: Iterable[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {}
    for one in records:
        found.setdefault(one.partition, []).append(one)
    return found


async def test_bytes_keys_and_headers_survive(world: World) -> None:
    bus = await world.open()
    hostile = [
        record(b"\x00\xff\xfe key", bytes(range(256)), outbox=b"events/3,918,0", ce_id=b"\xc3\x28"),
        record("ключ", '{"имя": "Анна"}', трасса=b"\x00"),
        record("no value", b""),
        record(b"", b"no key", empty=b""),
    ]
    await bus.append(hostile)
    read = await Reader(bus).read_until(len(hostile))
    found = {one.key: one for one in read}
    for sent in hostile:
        got = found[sent.key]
        assert (got.topic, got.key, got.value, got.headers) == (sent.topic, sent.key, sent.value, sent.headers)
        assert got.partition == partition_of(sent.key, PARTITIONS)
    assert len(read) == len(hostile)


async def test_records_of_one_key_keep_their_order(world: World) -> None:
    bus = await world.open()

    async def write(writer: int) -> None:
        for start in range(0, 60, 20):
            await bus.append([record(f"k{n % 3}", f"{writer} {n:03}") for n in range(start, start + 20)])

    await asyncio.gather(*(write(writer) for writer in range(4)))
    read = await Reader(bus).read_until(4 * 60)
    for key in (b"k0", b"k1", b"k2"):
        for writer in range(4):
            numbers = [one.value for one in read if one.key == key and one.value.startswith(b"%d " % writer)]
            assert numbers == sorted(numbers)
            assert len(numbers) == 20


async def test_numbers_rise_and_nothing_is_lost_or_doubled_when_many_append_at_once(world: World) -> None:
    buses = [await world.open("one"), await world.open("two")]
    await asyncio.gather(
        *(
            buses[writer % 2].append([record(f"{writer}-{n}", f"{writer}-{n}") for n in range(25)])
            for writer in range(40)
        )
    )
    read = await Reader(buses[0]).read_until(1000)
    assert Counter(one.value for one in read) == Counter(f"{w}-{n}".encode() for w in range(40) for n in range(25))
    for records in by_partition(read).values():
        numbers = [one.number for one in records]
        assert numbers == sorted(set(numbers))


async def test_every_group_sees_everything(world: World) -> None:
    bus, other = await world.open("one"), await world.open("two")
    await bus.append([record(str(n), str(n)) for n in range(50)])
    readers = [Reader(bus), Reader(bus), Reader(other)]
    await asyncio.gather(*(reader.read_until(50) for reader in readers))
    for reader in readers:
        assert sorted(reader.values) == sorted(str(n).encode() for n in range(50))


async def test_topics_do_not_mix(world: World) -> None:
    bus = await world.open()
    await bus.append([record("a", "event"), record("a", "message", topic=OTHER_TOPIC)])
    assert [one.value for one in await Reader(bus).read_until(1)] == [b"event"]
    assert [one.value for one in await Reader(bus, OTHER_TOPIC).read_until(1)] == [b"message"]


async def test_a_writer_that_commits_late_is_never_skipped(world: World) -> None:
    """It began first and commits last; meanwhile others write, also into its partition, and a reader goes on."""
    bus, waiting = await world.open(), await world.open("behind it")
    keys = keys_in_different_partitions()
    finish = await world.stalled_writer(record(keys[0], "late"))
    reader = Reader(bus)
    behind_it = asyncio.create_task(waiting.append([record(keys[0], "behind it")]))
    await bus.append([record(key, "beside it") for key in keys[1:]])

    async def all_beside_it() -> bool:
        await reader.read()
        return reader.values.count(b"beside it") == len(keys) - 1

    await until(all_beside_it, what="what others wrote is read while the writer stalls")
    await finish()
    await behind_it
    await reader.read_until(len(keys) + 1)
    assert sorted(reader.values) == sorted([b"late", b"behind it"] + [b"beside it"] * (len(keys) - 1))


async def test_positions_that_did_not_commit_come_back(world: World) -> None:
    bus = await world.open("one")
    await bus.append([record(str(n), str(n)) for n in range(20)])
    start = await bus.beginnings(TOPIC)
    first = await Reader(bus).read_until(20)
    again = Reader(bus)
    again.positions = dict(start)
    assert by_partition(await again.read_until(20)) == by_partition(first)
    elsewhere = Reader(await world.open("two"))
    assert by_partition(await elsewhere.read_until(20)) == by_partition(first)


async def test_a_fetch_may_begin_anywhere_and_positions_may_change_between_fetches(world: World) -> None:
    bus = await world.open()
    await bus.append([record("a", str(n)) for n in range(10)])
    await bus.append([record(key, "other") for key in keys_in_different_partitions()])
    all_of_it = by_partition(await Reader(bus).read_until(10 + PARTITIONS))[partition_of(b"a", PARTITIONS)]
    partition = all_of_it[0].partition
    for at in (7, 2, 9, 0):
        found = await bus.fetch(TOPIC, {partition: all_of_it[at].number}, limit=3, wait=1)
        assert found == {partition: all_of_it[at : at + 3]}


async def test_no_partition_gives_more_than_the_limit_and_a_hot_one_does_not_starve_the_others(world: World) -> None:
    bus = await world.open()
    hot, *cold = keys_in_different_partitions()
    await bus.append([record(hot, "x" * 500) for _ in range(3000)])
    await bus.append([record(key, "cold") for key in cold])
    reader = Reader(bus)
    for _ in range(3):
        found = by_partition(await reader.read(wait=1, limit=100))
        assert all(len(records) <= 100 for records in found.values())
    assert reader.values.count(b"cold") == len(cold)
    assert 100 <= reader.values.count(b"x" * 500) <= 300
    # What comes later into a cold partition comes through, too, while the hot one still has much.
    await bus.append([record(cold[0], "colder")])
    await reader.read(wait=1, limit=100)
    await reader.read(wait=1, limit=100)
    assert b"colder" in reader.values


async def test_large_records_pass_and_too_large_ones_are_refused_alone(world: World) -> None:
    bus = await world.open()
    large = bytes(range(256)) * 4 * 1024  # 1 MiB
    with pytest.raises(RecordTooLarge) as refused:
        await bus.append([record("a", "beside it"), record("b", b"x" * (5 << 20))])
    assert not is_transient(refused.value)
    await bus.append([record("a", large), record("b", "small"), record("a", large * 2), record("a", "last")])
    read = await Reader(bus).read_until(4)
    assert [one.value for one in read if one.key == b"a"] == [large, large * 2, b"last"]
    assert [one.value for one in read if one.key == b"b"] == [b"small"]


async def test_an_append_of_many_megabytes_arrives_whole_and_in_order(world: World) -> None:
    bus = await world.open()
    await bus.append([record("a", b"%05d" % n + b"." * 10_000) for n in range(1200)])
    read = await Reader(bus).read_until(1200)
    assert [int(one.value[:5]) for one in read] == list(range(1200))


async def test_a_waiting_fetch_returns_as_soon_as_there_is_something(world: World) -> None:
    bus = await world.open()
    reader = Reader(bus)
    assert await reader.read() == []
    waiting = asyncio.create_task(reader.read(wait=30))
    await asyncio.sleep(0.3)  # the fetch is under way; nothing depends on how far
    began = time.monotonic()
    await bus.append([record("a", "now")])
    assert [one.value for one in await waiting] == [b"now"]
    assert time.monotonic() - began < 5


async def test_a_fetch_that_finds_nothing_is_empty_after_its_time(world: World) -> None:
    bus = await world.open()
    began = time.monotonic()
    assert await Reader(bus).read(wait=0.5) == []
    assert 0.4 <= time.monotonic() - began < 5


async def test_closing_ends_a_waiting_fetch(world: World) -> None:
    bus = await world.open()
    waiting = asyncio.create_task(Reader(bus).read(wait=60))
    await asyncio.sleep(0.3)  # as above
    await asyncio.wait_for(bus.close(), 5)
    world.open_buses.remove(bus)
    try:
        assert await asyncio.wait_for(waiting, 5) == []
    except Exception as error:
        assert is_transient(error)


async def test_ends_lie_behind_what_was_answered_and_beginnings_before_what_is_kept(world: World) -> None:
    bus = await world.open()
    before = await bus.ends(TOPIC)
    assert before == await bus.beginnings(TOPIC)
    assert sorted(before) == list(range(PARTITIONS))
    await bus.append([record(str(n)) for n in range(40)])
    ends = await bus.ends(TOPIC)
    read = by_partition(await Reader(bus).read_until(40))
    for partition, records in read.items():
        assert ends[partition] == records[-1].number + 1
    assert await bus.ends(OTHER_TOPIC) == await bus.beginnings(OTHER_TOPIC)


async def test_a_position_behind_the_end_is_out_of_range_and_named(world: World) -> None:
    bus = await world.open()
    await bus.append([record(str(n)) for n in range(20)])
    ends = await bus.ends(TOPIC)
    with pytest.raises(OutOfRange, match=f"{TOPIC}/2"):
        await bus.fetch(TOPIC, {**ends, 2: ends[2] + 5}, limit=10, wait=1)


async def test_a_position_before_what_is_kept_is_out_of_range_and_the_others_go_on(world: World) -> None:
    bus = await world.open()
    key, other = keys_in_different_partitions()[:2]
    await bus.append([record(key, str(n)) for n in range(10)] + [record(other, "other")])
    first = await bus.beginnings(TOPIC)
    await world.forget(TOPIC, 0, first[0] + 6)
    with pytest.raises(OutOfRange, match=f"{TOPIC}/0"):
        await (await world.open("fresh")).fetch(TOPIC, {0: first[0] + 2}, limit=10, wait=1)
    assert (await bus.beginnings(TOPIC))[0] == first[0] + 6
    rest = await bus.fetch(TOPIC, {0: first[0] + 6, 1: first[1]}, limit=10, wait=1)
    while len(rest) < 2:
        rest |= await bus.fetch(
            TOPIC, {p: n for p, n in {0: first[0] + 6, 1: first[1]}.items() if p not in rest}, limit=10, wait=1
        )
    assert [one.value for one in rest[0]] == [b"6", b"7", b"8", b"9"]
    assert [one.value for one in rest[1]] == [b"other"]


async def test_an_epoch_names_this_topic_of_this_cluster(world: World) -> None:
    bus = await world.open("one")
    assert bus.epoch(TOPIC) != bus.epoch(OTHER_TOPIC)
    again = await world.open("two")
    assert [again.epoch(topic) for topic in (TOPIC, OTHER_TOPIC)] == [bus.epoch(TOPIC), bus.epoch(OTHER_TOPIC)]


async def test_a_topic_made_anew_has_another_epoch_and_begins_empty(world: World) -> None:
    bus = await world.open("one")
    await bus.append([record("a", "old")])
    former = bus.epoch(TOPIC), bus.epoch(OTHER_TOPIC)
    await bus.close()
    world.open_buses.remove(bus)
    await world.make_anew(TOPIC)
    bus = await world.open("two")
    assert bus.epoch(TOPIC) != former[0]
    assert bus.epoch(OTHER_TOPIC) == former[1]
    await bus.append([record("a", "new")])
    assert [one.value for one in await Reader(bus).read_until(1)] == [b"new"]


async def test_a_topic_keeps_the_partitions_it_was_made_with(world: World) -> None:
    assert (await world.open("one")).partitions(TOPIC) == PARTITIONS
    assert (await world.open("two", partitions=9)).partitions(TOPIC) == PARTITIONS


async def test_another_cluster_has_another_epoch(world: World, own_world: World) -> None:
    assert (await world.open()).epoch(TOPIC) != (await own_world.open()).epoch(TOPIC)


async def test_published_records_arrive_in_the_order_of_the_calls(world: World) -> None:
    bus = await world.open()
    for row in range(30):
        await bus.publish([record(f"k{n}", f"{row:02} {n}") for n in range(5)])
    read = await Reader(bus).read_until(150)
    for records in by_partition(read).values():
        rows = [one.value for one in records]
        assert [row[:2] for row in rows] == sorted(row[:2] for row in rows)


async def test_a_committed_position_is_for_people_only(world: World) -> None:
    bus = await world.open()
    await bus.append([record("a", "1")])
    await bus.commit("profile", TOPIC, await bus.ends(TOPIC))
    assert [one.value for one in await Reader(bus).read_until(1)] == [b"1"]


async def test_after_the_server_was_killed_and_started_the_same_bus_goes_on(own_world: World) -> None:
    bus, server = await own_world.open(), own_world.server
    assert server is not None
    reader = Reader(bus)
    answered: list[bytes] = []

    async def append(value: str) -> bool:
        try:
            await bus.append([record(value, value)])
        except Exception as error:
            if not is_transient(error):
                raise
            return False
        answered.append(value.encode())
        return True

    assert await append("before")
    await reader.read_until(1)
    waiting = asyncio.create_task(_fetch_or_transient(bus, dict(reader.positions)))
    server.kill()
    assert not await append("while it is down")
    with pytest.raises(Exception) as failure:
        await bus.ends(TOPIC)
    assert is_transient(failure.value)
    await asyncio.wait_for(waiting, 15)
    server.start()
    await until(lambda: append("after"), limit=30, what="the bus appends again", every=0.2)

    async def everything_answered() -> bool:
        try:
            await reader.read(wait=0.2)
        except Exception as error:
            if not is_transient(error):
                raise
        return set(answered) <= set(reader.values)

    await until(everything_answered, limit=30, what="what was answered is read, before and after")
    assert reader.values.count(b"before") == 1
    ends: Mapping[int, int] = await bus.ends(TOPIC)
    assert sum(ends.values()) == len(reader.records)


async def _fetch_or_transient(bus: Bus, positions: dict[int, int]) -> None:
    try:
        await bus.fetch(TOPIC, positions, limit=10, wait=10)
    except Exception as error:
        assert is_transient(error)
