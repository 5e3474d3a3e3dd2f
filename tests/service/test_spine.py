"""The spine on real PostgreSQL: positions, outbox, dead letters, fencing, leases, marks and the watermark."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import MetaData, create_engine
from sqlalchemy.schema import CreateTable

from shared import wake as signals
from shared.batch import Fetched
from shared.bus.base import Bus, Outgoing, OutOfRange, Record
from shared.clock import VirtualClock
from shared.consumer import Applied, Batch, Consumer, Fenced, bundles
from shared.db import Tx
from shared.errors import Permanent
from shared.events import EVENTS, HISTORY, PROFILE_EVENTS
from shared.keeper import Keeper
from shared.marks import marks_for, read_watermark
from shared.outbox import HEADER, write_free
from shared.spine_tables import spine_tables
from tests.support.contexts import context_for, running
from tests.support.wait import until

NODE = UUID("00000000-0000-0000-0000-000000000007")


@pytest.fixture
async def spine_url(database_url: str) -> str:
    """A database with the spine tables of two services that are not there otherwise: `probe` and `sink`."""
    connection = await asyncpg.connect(database_url)
    for schema in ("probe", "sink"):
        metadata = MetaData(schema=schema)
        spine_tables(metadata)
        await connection.execute(f"CREATE SCHEMA {schema}")
        for table in metadata.sorted_tables:
            await connection.execute(str(CreateTable(table).compile(create_engine("postgresql+asyncpg://"))))
        await connection.execute(f"CREATE TABLE {schema}.effect (number bigint, value text)")
    await connection.close()
    return database_url


async def writes_and_passes_on(tx: Tx, batch: Batch) -> Applied:
    """Writes an effect a record and publishes it; a record that says `bad` is at fault."""
    for record in batch.records:
        if record.value == b"bad":
            raise Permanent("it says bad", "/value")
    await tx.execute(
        "INSERT INTO probe.effect SELECT * FROM unnest($1::bigint[], $2::text[])",
        [record.number for record in batch.records],
        [record.value.decode() for record in batch.records],
    )
    return Applied(publish=[Outgoing(PROFILE_EVENTS, record.key, record.value) for record in batch.records])


async def only_notes(tx: Tx, batch: Batch) -> Applied:
    await tx.execute(
        "INSERT INTO probe.effect SELECT * FROM unnest($1::bigint[], $2::text[])",
        [record.number for record in batch.records],
        [record.value.decode() for record in batch.records],
    )
    return Applied()


async def only_writes(tx: Tx, batch: Batch) -> Applied:
    await tx.execute(
        "INSERT INTO sink.effect SELECT 0, * FROM unnest($1::text[])", [r.value.decode() for r in batch.records]
    )
    return Applied()


def _events(*values: str) -> list[Outgoing]:
    return [Outgoing(EVENTS, f"key-{n}".encode(), value.encode()) for n, value in enumerate(values)]


async def _values(url: str, table: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return sorted(row[0] for row in await connection.fetch(f"SELECT value FROM {table}"))
    finally:
        await connection.close()


async def test_what_a_batch_decides_reaches_the_next_service_once(spine_url: str) -> None:
    async with context_for(spine_url) as context:
        probe = Consumer(
            context, group="probe", topics=[EVENTS], handler=writes_and_passes_on, schema="probe", by_header=False
        )
        sink = Consumer(
            context, group="sink", topics=[PROFILE_EVENTS], handler=only_writes, schema="sink", by_header=True
        )
        async with running({**probe.loops(), **{f"s{k}": v for k, v in sink.loops().items()}}):
            await context.bus.append(_events(*[f"value {n:03}" for n in range(300)]))
            await until(lambda: sink.quiet(), what="the sink to be quiet")
            await until(lambda: probe.quiet(), what="the probe to be quiet")

            async def all_there() -> bool:
                return len(await _values(spine_url, "sink.effect")) >= 300

            await until(all_there, what="all records at the sink")
    assert await _values(spine_url, "sink.effect") == [f"value {n:03}" for n in range(300)]


async def test_a_record_published_twice_is_dropped_by_its_outbox_header(spine_url: str) -> None:
    async with context_for(spine_url) as context:
        sink = Consumer(
            context, group="sink", topics=[PROFILE_EVENTS], handler=only_writes, schema="sink", by_header=True
        )
        twice = [
            Outgoing(PROFILE_EVENTS, b"k", str(n).encode(), {HEADER: f"events/0@x,{n},0".encode()})
            for n in (1, 2, 1, 2, 3, 2)
        ]
        async with running(sink.loops()):
            await context.bus.append(twice)

            async def handled() -> bool:
                return len(await _values(spine_url, "sink.effect")) >= 3 and await sink.quiet()

            await until(handled, what="the records")
        assert await _values(spine_url, "sink.effect") == ["1", "2", "3"]
        async with context.database.connection() as connection:
            counted = await connection.fetchrow(
                "SELECT sum(read) AS read, sum(applied) AS applied, sum(repeated) AS repeated FROM sink.position"
            )
        assert tuple(counted) == (6, 3, 3)


async def test_a_record_at_fault_is_put_aside_alone_with_its_bytes_and_reason(spine_url: str) -> None:
    async with context_for(spine_url) as context:
        probe = Consumer(
            context, group="probe", topics=[EVENTS], handler=writes_and_passes_on, schema="probe", by_header=False
        )
        await context.bus.append([Outgoing(EVENTS, b"one", value) for value in (b"a", b"bad", b"c")])
        async with running(probe.loops()):
            await until(lambda: probe.quiet(), what="the probe to be quiet")

            async def two() -> bool:
                return len(await _values(spine_url, "probe.effect")) == 2

            await until(two, what="its neighbours")
        async with context.database.connection() as connection:
            rows = await connection.fetch("SELECT service, bytes, reason, pointer FROM platform.dead_letter")
            counted = await connection.fetchrow(
                "SELECT sum(read) AS r, sum(applied) AS a, sum(dead) AS d FROM probe.position"
            )
    assert [tuple(row) for row in rows] == [("probe", b"bad", "it says bad", "/value")]
    assert tuple(counted) == (3, 2, 1)


async def test_a_record_that_times_out_alone_is_put_aside_when_it_has_returned_three_times(spine_url: str) -> None:
    async with context_for(spine_url, partitions=1) as context:
        probe = Consumer(
            context, group="probe", topics=[EVENTS], handler=_waits_for_what_is_locked, schema="probe", by_header=False
        )
        await context.bus.append(_events("good", "locked", "better"))
        async with running(probe.loops()):
            await until(lambda: probe.quiet(), limit=30, what="the batch is done")
        async with context.database.connection() as connection:
            letters = await connection.fetch("SELECT bytes, reason FROM platform.dead_letter")
    assert [letter["bytes"] for letter in letters] == [b"locked"]
    assert await _values(spine_url, "probe.effect") == ["better", "good"]


@pytest.mark.parametrize("values", [["locked"], ["locked", "locked", "locked", "locked", "good"]])
async def test_records_are_not_put_aside_while_a_table_is_locked(spine_url: str, values: list[str]) -> None:
    async with context_for(spine_url, partitions=1) as context:
        probe = Consumer(
            context, group="probe", topics=[EVENTS], handler=_waits_for_what_is_locked, schema="probe", by_header=False
        )
        await context.bus.append(_events(*values))
        before = _retries()
        async with running(probe.loops()):
            # three for the batch, three for each record alone, and some
            await until(lambda: _retries() >= before + 7, limit=30, what="the batch has been tried again and again")
        async with context.database.connection() as connection:
            assert await connection.fetchval("SELECT count(*) FROM platform.dead_letter") == 0
            assert await connection.fetchval("SELECT sum(read) FROM probe.position") == 0


async def _waits_for_what_is_locked(tx: Tx, batch: Batch) -> Applied:
    if any(record.value == b"locked" for record in batch.records):
        await tx.execute("SET LOCAL statement_timeout = '10ms'")
        await tx.execute("SELECT pg_sleep(5)")
    return await only_notes(tx, batch)


def _retries() -> float:
    labels = {"group": "probe", "error": "QueryCanceledError"}
    return REGISTRY.get_sample_value("dripline_batch_retries_total", labels) or 0.0


async def test_a_batch_is_not_published_before_the_one_before_it_that_failed(spine_url: str) -> None:
    async with context_for(spine_url, partitions=1) as context:
        second_is_handled, go_on = asyncio.Event(), asyncio.Event()

        async def handler(tx: Tx, batch: Batch) -> Applied:
            if any(record.value == b"second" for record in batch.records):
                second_is_handled.set()
                await go_on.wait()
            return await writes_and_passes_on(tx, batch)

        bus = context.bus = _FailsOnce(context.bus, second_is_handled)
        probe = Consumer(
            context, group="probe", topics=[EVENTS, HISTORY], handler=handler, schema="probe", by_header=False
        )
        async with running(probe.loops()):
            await context.bus.append(_events("first"))
            await until(lambda: bus.begun, what="the first row is being published")
            await context.bus.append(_events("second"))
            await until(lambda: bus.failed, what="that has failed, while the second batch is in its transaction")
            for _ in range(2):
                turned = probe.last_poll[HISTORY]
                await until(lambda was=turned: probe.last_poll[HISTORY] > was, what="the other topic's loop turns")
            go_on.set()
            await until(lambda: probe.quiet(), what="both are published")
    assert bus.published == ["first", "second"]


class _FailsOnce:
    """A bus that cannot publish the first time, and says so only after `when`."""

    def __init__(self, bus: Bus, when: asyncio.Event) -> None:
        self._bus, self._when = bus, when
        self.begun = self.failed = False
        self.published: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish(self, records: Sequence[Outgoing]) -> None:
        if not self.begun:
            self.begun = True
            await self._when.wait()
            self.failed = True
            raise ConnectionError("the broker is starting again")
        await self._bus.publish(records)
        self.published += [record.value.decode() for record in records]


async def test_a_bus_topic_made_anew_stops_its_partitions_and_says_so(spine_url: str) -> None:
    async with context_for(spine_url, partitions=2) as context:
        context.bus = _MadeAnew(context.bus)
        probe = Consumer(
            context, group="probe", topics=[EVENTS], handler=writes_and_passes_on, schema="probe", by_header=False
        )
        async with running(probe.loops()):
            await until(lambda: REGISTRY.get_sample_value("dripline_stopped_partitions", {"group": "probe"}) == 2)
            with pytest.raises(OutOfRange, match="stopped"):
                await probe.check()


class _MadeAnew:
    """A bus that finds, once its readers have begun, that its topics are others now: as Kafka's does."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self._begun = bus, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def fetch(self, *_: Any, **__: Any) -> dict[int, list[Record]]:
        self._begun = True
        raise OutOfRange("made anew")

    async def beginnings(self, topic: str) -> dict[int, int]:
        if self._begun:
            raise OutOfRange("made anew")
        return await self._bus.beginnings(topic)


