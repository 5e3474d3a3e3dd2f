"""Writing to Kafka: one idempotent producer, a lane for each partition, and an end at the first failure.

What waits for one partition is written together: a lane hands over a batch, waits until it is acknowledged, and takes
what has gathered meanwhile. So nothing lingers while the broker is idle, and batches grow by themselves under load.
A producer that failed is thrown away with all that it still held: what its calls wanted is unknown, and nothing of it
comes later than what the next producer writes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

import aiokafka.errors as kafka_errors
import structlog
from aiokafka import AIOKafkaProducer

from shared.bus.base import Outgoing, RecordTooLarge, partition_of
from shared.bus.kafka_cluster import MAX_RECORD_BYTES, REQUEST_TIMEOUT_SECONDS, Address

log = structlog.get_logger(__name__)

BATCH_BYTES = 256 * 1024
OPENING_SECONDS = 5.0


class KafkaWriter:
    """Begins a producer when there is something to write and none is alive.

    :param timeout: seconds until a batch that no broker acknowledges counts as failed (its outcome is unknown)
    """

    def __init__(
        self, address: Address, client_id: str, partitions: Mapping[str, int], timeout: float = REQUEST_TIMEOUT_SECONDS
    ) -> None:
        self._address, self._client_id, self._partitions, self._timeout = address, client_id, partitions, timeout
        self._session: _Session | None = None
        self._beginning: asyncio.Task[_Session] | None = None
        self._closed = False

    async def write(self, records: Sequence[Outgoing], *, abandon_if_cancelled: bool) -> None:
        """Returns when all are acknowledged.

        :param abandon_if_cancelled: whether a caller that gives up ends the producer, too, so that nothing of this call
            comes later
        :raises RecordTooLarge: before anything is written
        """
        for record in records:
            if (size := _size(record)) > MAX_RECORD_BYTES:
                raise RecordTooLarge(
                    f"a record for bus topic {record.topic} has {size} bytes, at most {MAX_RECORD_BYTES} fit"
                )
        if not records:
            return
        session = await self._alive()
        try:
            await session.write(records)
        except asyncio.CancelledError:
            if abandon_if_cancelled:
                await session.end(kafka_errors.ProducerClosed("the writer gave up"))
            raise

    async def close(self) -> None:
        """What is under way is finished or, after a while, given up."""
        self._closed = True
        if self._beginning is not None:
            await asyncio.wait([self._beginning])
        if self._session is not None:
            await self._session.finish()

    async def _alive(self) -> _Session:
        if self._closed:
            raise kafka_errors.ProducerClosed("the bus is closed")
        if self._session is not None and not self._session.ended:
            return self._session
        if self._beginning is None:  # one for all who wait; they share its failure, too
            self._beginning = asyncio.create_task(self._begin())
        return await asyncio.shield(self._beginning)

    async def _begin(self) -> _Session:
        try:
            if self._session is not None:
                await self._session.end(kafka_errors.ProducerClosed("it failed"))  # until it is really over
                self._session = None
            self._session = await _Session.begin(self._address, self._client_id, self._partitions, self._timeout)
            return self._session
        finally:
            self._beginning = None


class _Call:
    """One call of `write`: done when each of its records is."""

    def __init__(self, count: int) -> None:
        self.open = count
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def acknowledge(self, count: int) -> None:
        self.open -= count
        if self.open == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class _Session:
    """The life of one producer, from its first record to its first failure."""

    def __init__(self, producer: AIOKafkaProducer, address: Address, partitions: Mapping[str, int], timeout: float):
        self._producer, self._address, self._partitions, self._timeout = producer, address, partitions, timeout
        self._waiting: dict[tuple[str, int], deque[tuple[Outgoing, _Call]]] = {}
        self._lanes: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._calls: set[_Call] = set()
        self._end: asyncio.Task[None] | None = None

    @classmethod
    async def begin(cls, address: Address, client_id: str, partitions: Mapping[str, int], timeout: float) -> _Session:
        producer = AIOKafkaProducer(
            bootstrap_servers=list(address.brokers),
            client_id=client_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=BATCH_BYTES,
            max_request_size=MAX_RECORD_BYTES + BATCH_BYTES,
            request_timeout_ms=int(timeout * 1000),
            **address.security,
        )
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return cls(producer, address, partitions, timeout)

    @property
    def ended(self) -> bool:
        return self._end is not None

    async def write(self, records: Sequence[Outgoing]) -> None:
        if self.ended:
            raise kafka_errors.ProducerClosed("it failed for another call")
        call = _Call(len(records))
        self._calls.add(call)
        try:
            for record in records:
                lane = record.topic, partition_of(record.key, self._partitions[record.topic])
                self._waiting.setdefault(lane, deque()).append((record, call))
                if lane not in self._lanes:
                    self._lanes[lane] = asyncio.create_task(self._drain(*lane))
            await call.done
        finally:
            self._calls.discard(call)

    async def finish(self) -> None:
        """Waits for what is under way, then ends."""
        if not self.ended and self._lanes:
            await asyncio.wait(list(self._lanes.values()), timeout=self._timeout)
        await self.end(kafka_errors.ProducerClosed("the bus was closed"))

    async def end(self, reason: BaseException) -> None:
        """Ends the producer without handing over anything more; returns when that is certain."""
        self._begin_end(reason)
        assert self._end is not None
        await asyncio.shield(self._end)

    def _begin_end(self, reason: BaseException) -> None:
        if self._end is None:
            self._end = asyncio.create_task(self._abort(reason))
            for call in self._calls:
                call.fail(reason)

    async def _drain(self, topic: str, partition: int) -> None:
        """A lane: one batch after the other, until nothing waits."""
        waiting = self._waiting[topic, partition]
        counts: dict[_Call, int] = {}
        try:
            while waiting and not self.ended:
                batch = self._producer.create_batch()
                counts = {}
                while waiting and self._add(batch, waiting[0][0]):
                    call = waiting.popleft()[1]
                    counts[call] = counts.get(call, 0) + 1
                batch.close()
                async with asyncio.timeout(self._timeout):
                    sent = await self._producer.send_batch(batch, self._address.name(topic), partition=partition)
                    sent.add_done_callback(_look_at)
                    await sent
                for call, count in counts.items():
                    call.acknowledge(count)
        except kafka_errors.MessageSizeTooLargeError as error:
            # Only a record that is a batch by itself can be too large; its neighbours in other batches may try again.
            for call in counts:
                call.fail(RecordTooLarge(f"Kafka's limit for bus topic {topic} (max.message.bytes) is lower: {error}"))
            self._begin_end(kafka_errors.ProducerClosed("a record was too large"))
        except Exception as error:
            self._begin_end(error)
        finally:
            del self._lanes[topic, partition]

    def _add(self, batch: object, record: Outgoing) -> bool:
        """Whether it fitted; the first record of a batch always does."""
        return (
            batch.append(  # type: ignore[attr-defined]
                timestamp=None, key=record.key, value=record.value, headers=list(record.headers.items())
            )
            is not None
        )

    async def _abort(self, reason: BaseException) -> None:
        """`stop` alone would first deliver what is queued, and wait for it for ever while no broker answers."""
        log.info("bus.producer_ended", reason=repr(reason))
        sender, queued = self._producer._sender.sender_task, self._producer._message_accumulator
        for lane in self._lanes.values():
            lane.cancel()
        sender.cancel()  # it takes up nothing more, but waits for its requests …
        await self._producer.client.close()  # … which end with their connections
        while not sender.done():
            await asyncio.wait([sender], timeout=0.05)
            sender.cancel()
        queued._batches.clear()
        queued._pending_batches.clear()
        await self._producer.stop()


def _look_at(sent: asyncio.Future[object]) -> None:
    """A batch may fail when its lane waits no longer: then nobody else looks at the error."""
    if not sent.cancelled():
        sent.exception()


def _size(record: Outgoing) -> int:
    return (
        len(record.key) + len(record.value) + sum(len(name) + len(value) + 10 for name, value in record.headers.items())
    )
