"""The bus on Kafka, by aiokafka. Positions are the readers' own (see `shared.consumer`), partitions are leased.

Topics that are missing are made at the start; the epoch of each is the cluster's id and the id that Kafka gave to the
topic. A topic that is deleted and made anew while we run is noticed within `LOOK_SECONDS` at the latest: from then on
its old positions are out of range, in this process for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import aiokafka.errors as kafka_errors
import structlog
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.offset import OffsetRequest

from shared.bus.base import Outgoing, OutOfRange, Record
from shared.bus.kafka_cluster import Address, Cluster, TopicIdentity, await_topics, make_topics
from shared.bus.kafka_reader import KafkaReader
from shared.bus.kafka_writer import KafkaWriter
from shared.clock import pause
from shared.errors import is_transient
from shared.events import TOPICS
from shared.wake import Wake

log = structlog.get_logger(__name__)

LOOK_SECONDS = 10.0  # between two looks at the identity of the topics
STARTING_SECONDS = 30.0  # until the leaders of topics that are there answer …
MAKING_SECONDS = 90.0  # … and those of new ones: hundreds of partitions, on brokers that may have started just now
COMMIT_SECONDS = 1.0  # between two commits for the lag tools …
LAST_COMMIT_SECONDS = 2.0  # … and for the one at the end
_LATEST, _EARLIEST = -1, -2
_IDENTITY_LANE, _BOUNDS_LANE, _COMMIT_LANE = 1, 2, 3


class KafkaBus:
    """See `shared.bus.base.Bus`."""

    def __init__(self, cluster: Cluster, topics: Mapping[str, TopicIdentity], member: str) -> None:
        self._cluster, self._topics = cluster, dict(topics)
        counts = {topic: identity.partitions for topic, identity in topics.items()}
        self._reader = KafkaReader(cluster)
        self._appender = KafkaWriter(cluster.address, f"{member}/append", counts)
        self._publisher = KafkaWriter(cluster.address, f"{member}/publish", counts)
        self._replaced: dict[str, str] = {}
        self._uncommitted: dict[str, dict[tuple[str, int], int]] = {}
        self._tasks = [asyncio.create_task(self._watch_identities()), asyncio.create_task(self._commit_now_and_then())]

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        partitions: int,
        member: str,
        wake: Wake,
        topics: Sequence[str] = TOPICS,
        replication_factor: int | None = None,
    ) -> KafkaBus:
        """Connects and makes the topics that are missing; one that exists keeps its partitions.

        :param url: see `shared.bus.kafka_cluster.Address`
        :param wake: not needed here: a fetch that waits at a broker returns as soon as there is something
        :param replication_factor: default 3, or what the brokers allow
        :raises ConfigurationError: the URL is wrong, or the brokers refuse to make a topic
        :raises aiokafka.errors.KafkaConnectionError: no broker answers
        """
        cluster = await Cluster.connect(Address.parse(url), member)
        try:
            known = await cluster.identities(topics)
            if missing := [topic for topic in topics if topic not in known]:
                factor = replication_factor or min(3, cluster.broker_count)
                await make_topics(cluster.address, missing, partitions=partitions, replication_factor=factor)
                known = await await_topics(cluster, topics)
            await cluster.follow(topics)
            bus = cls(cluster, known, member)
        except BaseException:
            await cluster.close()
            raise
        try:
            await bus._await_leaders(MAKING_SECONDS if missing else STARTING_SECONDS)
        except TimeoutError:
            if missing:
                raise
            # Topics that were there: what has a leader goes on, the rest is retried and told by its readers.
            log.warning("bus.without_leaders", seconds=STARTING_SECONDS)
        return bus

    async def _await_leaders(self, seconds: float) -> None:
        """A new topic, which a neighbour may just have made, is shown before its leaders have taken up their work."""
        async with asyncio.timeout(seconds):
            for topic in self._topics:
                while True:
                    try:
                        await self.ends(topic)
                        break
                    except kafka_errors.KafkaError as error:
                        if not is_transient(error):
                            raise
                        await pause(0.05)

    @property
    def warnings(self) -> list[str]:
        """Where the replication cannot keep the promise that an answered event is never lost; for `readyz`."""
        return [
            f"bus topic {topic} has one replica: the loss of one broker's disk loses events"
            for topic, identity in self._topics.items()
            if identity.replicas < 2
        ]

    def epoch(self, topic: str) -> str:
        return self._topics[topic].epoch

    def partitions(self, topic: str) -> int:
        return self._topics[topic].partitions

    async def append(self, records: Sequence[Outgoing]) -> None:
        self._refuse_replaced({record.topic for record in records})
        await self._appender.write(records, abandon_if_cancelled=False)

    async def publish(self, records: Sequence[Outgoing]) -> None:
        self._refuse_replaced({record.topic for record in records})
        await self._publisher.write(records, abandon_if_cancelled=True)

    async def fetch(
        self, topic: str, positions: Mapping[int, int], *, limit: int, wait: float
    ) -> dict[int, list[Record]]:
        self._refuse_replaced([topic])
        return await self._reader.fetch(topic, positions, limit=limit, wait=wait)

    async def ends(self, topic: str) -> dict[int, int]:
        return await self._bounds(topic, _LATEST)

    async def beginnings(self, topic: str) -> dict[int, int]:
        return await self._bounds(topic, _EARLIEST)

    async def commit(self, group: str, topic: str, positions: Mapping[int, int]) -> None:
        """Remembered, and told to Kafka every second."""
        self._uncommitted.setdefault(group, {}).update({(topic, p): number for p, number in positions.items()})

    async def maintain(self, handled: Mapping[str, Mapping[int, int]]) -> None:
        """Nothing to do: Kafka drops old records by the topic's `retention.ms`."""

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reader.close()
        await asyncio.gather(self._appender.close(), self._publisher.close())
        try:
            async with asyncio.timeout(LAST_COMMIT_SECONDS):
                await self._commit_all()
        except TimeoutError:
            log.warning("bus.positions_not_committed", error="no broker answered in time")
        await self._cluster.close()

    # ── bounds ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _bounds(self, topic: str, which: int) -> dict[int, int]:
        self._refuse_replaced([topic])
        by_leader: dict[int, list[int]] = {}
        for partition in range(self.partitions(topic)):
            by_leader.setdefault(self._cluster.leader(topic, partition), []).append(partition)
        answers = await asyncio.gather(
            *(self._bounds_at(node, topic, partitions, which) for node, partitions in by_leader.items())
        )
        return {partition: number for answer in answers for partition, number in answer.items()}

    async def _bounds_at(self, node: int, topic: str, partitions: list[int], which: int) -> dict[int, int]:
        request = OffsetRequest(-1, 0, [(self._cluster.address.name(topic), [(p, which) for p in partitions])])
        try:
            response = await self._cluster.send(node, request, lane=_BOUNDS_LANE)
        except kafka_errors.KafkaError:
            self._cluster.look_again()
            raise
        bounds = {}
        for _name, answers in response.topics:
            for partition, code, _timestamp, number in answers:
                if code:
                    self._cluster.look_again()
                    raise kafka_errors.for_code(code)(f"{topic}/{partition}")
                bounds[partition] = number
        return bounds

    # ── identity ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _refuse_replaced(self, topics: Iterable[str]) -> None:
        for topic in topics:
            if topic in self._replaced:
                raise OutOfRange(
                    f"bus topic {topic} was made anew on Kafka: it is {self._replaced[topic]} now and was "
                    f"{self.epoch(topic)} when this process started"
                )

    async def _watch_identities(self) -> None:
        while True:
            await pause(LOOK_SECONDS)
            try:
                now = await self._cluster.identities(self._topics, lane=_IDENTITY_LANE)
            except Exception as error:
                log.warning("bus.identities_unknown", error=repr(error))
                continue
            for topic, identity in now.items():
                if identity.epoch != self.epoch(topic) and topic not in self._replaced:
                    self._replaced[topic] = identity.epoch
                    log.error("bus.topic_made_anew", topic=topic, now=identity.epoch, before=self.epoch(topic))

    # ── for people's lag tools ────────────────────────────────────────────────────────────────────────────────────
    async def _commit_now_and_then(self) -> None:
        while True:
            await pause(COMMIT_SECONDS)
            await self._commit_all()

    async def _commit_all(self) -> None:
        groups, self._uncommitted = self._uncommitted, {}
        for group, positions in groups.items():
            try:
                await self._commit_group(group, positions)
            except Exception as error:
                log.warning("bus.positions_not_committed", group=group, error=repr(error))
                self._uncommitted[group] = positions | self._uncommitted.get(group, {})

    async def _commit_group(self, group: str, positions: dict[tuple[str, int], int]) -> None:
        by_topic: dict[str, list[tuple[int, int, str]]] = {}
        for (topic, partition), number in positions.items():
            by_topic.setdefault(self._cluster.address.name(topic), []).append((partition, number, ""))
        node = await self._cluster.coordinator(group)
        request = OffsetCommitRequest(group, -1, "", -1, list(by_topic.items()))
        response = await self._cluster.send(node, request, lane=_COMMIT_LANE)
        for name, answers in response.topics:
            for partition, code in answers:
                if code:
                    raise kafka_errors.for_code(code)(f"{name}/{partition}")
