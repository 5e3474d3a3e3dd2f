"""Reading a bus topic, once for all services: fetch → transaction {position, handle, outbox} → relay → retry → dead letter.

A service gives a `Handler`; everything else is here. The handler works on a whole batch of one partition inside the
transaction that has already moved the position by compare-and-set, and returns what it did.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Protocol

import structlog

from shared import wake as signals
from shared.bus.base import Outgoing, OutOfRange, Record
from shared.bus.leases import LeasePool
from shared.clock import pause
from shared.db import Tx
from shared.errors import Permanent, is_timeout, is_transient
from shared.ids import uuid7
from shared.metrics import BATCHES, DEAD_LETTERS, FENCED, LAST_POLL, RECORDS, RETRIES, STOPPED_PARTITIONS
from shared.outbox import HEADER, free_shards, pack, partition_shard, read_header
from shared.relay import Relay
from shared.service import Context, Loop

log = structlog.get_logger(__name__)

BATCH = 1000  # records of one partition handled in one transaction, at most
SMALL = 32  # after fewer records than this a consumer lingers, so that the next batch is larger
CONCURRENT = 4  # partitions of one consumer handled at the same time
WAIT = 1.0  # seconds a fetch waits for records
PATIENCE = 3  # how often a timeout must return for one record alone before it is that record's fault
HISTORY_SHARE = 5  # while live events wait, at most every fifth batch is history


@dataclass
class Batch:
    """Records of one partition, in order; what the outbox header proved to be a repeat is already gone.

    `now`: business time taken before BEGIN. `epoch`: the bus epoch of the topic.
    """

    group: str
    topic: str
    partition: int
    epoch: str
    now: datetime
    records: Sequence[Record]


@dataclass
class Applied:
    """What a handler did with a batch: counts that add up to the records it was given (a record handled without error
    and not counted elsewhere is applied), what to publish in order, and which loops to wake after the commit."""

    applied: int = 0
    repeated: int = 0
    conflicting: int = 0
    erased: int = 0
    dead: int = 0
    publish: list[Outgoing] = field(default_factory=list)
    wake: set[str] = field(default_factory=set)

    def add(self, other: Applied) -> None:
        """Takes in what another part of the same batch did."""
        for name in ("applied", "repeated", "conflicting", "erased", "dead"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.publish += other.publish
        self.wake |= other.wake


class Handler(Protocol):
    """Raises for a record that is at fault: the batch is run again record by record under savepoints and that record
    alone is dead-lettered (so a handler must be able to run on any sub-batch). Transient errors are retried."""

    async def __call__(self, tx: Tx, batch: Batch) -> Applied: ...


class Fenced(Exception):
    """The position was not where the batch was fetched from: somebody else was faster."""


@dataclass
class Position:
    """A partition as this member knows it. `seen`: shard → [number, index] of the highest record read."""

    next: int
    seen: dict[str, list[int]]
    timeouts: dict[int, int] = field(default_factory=dict)
    failures: int = 0


class Consumer:
    """Reads `topics` as `group` and gives batches to `handler`; positions and outbox lie in `schema`.

    With `history` among the topics, it is read only while the other topics have nothing waiting, or for at most every
    fifth batch. `deduplicate`: whether repeats are told by the outbox header (not on `events`: there the event id does).
    """

    def __init__(
        self,
        context: Context,
        *,
        group: str,
        topics: Sequence[str],
        handler: Handler,
        schema: str,
        background: str | None = "history",
        by_header: bool | None = None,
    ) -> None:
        self._context, self._group, self._schema, self._handler = context, group, schema, handler
        self._topics = list(topics)
        self._background = background if background in topics else None
        self._by_header = by_header if by_header is not None else not set(topics) & {"events", "history"}
        self._relay = Relay(context, schema)
        self._pools = {topic: context.leases.pool(f"{group}:{topic}", self._lease_names(topic)) for topic in topics}
        self._free = context.leases.pool(
            f"{schema}:free", [f"{schema}:free:{shard}" for shard in free_shards(context.generation)]
        )
        self._positions: dict[tuple[str, int], Position] = {}
        self._busy: dict[str, bool] = dict.fromkeys(topics, False)
        self._gate = asyncio.Semaphore(CONCURRENT)
        self._live_batches = 0
        self._stopped: set[tuple[str, int]] = set()
        self.last_poll: dict[str, float] = {}

    def _lease_names(self, topic: str) -> list[str]:
        return [f"{self._group}:{topic}:{number}" for number in range(self._context.bus.partitions(topic))]

    def loops(self) -> dict[str, Loop]:
        """A loop a topic, and the one that publishes the free shards of this service."""
        loops: dict[str, Loop] = {f"consume:{topic}": partial(self._run, topic) for topic in self._topics}
        loops["relay"] = partial(self._relay.run, self._free)
        return loops

    async def check(self) -> None:
        """Raises when a partition is stopped or a loop stands still (for readyz and the watchdog)."""
        if self._stopped:
            raise OutOfRange(
                f"{self._group}: partitions {sorted(self._stopped)} are stopped, their positions are out of range"
            )

    async def quiet(self) -> bool:
        """Whether everything that was appended has been handled and published."""
        if any(self._busy.values()):
            return False
        async with self._context.database.connection() as connection:
            if await connection.fetchval(f"SELECT EXISTS (SELECT 1 FROM {self._schema}.outbox)"):
                return False
            for topic in self._topics:
                handled = await read_positions(
                    connection, self._schema, self._group, self._context.bus.epoch(topic), topic
                )
                ends = await self._context.bus.ends(topic)
                if any(end > handled.get(partition, 0) for partition, end in ends.items()):
                    return False
        return True

    # ── the loop of one topic ──────────────────────────────────────────────────────────────────────────────────────
    async def _run(self, topic: str) -> None:
        for key in [key for key in self._positions if key[0] == topic]:
            del self._positions[key]
        pool = self._pools[topic]
        while True:
            held = await self._held(topic, pool)
            if not held:
                pool.changed.clear()
                try:
                    async with asyncio.timeout(0.25):
                        await pool.changed.wait()
                except TimeoutError:
                    pass
                continue
            try:
                found = await self._fetch(topic, held)
            except OutOfRange as problem:
                await self._stop_out_of_range(topic, held, problem)
                continue
            except Exception as problem:
                if not is_transient(problem):
                    raise
                RETRIES.labels(self._group, type(problem).__name__).inc()
                log.warning("consumer.fetch_failed", group=self._group, topic=topic, error=type(problem).__name__)
                await pause(0.25)
                continue
            self._polled(topic)
            if not found:
                continue
            await self._context.hooks.reach("consumer.fetched")
            self._busy[topic] = True
            try:
                await asyncio.gather(*(self._work(topic, partition, records) for partition, records in found.items()))
            finally:
                self._busy[topic] = False
            await self._linger(sum(map(len, found.values())))

    def _polled(self, topic: str) -> None:
        self.last_poll[topic] = time.monotonic()
        LAST_POLL.labels(self._group, topic).set_to_current_time()

    async def _linger(self, count: int) -> None:
        if count < SMALL and not self._context.clock.virtual and self._context.settings.linger_ms:
            await pause(self._context.settings.linger_ms / 1000)

    async def _fetch(self, topic: str, held: Mapping[int, Position]) -> dict[int, list[Record]]:
        positions = {partition: position.next for partition, position in held.items()}
        if topic == self._background and any(busy for other, busy in self._busy.items() if other != topic):
            if self._live_batches < HISTORY_SHARE - 1:
                await pause(0.01)
                return {}
        found = await self._context.bus.fetch(topic, positions, limit=BATCH, wait=WAIT)
        if found:
            self._live_batches = 0 if topic == self._background else self._live_batches + 1
        return found

    async def _held(self, topic: str, pool: LeasePool) -> dict[int, Position]:
        """The partitions held now, with their positions; new ones are taken over first, lost ones forgotten."""
        numbers = {int(name.rsplit(":", 1)[1]) for name in pool.held}
        for key in [key for key in self._positions if key[0] == topic and key[1] not in numbers]:
            del self._positions[key]
        for number in sorted(numbers):
            if (topic, number) not in self._positions and (topic, number) not in self._stopped:
                try:
                    self._positions[topic, number] = await self._take_over(topic, number)
                except Exception as problem:
                    if not is_transient(problem):
                        raise
                    log.warning("consumer.take_over_failed", group=self._group, error=type(problem).__name__)
                    await pause(0.25)
        return {
            number: self._positions[topic, number] for number in sorted(numbers) if (topic, number) in self._positions
        }

    async def _take_over(self, topic: str, partition: int) -> Position:
        """Publishes what the former holder left in the partition's shard, then reads the position."""
        while await self._relay.publish_shards([self._shard(topic, partition)]):
            pass
        first = (await self._context.bus.beginnings(topic)).get(partition, 0)
        async with self._context.database.connection() as connection:
            await connection.execute(
                f"""
                INSERT INTO {self._schema}.position (group_name, epoch, topic, partition, next)
                VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING
                """,
                self._group,
                self._context.bus.epoch(topic),
                topic,
                partition,
                first,
            )
            row = await connection.fetchrow(
                f"""
                SELECT next, seen FROM {self._schema}.position
                WHERE group_name = $1 AND epoch = $2 AND topic = $3 AND partition = $4
                """,
                self._group,
                self._context.bus.epoch(topic),
                topic,
                partition,
            )
        return Position(next=row["next"], seen=dict(row["seen"]))

    def _shard(self, topic: str, partition: int) -> str:
        return partition_shard(topic, partition, self._context.bus.epoch(topic), self._context.generation)

    async def _stop_out_of_range(self, topic: str, held: Mapping[int, Position], problem: OutOfRange) -> None:
        """Stops the partitions whose position the bus does not have any more; the others go on. No silent reset."""
        first, ends = await self._context.bus.beginnings(topic), await self._context.bus.ends(topic)
        for partition, position in held.items():
            if not first.get(partition, 0) <= position.next <= ends.get(partition, 0):
                self._stopped.add((topic, partition))
                self._positions.pop((topic, partition), None)
        STOPPED_PARTITIONS.labels(self._group).set(len(self._stopped))
        log.error(
            "consumer.out_of_range", group=self._group, topic=topic, problem=str(problem), stopped=len(self._stopped)
        )
        await pause(1.0)

    # ── one batch ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def _work(self, topic: str, partition: int, records: Sequence[Record]) -> None:
        position = self._positions.get((topic, partition))
        if position is None:
            return
        async with self._gate:
            try:
                await self._handle(topic, partition, position, records)
                position.failures = 0
                return
            except Fenced:
                FENCED.labels(self._group).inc()
                log.warning("consumer.fenced", group=self._group, topic=topic, partition=partition, next=position.next)
            except Exception as problem:
                if not is_transient(problem):
                    raise
                position.failures += 1
                RETRIES.labels(self._group, type(problem).__name__).inc()
                log.warning(
                    "consumer.retry", group=self._group, topic=topic, partition=partition, error=type(problem).__name__
                )
        await pause(min(2.0, 0.02 * 2 ** min(position.failures, 8)))
        # What became of the transaction may be unknown, and its row may wait in the outbox: begin from what is stored.
        if (kept := self._positions.pop((topic, partition), None)) is not None and kept.failures:
            await self._reload(topic, partition, kept)

    async def _reload(self, topic: str, partition: int, kept: Position) -> None:
        try:
            fresh = await self._take_over(topic, partition)
        except Exception as problem:
            if not is_transient(problem):
                raise
            return
        fresh.failures, fresh.timeouts = kept.failures, kept.timeouts
        self._positions[topic, partition] = fresh

    async def _handle(self, topic: str, partition: int, position: Position, records: Sequence[Record]) -> None:
        started = time.perf_counter()
        fresh, seen = self._unseen(position, records)
        batch = Batch(self._group, topic, partition, self._context.bus.epoch(topic), self._context.clock.now(), fresh)
        one_by_one = position.failures >= PATIENCE
        try:
            applied, number = await self._commit(batch, position, records, seen, one_by_one)
        except Fenced:
            raise
        except Exception as problem:
            if one_by_one or (is_transient(problem) and not isinstance(problem, Permanent)):
                raise
            applied, number = await self._commit(batch, position, records, seen, True)
        position.next, position.seen = records[-1].number + 1, seen
        await self._context.hooks.reach("consumer.before_relay")
        if applied.publish:
            await self._relay.publish_row(self._shard(topic, partition), number, applied.publish)
        for name in applied.wake:
            self._context.wake.signal(name)
        self._context.wake.signal(signals.MOVED)
        self._count(topic, len(records) - len(fresh), applied, time.perf_counter() - started)

    def _count(self, topic: str, dropped: int, applied: Applied, seconds: float) -> None:
        for result in ("applied", "repeated", "conflicting", "erased", "dead"):
            count = getattr(applied, result) + (dropped if result == "repeated" else 0)
            if count:
                RECORDS.labels(self._group, topic, result).inc(count)
        BATCHES.labels(self._group).observe(seconds)

    def _unseen(self, position: Position, records: Sequence[Record]) -> tuple[list[Record], dict[str, list[int]]]:
        """Drops what the outbox header proves to be a repeat; returns the rest and the new highest per shard."""
        if not self._by_header:
            return list(records), position.seen
        seen, fresh = dict(position.seen), []
        for record in records:
            header = record.headers.get(HEADER)
            if header is not None:
                shard, number, index = read_header(header)
                if [number, index] <= seen.get(shard, [-1, -1]):
                    continue
                seen[shard] = [number, index]
            fresh.append(record)
        return fresh, seen

    async def _commit(
        self, batch: Batch, position: Position, records: Sequence[Record], seen: dict[str, list[int]], one_by_one: bool
    ) -> tuple[Applied, int]:
        """One transaction: position, effects, counts and outbox. Returns what was done and the outbox number."""
        async with self._context.database.transaction() as tx:
            number = await tx.fetchval(
                f"""
                UPDATE {self._schema}.position SET next = $6, outbox_number = outbox_number + 1
                WHERE group_name = $1 AND epoch = $2 AND topic = $3 AND partition = $4 AND next = $5
                RETURNING outbox_number
                """,
                batch.group,
                batch.epoch,
                batch.topic,
                batch.partition,
                position.next,
                records[-1].number + 1,
            )
            if number is None:
                raise Fenced
            if not batch.records:
                applied = Applied()
            elif one_by_one:
                applied = await self._isolate(tx, batch, position)
            else:
                applied = await self._handler(tx, batch)
            applied.applied = len(batch.records) - (
                applied.repeated + applied.conflicting + applied.erased + applied.dead
            )
            await self._finish(tx, batch, applied, seen, len(records), number)
            await self._context.hooks.reach("consumer.in_transaction")
        return applied, number

    async def _finish(
        self, tx: Tx, batch: Batch, applied: Applied, seen: dict[str, list[int]], read: int, number: int
    ) -> None:
        await tx.execute(
            f"""
            WITH counted AS (
                UPDATE {self._schema}.position SET seen = $5, read = read + $6, applied = applied + $7,
                    repeated = repeated + $8, conflicting = conflicting + $9, erased = erased + $10, dead = dead + $11
                WHERE group_name = $1 AND epoch = $2 AND topic = $3 AND partition = $4
            )
            INSERT INTO {self._schema}.outbox (shard, number, records) SELECT $12, $13, $14::bytea WHERE $14::bytea IS NOT NULL
            """,
            batch.group,
            batch.epoch,
            batch.topic,
            batch.partition,
            seen,
            read,
            applied.applied,
            applied.repeated + read - len(batch.records),
            applied.conflicting,
            applied.erased,
            applied.dead,
            self._shard(batch.topic, batch.partition),
            number,
            pack(applied.publish) if applied.publish else None,
        )

    # ── a record that is at fault ──────────────────────────────────────────────────────────────────────────────────
    async def _isolate(self, tx: Tx, batch: Batch, position: Position) -> Applied:
        """The batch again, record by record under savepoints; what fails is dead-lettered with its original bytes."""
        total = Applied()
        for record in batch.records:
            alone = Batch(batch.group, batch.topic, batch.partition, batch.epoch, batch.now, [record])
            try:
                async with tx.transaction():
                    total.add(await self._handler(tx, alone))
            except Exception as problem:
                if is_transient(problem, tx) and not self._is_its_own_fault(problem, position, record):
                    raise
                await self._bury(tx, alone, record, problem)
                total.dead += 1
        return total

    def _is_its_own_fault(self, problem: BaseException, position: Position, record: Record) -> bool:
        if not is_timeout(problem):
            return False
        position.timeouts[record.number] = position.timeouts.get(record.number, 0) + 1
        return position.timeouts[record.number] >= PATIENCE

    async def _bury(self, tx: Tx, batch: Batch, record: Record, problem: Exception) -> None:
        reason = problem.reason if isinstance(problem, Permanent) else f"{type(problem).__name__}: {problem}"
        await tx.execute(
            """
            INSERT INTO platform.dead_letter
                (id, service, topic, partition, number, epoch, reason, pointer, key, bytes, headers, at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            """,
            uuid7(batch.now, self._context.bits),
            self._group,
            record.topic,
            record.partition,
            record.number,
            batch.epoch,
            reason.replace("\x00", "\\0")[:2000],
            problem.pointer if isinstance(problem, Permanent) else "",
            record.key,
            record.value,
            {name: value.decode(errors="replace") for name, value in record.headers.items()},
            batch.now,
        )
        DEAD_LETTERS.labels(self._group).inc()
        log.error(
            "consumer.dead_letter",
            group=self._group,
            topic=record.topic,
            partition=record.partition,
            number=record.number,
            error=type(problem).__name__,
        )


async def read_positions(tx: Tx, schema: str, group: str, epoch: str, topic: str) -> dict[int, int]:
    """How far a group is: partition → number of the first record that is not handled."""
    rows = await tx.fetch(
        f"SELECT partition, next FROM {schema}.position WHERE group_name = $1 AND epoch = $2 AND topic = $3",
        group,
        epoch,
        topic,
    )
    return dict(rows)