async def test_history_takes_at_most_a_fifth_of_the_time_while_live_events_wait(
    spine_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.consumer.BATCH", 10)
    handled: list[str] = []

    async def takes_a_moment(tx: Tx, batch: Batch) -> Applied:
        await asyncio.sleep(0.005)  # the work of a batch, the same for both
        handled.append(batch.topic)
        return Applied()

    async with context_for(spine_url) as context:
        for topic in (HISTORY, EVENTS):
            await context.bus.append([Outgoing(topic, b"k", str(n).encode()) for n in range(600)])
        probe = Consumer(
            context, group="probe", topics=[EVENTS, HISTORY], handler=takes_a_moment, schema="probe", by_header=False
        )
        async with running(probe.loops()):
            await until(lambda: probe.quiet(), what="the probe to be quiet")
    assert [handled.count(topic) for topic in (EVENTS, HISTORY)] == [60, 60]
    last = len(handled) - handled[::-1].index(EVENTS)
    assert 1 <= handled[:last].count(HISTORY) <= 60 / 4 + 2, "a fifth of all is a quarter of the live ones"


async def test_a_batch_fetched_before_somebody_else_moved_the_position_is_refused(spine_url: str) -> None:
    async with context_for(spine_url, leases=False) as context:
        await context.bus.append([Outgoing(EVENTS, b"one", b"a"), Outgoing(EVENTS, b"one", b"b")])
        slow = Consumer(
            context, group="probe", topics=[EVENTS], handler=writes_and_passes_on, schema="probe", by_header=False
        )
        fast = Consumer(
            context, group="probe", topics=[EVENTS], handler=writes_and_passes_on, schema="probe", by_header=False
        )
        ends = await context.bus.ends(EVENTS)
        partition = next(number for number, end in ends.items() if end)
        stale, current = await slow._take_over(EVENTS, partition), await fast._take_over(EVENTS, partition)
        found = await context.bus.fetch(EVENTS, {partition: 0}, limit=10, wait=1)
        await fast._handle(EVENTS, Fetched(found, {partition: current}, by_header=False))
        with pytest.raises(Fenced):
            await slow._handle(EVENTS, Fetched(found, {partition: stale}, by_header=False))
    assert await _values(spine_url, "probe.effect") == ["a", "b"]


async def test_of_several_partitions_in_one_transaction_none_is_handled_if_one_was_moved_by_somebody_else(
    spine_url: str,
) -> None:
    async with context_for(spine_url, leases=False) as context:
        keys = [f"key-{n}".encode() for n in range(12)]
        await context.bus.append([Outgoing(EVENTS, key, key) for key in keys])
        slow, fast = (
            Consumer(context, group="probe", topics=[EVENTS], handler=only_notes, schema="probe", by_header=False)
            for _ in range(2)
        )
        partitions = [number for number, end in (await context.bus.ends(EVENTS)).items() if end]
        assert len(partitions) > 1
        stale = {number: await slow._take_over(EVENTS, number) for number in partitions}
        found = await context.bus.fetch(EVENTS, dict.fromkeys(partitions, 0), limit=100, wait=1)
        last = max(partitions)
        moved = {last: await fast._take_over(EVENTS, last)}
        await fast._handle(EVENTS, Fetched({last: found[last]}, moved, by_header=False))
        with pytest.raises(Fenced):
            await slow._handle(EVENTS, Fetched(found, stale, by_header=False))
        assert sorted(await _values(spine_url, "probe.effect")) == sorted(r.value.decode() for r in found[last])
        rest = {number: found[number] for number in partitions if number != last}
        await slow._handle(EVENTS, Fetched(rest, stale, by_header=False))
    assert sorted(await _values(spine_url, "probe.effect")) == sorted(key.decode() for key in keys)


def test_few_records_of_many_partitions_share_a_transaction_and_a_partition_that_failed_has_its_own() -> None:
    def records(partition: int, count: int) -> list[Record]:
        return [Record(EVENTS, partition, number, b"", b"", {}) for number in range(count)]

    found = {0: records(0, 600), 1: records(1, 300), 2: records(2, 300), 3: records(3, 1000), 4: records(4, 1)}
    shared = [sorted(bundle) for bundle in bundles(found, failing={4})]
    assert shared == [[4], [0, 1], [2], [3]]
    assert [sorted(bundle) for bundle in bundles({7: records(7, 1)}, failing=())] == [[7]]


async def test_a_row_left_behind_by_a_dead_holder_is_published_by_the_next(spine_url: str) -> None:
    async def dies_before_the_relay() -> None:
        raise RuntimeError("dead")

    async with context_for(spine_url, leases=False) as context:
        await context.bus.append([Outgoing(EVENTS, b"one", b"a")])
        dying = Consumer(
            context, group="probe", topics=[EVENTS], handler=writes_and_passes_on, schema="probe", by_header=False
        )
        partition = next(number for number, end in (await context.bus.ends(EVENTS)).items() if end)
        position = await dying._take_over(EVENTS, partition)
        found = await context.bus.fetch(EVENTS, {partition: 0}, limit=10, wait=1)
        context.hooks.arm("consumer.before_relay", dies_before_the_relay)
        with pytest.raises(RuntimeError):
            await dying._handle(EVENTS, Fetched(found, {partition: position}, by_header=False))
        assert not any((await context.bus.ends(PROFILE_EVENTS)).values())
        successor = Consumer(
            context, group="probe", topics=[EVENTS], handler=writes_and_passes_on, schema="probe", by_header=False
        )
        await successor._take_over(EVENTS, partition)
        assert sum((await context.bus.ends(PROFILE_EVENTS)).values()) == 1


async def test_rows_of_timers_and_api_calls_are_published_in_order(spine_url: str) -> None:
    async with context_for(spine_url) as context:
        probe = Consumer(
            context, group="probe", topics=[EVENTS], handler=writes_and_passes_on, schema="probe", by_header=False
        )
        for n in range(5):
            async with context.database.transaction() as tx:
                await write_free(tx, "probe", NODE, [Outgoing(PROFILE_EVENTS, b"same", f"{n}".encode())])
        async with running(probe.loops()):
            context.wake.signal(signals.outbox("probe"))

            async def published() -> bool:
                return sum((await context.bus.ends(PROFILE_EVENTS)).values()) == 5

            await until(published, what="five records")
        partition = next(number for number, end in (await context.bus.ends(PROFILE_EVENTS)).items() if end)
        found = await context.bus.fetch(PROFILE_EVENTS, {partition: 0}, limit=10, wait=1)
        assert [record.value for record in found[partition]] == [b"0", b"1", b"2", b"3", b"4"]


async def test_two_members_share_the_partitions_and_the_second_takes_all_when_the_first_leaves(spine_url: str) -> None:
    async with context_for(spine_url, lease_seconds=1.0) as one:
        first = one.leases.pool("probe:events", [f"probe:events:{n}" for n in range(4)])
        async with context_for(spine_url, lease_seconds=1.0) as two:
            second = two.leases.pool("probe:events", [f"probe:events:{n}" for n in range(4)])
            await until(lambda: (len(first.held), len(second.held)) == (2, 2), what="two each")
            assert not first.held & second.held
        await until(lambda: len(first.held) == 4, what="all four")


async def test_the_watermark_follows_the_clock_when_nothing_is_there_and_waits_for_what_is(spine_url: str) -> None:
    start = datetime(2026, 5, 1, 10, 0, tzinfo=UTC)
    clock = VirtualClock(start)
    async with context_for(spine_url, clock=clock) as context:
        keeper = Keeper(context)
        async with running(keeper.loops()):
            await until(lambda: bool(keeper._pool.held), what="the keeper's lease")
            await keeper.close_at(start + timedelta(minutes=1))
            async with context.database.connection() as connection:
                assert await read_watermark(connection) == start + timedelta(minutes=1)
            await context.bus.append([Outgoing(EVENTS, b"one", b"a")])
            closing = asyncio.create_task(keeper.close_at(start + timedelta(minutes=2)))
            await asyncio.wait({closing}, timeout=0.5)
            assert not closing.done(), "nobody has handled the event, so the watermark must not pass it"
            partition = next(number for number, end in (await context.bus.ends(EVENTS)).items() if end)
            async with context.database.transaction() as tx:
                marks = await marks_for(tx, context.bus.epoch(EVENTS), {partition: (0, 0)})
                assert marks.of(partition, 0) == start + timedelta(minutes=1)
                await tx.execute(
                    """
                    INSERT INTO profile.position (group_name, epoch, topic, partition, next)
                    VALUES ('profile', $1, 'events', $2, 1)
                    """,
                    context.bus.epoch(EVENTS),
                    partition,
                )
            await closing
