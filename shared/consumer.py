"""Reading a bus topic, once for all services: fetch → transaction {position, handle, outbox} → relay → retry → dead letter.

A service gives a `Handler`; everything else is here and in `shared.batch`. The handler works on a whole batch inside the
transaction that has already moved the positions by compare-and-set, and returns what it did. While a batch is handled,
the outbox row of the one before is published and the records after it are read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container, Mapping, Sequence
from functools import partial

import structlog

from shared import wake as signals
from shared.batch import Applied, Batch, Batches, Fenced, Fetched, Handler, Position
from shared.bus.base import OutOfRange, Record
from shared.clock import pause
from shared.db import Tx
from shared.errors import is_transient
from shared.giving_way import GivingWay
from shared.metrics import BATCHES, FENCED, LAST_POLL, RECORDS, RETRIES, STOPPED_PARTITIONS
from shared.outbox import free_shards
from shared.relay import Relay
from shared.service import Context, Loop

__all__ = ["Applied", "Batch", "Consumer", "Fenced", "Handler", "read_positions"]

log = structlog.get_logger(__name__)

BATCH = 1000  # records handled in one transaction, at most
MANY = BATCH // 2  # after as many of one partition there are probably more: they are read while these are handled
SMALL, LINGER = 32, 0.1  # after fewer records than this a consumer lingers, for so many seconds at most
CONCURRENT = 4  # partitions of one consumer handled at the same time
WAIT = 1.0  # seconds a fetch waits for records


class Consumer:
    """Reads `topics` as `group` and gives batches to `handler`; positions and outbox lie in `schema`.

    With `history` among the topics, it is handled only while the other topics have nothing waiting, or for at most a fifth
    of the time. `deduplicate`: whether repeats are told by the outbox header (not on `events`: there the event id does).
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
        self._context, self._group, self._schema = context, group, schema
        self._batches = Batches(context, group=group, schema=schema, handler=handler)
        self._topics = list(topics)
        self._background = background if background in topics else None
        self._by_header = by_header if by_header is not None else not set(topics) & {"events", "history"}
        self._relay = Relay(context, schema)
        self._pools = {topic: context.leases.pool(f"{group}:{topic}", self._lease_names(topic)) for topic in topics}
        self._free = context.leases.pool(
            f"{schema}:free", [f"{schema}:free:{shard}" for shard in free_shards(context.generation)]
        )
        self._positions: dict[tuple[str, int], Position] = {}
        self._publishing: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._busy: dict[str, bool] = dict.fromkeys(topics, False)
        self._gate = asyncio.Semaphore(CONCURRENT)
        self._giving_way = GivingWay(self._live_waits)
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
            return not any([await self._waits(connection, topic) for topic in self._topics])

    async def _waits(self, tx: Tx, topic: str) -> bool:
        """Whether something is appended to the topic that nobody has handled yet."""
        handled = await read_positions(tx, self._schema, self._group, self._context.bus.epoch(topic), topic)
        ends = await self._context.bus.ends(topic)
        return any(end > handled.get(partition, 0) for partition, end in ends.items())

    async def _live_waits(self) -> bool:
        live = [topic for topic in self._topics if topic != self._background]
        if any(self._busy[topic] for topic in live):
            return True
        async with self._context.database.connection() as connection:
            return any([await self._waits(connection, topic) for topic in live])

    # ── the loop of one topic ──────────────────────────────────────────────────────────────────────────────────────
    async def _run(self, topic: str) -> None:
        for key in [key for key in self._positions if key[0] == topic]:
            del self._positions[key]
        ahead: dict[int, list[Record]] = {}
        try:
            while True:
                self._raise_what_publishing_said(topic)
                held = await self._held(topic)
                if not held:
                    await self._wait_for_leases(topic)
                    continue
                found = await self._next(topic, held, ahead)
                self._polled(topic)
                if not found:
                    continue
                await self._context.hooks.reach("consumer.fetched")
                began = time.monotonic()
                ahead = await self._handle_found(topic, found)
                await self._linger(sum(map(len, found.values())), time.monotonic() - began)
        finally:
            # What is not published lies in the outbox: whoever reads the partition next goes on with it.
            for key in [key for key in self._publishing if key[0] == topic]:
                self._publishing.pop(key).cancel()

    async def _handle_found(self, topic: str, found: Mapping[int, Sequence[Record]]) -> dict[int, list[Record]]:
        """Handles what was found and returns what was read ahead meanwhile."""
        if topic == self._background:
            await self._giving_way.rest()
        self._busy[topic], began = True, time.monotonic()
        try:
            return await self._work_and_read_ahead(topic, found)
        finally:
            self._busy[topic] = False
            if topic == self._background:
                self._giving_way.worked(time.monotonic() - began)

    async def _wait_for_leases(self, topic: str) -> None:
        # A stand-by that lost its partitions to others has nothing to poll, and is well.
        self.last_poll[topic] = time.monotonic()
        changed = self._pools[topic].changed
        changed.clear()
        try:
            async with asyncio.timeout(0.25):
                await changed.wait()
        except TimeoutError:
            pass

    async def _next(
        self, topic: str, held: Mapping[int, Position], ahead: Mapping[int, list[Record]]
    ) -> dict[int, list[Record]]:
        """What was read ahead and still follows its position, and with it what the other partitions have; or what comes."""
        kept = {p: records for p, records in ahead.items() if p in held and held[p].next == records[0].number}
        others = {partition: position for partition, position in held.items() if partition not in kept}
        try:
            return kept | (await self._fetch(topic, others, wait=0 if kept else WAIT) if others else {})
        except OutOfRange as problem:
            await self._stop_out_of_range(topic, held, problem)
        except Exception as problem:
            if not is_transient(problem):
                raise
            RETRIES.labels(self._group, type(problem).__name__).inc()
            log.warning("consumer.fetch_failed", group=self._group, topic=topic, error=type(problem).__name__)
            await pause(0.25)
        return kept

    async def _work_and_read_ahead(self, topic: str, found: Mapping[int, Sequence[Record]]) -> dict[int, list[Record]]:
        """Handles what was found, while the next records of the partitions that had many are read."""
        following = {p: records[-1].number + 1 for p, records in found.items() if len(records) >= MANY}
        reading = asyncio.create_task(self._read_ahead(topic, following)) if following else None
        try:
            await asyncio.gather(*(self._work(topic, bundle) for bundle in bundles(found, self._failing(topic))))
        except BaseException:
            if reading is not None:
                reading.cancel()
            raise
        return await reading if reading is not None else {}

    async def _read_ahead(self, topic: str, following: Mapping[int, int]) -> dict[int, list[Record]]:
        if topic == self._background:
            return {}
        try:
            return await self._context.bus.fetch(topic, following, limit=BATCH, wait=0)
        except Exception as problem:
            if not (is_transient(problem) or isinstance(problem, OutOfRange)):
                raise
            return {}  # the ordinary fetch from the same place says what is wrong

    def _failing(self, topic: str) -> set[int]:
        return {
            partition for (name, partition), position in self._positions.items() if name == topic and position.failures
        }

    def _polled(self, topic: str) -> None:
        self.last_poll[topic] = time.monotonic()
        LAST_POLL.labels(self._group, topic).set_to_current_time()

    async def _linger(self, count: int, took: float) -> None:
        """For as long as the batch took: on a busy machine the next one is larger, and the cost of a transaction rarer."""
        least = self._context.settings.linger_ms / 1000
        if count < SMALL and least and not self._context.clock.virtual:
            await pause(max(least, min(took, LINGER)))

    async def _fetch(self, topic: str, held: Mapping[int, Position], wait: float) -> dict[int, list[Record]]:
        positions = {partition: position.next for partition, position in held.items()}
        return await self._context.bus.fetch(topic, positions, limit=BATCH, wait=wait)

    async def _held(self, topic: str) -> dict[int, Position]:
        """The partitions held now, with their positions; new ones are taken over first, lost ones forgotten."""
        numbers = {int(name.rsplit(":", 1)[1]) for name in self._pools[topic].held}
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
        if (publishing := self._publishing.pop((topic, partition), None)) is not None:
            await asyncio.wait([publishing])
        while await self._relay.publish_shards([self._batches.shard(topic, partition)]):
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

    async def _stop_out_of_range(self, topic: str, held: Mapping[int, Position], problem: OutOfRange) -> None:
        """Stops the partitions whose position the bus does not have any more; the others go on. No silent reset."""
        try:
            first, ends = await self._context.bus.beginnings(topic), await self._context.bus.ends(topic)
        except OutOfRange:
            first, ends = {}, {}  # the whole bus topic was made anew: none of its positions means anything
        for partition, position in held.items():
            if partition not in ends or not first[partition] <= position.next <= ends[partition]:
                self._stopped.add((topic, partition))
                self._positions.pop((topic, partition), None)
        STOPPED_PARTITIONS.labels(self._group).set(len(self._stopped))
        log.error(
            "consumer.out_of_range", group=self._group, topic=topic, problem=str(problem), stopped=len(self._stopped)
        )
        await pause(1.0)

    # ── one batch ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def _work(self, topic: str, bundle: Mapping[int, Sequence[Record]]) -> None:
        positions = {p: self._positions[topic, p] for p in bundle if (topic, p) in self._positions}
        if len(positions) < len(bundle):
            return  # a lease was lost meanwhile
        async with self._gate:
            try:
                await self._handle(topic, Fetched(bundle, positions, self._by_header))
                return
            except Fenced:
                FENCED.labels(self._group).inc()
                log.warning("consumer.fenced", group=self._group, topic=topic, partitions=sorted(bundle))
            except Exception as problem:
                if not is_transient(problem):
                    raise
                for position in positions.values():
                    position.failures += 1
                RETRIES.labels(self._group, type(problem).__name__).inc()
                log.warning(
                    "consumer.retry",
                    group=self._group,
                    topic=topic,
                    partitions=sorted(bundle),
                    error=type(problem).__name__,
                )
        failures = max(position.failures for position in positions.values())
        await pause(min(2.0, 0.02 * 2 ** min(failures, 8)))
        # What became of the transaction may be unknown, and its row may wait in the outbox: begin from what is stored.
        for partition in bundle:
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

    async def _handle(self, topic: str, fetched: Fetched) -> None:
        started = time.perf_counter()
        applied, number = await self._batches.handle(topic, fetched)
        fetched.committed()
        await self._context.hooks.reach("consumer.before_relay")
        key = topic, fetched.lead
        if (former := self._publishing.get(key)) is not None:
            await asyncio.wait([former])  # in order: the next row only when the whole former one is acknowledged
            former.result()
        self._publishing[key] = asyncio.create_task(self._publish(key, self._positions.get(key), number, applied))
        self._count(topic, fetched.dropped, applied, time.perf_counter() - started)

    async def _publish(self, key: tuple[str, int], position: Position | None, number: int, applied: Applied) -> None:
        """Publishes the row of a batch that is committed, while the next batch is handled. If that fails the partition is
        taken over anew, which begins with what lies in its outbox."""
        try:
            if applied.publish:
                await self._relay.publish_row(self._batches.shard(*key), number, applied.publish)
        except Exception as problem:
            if self._positions.get(key) is position:
                self._positions.pop(key, None)
            if not is_transient(problem):
                raise
            RETRIES.labels(self._group, type(problem).__name__).inc()
            log.warning("consumer.publish_failed", group=self._group, topic=key[0], error=type(problem).__name__)
            raise
        for name in applied.wake:
            self._context.wake.signal(name)
        self._context.wake.signal(signals.MOVED)

    def _raise_what_publishing_said(self, topic: str) -> None:
        """Errors of publishing that are nobody's surroundings end the loop, as those of handling do. Of this topic alone:
        a batch of another one may be in its transaction, and has to see that the row before its own is not published."""
        for key, task in list(self._publishing.items()):
            if key[0] != topic or not task.done():
                continue
            del self._publishing[key]
            if (problem := task.exception()) is not None and not is_transient(problem):
                raise problem

    def _count(self, topic: str, dropped: int, applied: Applied, seconds: float) -> None:
        for result in ("applied", "repeated", "conflicting", "erased", "dead"):
            count = getattr(applied, result) + (dropped if result == "repeated" else 0)
            if count:
                RECORDS.labels(self._group, topic, result).inc(count)
        BATCHES.labels(self._group).observe(seconds)


def bundles(found: Mapping[int, Sequence[Record]], failing: Container[int]) -> list[dict[int, Sequence[Record]]]:
    """What is handled in one transaction each: partitions together up to `BATCH` records, one that failed alone."""
    made: list[dict[int, Sequence[Record]]] = []
    size = BATCH
    for partition, records in sorted(found.items()):
        if partition in failing:
            made.insert(0, {partition: records})
        elif size + len(records) > BATCH:
            made.append({partition: records})
            size = len(records)
        else:
            made[-1][partition] = records
            size += len(records)
    return made


async def read_positions(tx: Tx, schema: str, group: str, epoch: str, topic: str) -> dict[int, int]:
    """How far a group is: partition → number of the first record that is not handled."""
    rows = await tx.fetch(
        f"SELECT partition, next FROM {schema}.position WHERE group_name = $1 AND epoch = $2 AND topic = $3",
        group,
        epoch,
        topic,
    )
    return dict(rows)
