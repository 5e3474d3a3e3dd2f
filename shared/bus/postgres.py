"""The bus as a log table in PostgreSQL (schema `bus`, see `shared.tables`).

Appends that wait together are written together: one autocommit statement for all of them, so a burst of requests costs
one commit. A statement either appends everything or nothing. After an error of the connection its outcome is unknown;
whoever publishes again may append twice, and readers drop what they have seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import uuid4

import msgspec
import structlog

from shared.bus.base import Outgoing, OutOfRange, Record, RecordTooLarge, partition_of
from shared.db import Database
from shared.wake import Wake, bus_topic

log = structlog.get_logger(__name__)

MAX_RECORD = 4 * 1024 * 1024  # bytes
MAX_STATEMENT = 8 * 1024 * 1024  # bytes of records in one append
FALLBACK = 1.0  # seconds until a reader looks without having been woken
RETENTION_DAYS = 14
POOL = 6
CLOSE_SECONDS = 5.0  # that the database may take to have what was appended last
_REST = "bus.record_default"  # the records of days for which there was no table

_pack = msgspec.msgpack.Encoder()
_unpack = msgspec.msgpack.Decoder(dict[str, bytes])


# Records that wait to be appended, and who waits for that.
Waiting = tuple[Sequence[Outgoing], asyncio.Future[None]]


class PostgresBus:
    """See `shared.bus.base.Bus`."""

    def __init__(self, database: Database, wake: Wake, topics: dict[str, tuple[str, int]]) -> None:
        self._database = database
        self._wake = wake
        self._topics = topics
        self._waiting: list[Waiting] = []
        self._flusher: asyncio.Task[None] | None = None
        self._in_range: set[tuple[str, int]] = set()

    @classmethod
    async def open(cls, url: str, *, member: str, partitions: int, wake: Wake, topics: Sequence[str]) -> PostgresBus:
        """Connects and makes the topics that are missing. A topic that exists keeps its number of partitions."""
        database = await Database.open(url, member=member, size=POOL)
        known: dict[str, tuple[str, int]] = {}
        async with database.transaction() as tx:
            for topic in sorted(topics):
                await tx.execute(
                    "INSERT INTO bus.topic (name, epoch, partitions) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                    topic,
                    uuid4(),
                    partitions,
                )
                row = await tx.fetchrow("SELECT epoch, partitions FROM bus.topic WHERE name = $1", topic)
                await tx.execute(
                    "INSERT INTO bus.partition (topic, partition) SELECT $1, generate_series(0, $2 - 1) ON CONFLICT DO NOTHING",
                    topic,
                    row["partitions"],
                )
                known[topic] = (str(row["epoch"]), row["partitions"])
        return cls(database, wake, known)

    def epoch(self, topic: str) -> str:
        return self._topics[topic][0]

    def partitions(self, topic: str) -> int:
        return self._topics[topic][1]

    async def append(self, records: Sequence[Outgoing]) -> None:
        if not records:
            return
        for record in records:
            if len(record.value) > MAX_RECORD:
                raise RecordTooLarge(
                    f"a record for {record.topic} has {len(record.value)} bytes, at most {MAX_RECORD} fit"
                )
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, done))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        await done

    publish = append

    async def _flush(self) -> None:
        while self._waiting:
            taken, size = [], 0
            while self._waiting and size < MAX_STATEMENT:
                records, done = self._waiting.pop(0)
                taken.append((records, done))
                size += sum(len(record.value) for record in records)
            try:
                await self._write([record for records, _ in taken for record in records])
            except asyncio.CancelledError:
                _tell([*taken, *self._waiting], ConnectionAbortedError("the bus was closed before it had the records"))
                raise
            except Exception as problem:
                _tell(taken, problem)
            else:
                _tell(taken, None)

    async def _write(self, records: list[Outgoing]) -> None:
        counts = {topic: count for topic, (_, count) in self._topics.items()}
        async with self._database.connection() as connection:
            await connection.execute(
                "SELECT bus.append($1, $2, $3, $4, $5)",
                [r.topic for r in records],
                [partition_of(r.key, counts[r.topic]) for r in records],
                [r.key for r in records],
                [r.value for r in records],
                [_pack.encode(r.headers) for r in records],
            )
        for topic in {r.topic for r in records}:
            self._wake.signal(bus_topic(topic))

    async def fetch(
        self, topic: str, positions: Mapping[int, int], *, limit: int, wait: float
    ) -> dict[int, list[Record]]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        listener = self._wake.listen([bus_topic(topic)])
        try:
            while True:
                found = await self._read(topic, positions, limit)
                left = deadline - loop.time()
                if found or left <= 0:
                    return found
                await listener.wait(min(left, FALLBACK))
        finally:
            listener.close()

    async def _read(self, topic: str, positions: Mapping[int, int], limit: int) -> dict[int, list[Record]]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """
                SELECT p.partition, r.number, r.key, r.value, r.headers
                FROM unnest($2::smallint[], $3::bigint[]) AS p(partition, next)
                CROSS JOIN LATERAL (
                    SELECT number, key, value, headers FROM bus.record
                    WHERE topic = $1 AND partition = p.partition AND number >= p.next
                    ORDER BY number LIMIT $4
                ) r
                """,
                topic,
                list(positions.keys()),
                list(positions.values()),
                limit,
            )
        found: dict[int, list[Record]] = {}
        for partition, number, key, value, headers in rows:
            found.setdefault(partition, []).append(
                Record(topic, partition, number, key, value, _unpack.decode(headers) if headers != b"\x80" else {})
            )
        unsure = [
            p
            for p, next_number in positions.items()
            if (p in found and found[p][0].number != next_number)
            or (p not in found and (topic, p) not in self._in_range)
        ]
        if unsure:
            await self._check_range(topic, {p: positions[p] for p in unsure})
        return found

    async def _check_range(self, topic: str, positions: Mapping[int, int]) -> None:
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT partition, first, next FROM bus.partition WHERE topic = $1", topic)
        for partition, first, next_number in rows:
            if partition not in positions:
                continue
            if not first <= positions[partition] <= next_number:
                raise OutOfRange(
                    f"{topic}/{partition}: the position {positions[partition]} is not within the kept numbers "
                    f"{first}…{next_number}"
                )
            self._in_range.add((topic, partition))

    async def ends(self, topic: str) -> dict[int, int]:
        return await self._bounds(topic, "next")

    async def beginnings(self, topic: str) -> dict[int, int]:
        return await self._bounds(topic, "first")

    async def _bounds(self, topic: str, column: str) -> dict[int, int]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(f"SELECT partition, {column} FROM bus.partition WHERE topic = $1", topic)
        return dict(rows)

    async def commit(self, group: str, topic: str, positions: Mapping[int, int]) -> None:
        """Nothing to tell: the positions lie in the same server, where people look."""

    async def maintain(self, handled: Mapping[str, Mapping[int, int]], retention_days: int = RETENTION_DAYS) -> None:
        """Makes the coming days' tables and drops the days that are over; run it every hour by the bus's owner.

        A day stays beyond its time while it has a record that nobody has handled: after a long stop the readers go on.
        """
        async with self._database.connection() as connection:
            await connection.execute("SELECT bus.make_days(2)")
            today = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::bigint / 86400")
            old = await connection.fetch(
                """
                SELECT name, day FROM (
                    SELECT c.oid::regclass::text AS name, substring(c.relname FROM 8)::int AS day
                    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                    WHERE i.inhparent = 'bus.record'::regclass AND c.relname <> 'record_default'
                    UNION ALL SELECT DISTINCT $2, day FROM bus.record_default
                ) days WHERE day < $1 ORDER BY day
                """,
                today - retention_days,
                _REST,
            )
        for name, day in old:
            await self._drop_day(name, day, handled)

    async def _drop_day(self, name: str, day: int, handled: Mapping[str, Mapping[int, int]]) -> None:
        async with self._database.transaction() as tx:
            last = await tx.fetch(
                f"SELECT topic, partition, max(number) AS number FROM {name} WHERE day = $1 GROUP BY 1, 2", day
            )
            waiting = sorted(
                {r["topic"] for r in last if r["number"] >= handled.get(r["topic"], {}).get(r["partition"], 0)}
            )
            if waiting:
                log.warning(
                    "bus.day_kept", day=f"{datetime.fromtimestamp(day * 86_400, UTC):%Y-%m-%d}", not_handled=waiting
                )
                return
            await tx.execute(
                """
                UPDATE bus.partition p SET first = greatest(p.first, gone.number + 1)
                FROM unnest($1::text[], $2::int[], $3::bigint[]) AS gone(topic, partition, number)
                WHERE p.topic = gone.topic AND p.partition = gone.partition
                """,
                [row["topic"] for row in last],
                [row["partition"] for row in last],
                [row["number"] for row in last],
            )
            await tx.execute(f"DELETE FROM {name} WHERE day = {day}" if name == _REST else f"DROP TABLE {name}")

    async def close(self) -> None:
        """Waits for what was appended last, but not for a database that hangs: whoever appended is told of an error then,
        and appends again."""
        if self._flusher is not None and not self._flusher.done():
            await asyncio.wait({self._flusher}, timeout=CLOSE_SECONDS)
            if not self._flusher.done():
                log.warning(
                    "bus.not_flushed",
                    said=f"The database of the bus did not take the last records within {CLOSE_SECONDS:g} s; their senders "
                    "were not told that they are kept, and send them again.",
                )
                await self._give_up(self._flusher)
        await self._database.close()

    async def _give_up(self, flusher: asyncio.Task[None]) -> None:
        self._database.terminate()  # a statement that hangs fails by it; who is about to connect is cancelled
        await asyncio.wait({flusher}, timeout=0.5)
        flusher.cancel()
        await asyncio.wait({flusher}, timeout=0.5)


def _tell(appended: Sequence[Waiting], problem: Exception | None) -> None:
    """What came of it, None: they are kept."""
    for _, done in appended:
        if done.done():
            continue
        if problem is None:
            done.set_result(None)
        else:
            done.set_exception(problem)
