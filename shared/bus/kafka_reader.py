"""Reading partitions of Kafka from positions of one's own: no group, no subscription, no position kept in the client.

A request of aiokafka's consumer keeps one state a partition and pauses a whole broker while one of its partitions has
records that nobody has taken yet (0.1 s). Here a fetch states its positions each time, and what a broker sent beyond
the limit is kept by (partition, number) until somebody asks from there: so several readers, hot partitions and changed
assignments need no special case.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

from shared.bus.base import OutOfRange, Record
from shared.bus.kafka_cluster import Cluster

LONGEST_POLL = 1.0  # seconds a broker holds a request that finds nothing
PARTITION_BYTES = 1 << 20  # what a broker sends of one partition at once …
ANSWER_BYTES = 4 << 20  # … and in one answer; decoding it takes some 10 ms
KEPT_RECORDS = 50_000  # read ahead and not asked for: the oldest are forgotten (and fetched again if need be)
QUICK_ANSWER = 0.05  # seconds
FIRST_LANE = 100  # lanes below serve requests that never wait

_Place = tuple[str, int, int]  # bus topic, partition, number
_Question = tuple[str, int, frozenset[tuple[int, int]]]  # bus topic, broker, positions


class KafkaReader:
    """Fetches for all readers of one process."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._ahead: OrderedDict[_Place, list[Record]] = OrderedDict()
        self._kept = 0
        # Where records without content for us (control records of somebody's transactions) lead on to.
        self._leads_to: dict[_Place, int] = {}
        self._under_way: dict[_Question, asyncio.Task[None]] = {}
        self._lanes_in_use: set[tuple[int, int]] = set()
        self._closed = asyncio.Event()

    async def fetch(
        self, topic: str, positions: Mapping[int, int], *, limit: int, wait: float
    ) -> dict[int, list[Record]]:
        """See `shared.bus.base.Bus.fetch`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while positions and not self._closed.is_set():
            missing = {p: n for p, n in positions.items() if (topic, p, n) not in self._ahead}
            something_ready = len(missing) < len(positions)
            if missing:
                try:
                    await self._ask(topic, missing, 0.0 if something_ready else max(0.0, deadline - loop.time()))
                except kafka_errors.KafkaError:
                    if not something_ready:
                        raise  # else it comes again, and is told once nothing hides it
            found = {p: self._take((topic, p, n), limit) for p, n in positions.items() if (topic, p, n) in self._ahead}
            if found or loop.time() >= deadline:
                return found
        return {}

    async def close(self) -> None:
        """Ends waiting fetches at once."""
        self._closed.set()
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, topic: str, positions: Mapping[int, int], wait: float) -> None:
        """Asks the brokers; returns as soon as one has sent something, or when `wait` is over.

        :raises OutOfRange: at once
        :raises aiokafka.errors.KafkaError: a broker failed, and no other has sent anything
        """
        loop = asyncio.get_running_loop()
        # Whoever is told not to wait gets the time of a slow answer, no more.
        deadline = loop.time() + (wait or QUICK_ANSWER)
        by_leader, failure = self._by_leader(topic, positions)
        questions = [self._question(topic, node, places, wait) for node, places in by_leader.items()]
        asked: set[asyncio.Task[Any]] = {question for question in questions if question is not None}
        closed: asyncio.Task[Any] = loop.create_task(self._closed.wait())
        try:
            while asked:
                left = deadline - loop.time()
                done, _ = await asyncio.wait({*asked, closed}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                asked -= done
                for task in done - {closed}:
                    failure = (None if task.cancelled() else task.exception()) or failure
                if closed in done or not done or isinstance(failure, OutOfRange) or self._any_ahead(topic, positions):
                    break
        finally:
            closed.cancel()
        if failure is not None and (isinstance(failure, OutOfRange) or not self._any_ahead(topic, positions)):
            raise failure

    def _any_ahead(self, topic: str, positions: Mapping[int, int]) -> bool:
        return any((topic, p, n) in self._ahead for p, n in positions.items())

    def _by_leader(
        self, topic: str, positions: Mapping[int, int]
    ) -> tuple[dict[int, dict[int, int]], BaseException | None]:
        """The positions by broker; partitions that have no leader now are left out, and that is the failure."""
        by_leader: dict[int, dict[int, int]] = {}
        failure: BaseException | None = None
        for partition, number in positions.items():
            try:
                by_leader.setdefault(self._cluster.leader(topic, partition), {})[partition] = number
            except kafka_errors.LeaderNotAvailableError as error:
                failure = error
        return by_leader, failure

    def _question(self, topic: str, node: int, positions: Mapping[int, int], wait: float) -> asyncio.Task[None] | None:
        """A request to one broker. One that waits there with the same positions is joined instead of being sent again
        (but not by somebody who does not want to wait)."""
        question = (topic, node, frozenset(positions.items()))
        if (task := self._under_way.get(question)) is not None:
            return task if wait else None
        task = asyncio.create_task(self._request(topic, node, positions, min(wait, LONGEST_POLL)))
        self._under_way[question] = task
        task.add_done_callback(lambda done: self._answered(question, done))
        return task

    def _answered(self, question: _Question, task: asyncio.Task[None]) -> None:
        del self._under_way[question]
        if not task.cancelled():
            task.exception()  # whoever waits for it sees it; if nobody waits any more, the next request will

    async def _request(self, topic: str, node: int, positions: Mapping[int, int], wait: float) -> None:
        """One request to one broker, on a connection where nothing else waits; keeps what it sends."""
        resolved = {p: self._leads_to.get((topic, p, n), n) for p, n in positions.items()}
        # A broker fills its answer in the order of the request: at random, so that nobody is always last.
        order = random.sample(sorted(resolved), len(resolved))
        request = FetchRequest(
            int(wait * 1000),
            1,
            ANSWER_BYTES,
            0,
            [(self._cluster.address.name(topic), [(p, resolved[p], PARTITION_BYTES) for p in order])],
        )
        lane = next(n for n in range(FIRST_LANE, 1 << 16) if (node, n) not in self._lanes_in_use)
        self._lanes_in_use.add((node, lane))
        try:
            response = await self._cluster.send(node, request, lane=lane)
        except kafka_errors.KafkaError:
            self._cluster.look_again()
            raise
        finally:
            self._lanes_in_use.discard((node, lane))
        failure: Exception | None = None
        for _name, partitions in response.topics:
            for partition, code, _high, *_rest, records in partitions:
                if code:
                    failure = self._failure(topic, partition, resolved[partition], code, failure)
                elif records:
                    self._keep(topic, partition, positions[partition], resolved[partition], records)
        if failure is not None:
            raise failure

    def _failure(self, topic: str, partition: int, number: int, code: int, former: Exception | None) -> Exception:
        error = kafka_errors.for_code(code)
        if error is kafka_errors.OffsetOutOfRangeError:
            return OutOfRange(f"{topic}/{partition}: Kafka does not keep number {number}")
        self._cluster.look_again()
        return former or error(f"{topic}/{partition}")

    def _keep(self, topic: str, partition: int, asked: int, start: int, data: bytes) -> None:
        records, following = _decode(topic, partition, start, data)
        if records:
            self._put((topic, partition, asked), records)
        elif following > start:
            self._leads_to[topic, partition, asked] = following

    def _put(self, place: _Place, records: list[Record]) -> None:
        self._kept += len(records) - len(self._ahead.pop(place, ()))
        self._ahead[place] = records
        while self._kept > KEPT_RECORDS and len(self._ahead) > 1:
            self._kept -= len(self._ahead.popitem(last=False)[1])

    def _take(self, place: _Place, limit: int) -> list[Record]:
        records = self._ahead.pop(place)
        self._kept -= len(records)
        self._leads_to.pop(place, None)
        if len(records) > limit:
            topic, partition, _ = place
            self._put((topic, partition, records[limit - 1].number + 1), records[limit:])
        return records[:limit]


def _decode(topic: str, partition: int, start: int, data: bytes) -> tuple[list[Record], int]:
    """The records from number `start` on, and the number that follows what was sent."""
    records: list[Record] = []
    following = start
    batches: Any = MemoryRecords(data)
    while batches.has_next():
        batch = batches.next_batch()
        if not batch.validate_crc():
            raise kafka_errors.CorruptRecordException(f"{topic}/{partition} from number {start}")
        following = batch.next_offset
        if batch.is_control_batch:
            continue
        records += [
            Record(topic, partition, record.offset, record.key or b"", record.value or b"", dict(record.headers))
            for record in batch
            if record.offset >= start
        ]
    return records, following
