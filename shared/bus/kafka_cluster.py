"""The Kafka cluster as the bus sees it: where it is, which topics it has, and who they are.

Built on aiokafka's client (connections, metadata, wire types). Topics are recognised by the id that Kafka gives them,
so that one made anew under the same name is never taken for the old one; aiokafka asks for metadata without that id,
so the request with it (version 12, Kafka 3.1 and later) is written out here.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import aiokafka.errors as kafka_errors
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from shared.clock import pause
from shared.errors import ConfigurationError

REQUEST_TIMEOUT_SECONDS = 10.0
QUIET_SECONDS = 10.0  # between two log lines of one kind
MAX_RECORD_BYTES = 4 << 20  # key, value and headers together
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_TOPIC_CONFIG = {
    # Room for the largest record and what its batch adds.
    "max.message.bytes": str(MAX_RECORD_BYTES + 64 * 1024),
    "unclean.leader.election.enable": "false",
    "cleanup.policy": "delete",
}


class _NowAndThen(logging.Filter):
    """aiokafka logs each failed connection, some hundred a second while a broker is away: one line of a kind is enough.
    The failures themselves reach us as exceptions."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if time.monotonic() - self._last.get(str(record.msg), -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        self._last[str(record.msg)] = time.monotonic()
        return True


_now_and_then = _NowAndThen()
for _name in ("aiokafka", "aiokafka.conn", "aiokafka.cluster", "aiokafka.producer.sender"):
    logging.getLogger(_name).addFilter(_now_and_then)


@dataclass(frozen=True)
class Address:
    """Where the brokers are and how to speak to them, from a URL.

    `kafka://host:port,host:port/prefix` in plain text, `kafkas://…` over TLS, with `user:password@` by SASL
    (`?mechanism=SCRAM-SHA-512`, default PLAIN). With a prefix every topic is called `prefix.topic`, so that several
    deployments can share one cluster.
    """

    brokers: tuple[str, ...]
    prefix: str
    security: Mapping[str, Any]

    @classmethod
    def parse(cls, url: str) -> Address:
        """:raises ConfigurationError: when it is not such a URL"""
        parts = urlsplit(url)
        if parts.scheme not in ("kafka", "kafkas") or not parts.netloc:
            raise ConfigurationError("BUS_URL must look like kafka://host:9092.")
        login, _, hosts = parts.netloc.rpartition("@")
        security: dict[str, Any] = {"security_protocol": "PLAINTEXT"}
        if parts.scheme == "kafkas":
            security = {"security_protocol": "SSL", "ssl_context": ssl.create_default_context()}
        if login:
            user, _, password = login.partition(":")
            mechanism = parse_qs(parts.query).get("mechanism", ["PLAIN"])[0].upper()
            if mechanism not in _MECHANISMS:
                raise ConfigurationError(f"BUS_URL: mechanism must be one of {', '.join(_MECHANISMS)}.")
            security["security_protocol"] = "SASL_SSL" if parts.scheme == "kafkas" else "SASL_PLAINTEXT"
            security |= {
                "sasl_mechanism": mechanism,
                "sasl_plain_username": unquote(user),
                "sasl_plain_password": unquote(password),
            }
        return cls(tuple(hosts.split(",")), parts.path.strip("/"), security)

    def name(self, topic: str) -> str:
        """What Kafka calls a bus topic."""
        return f"{self.prefix}.{topic}" if self.prefix else topic


@dataclass(frozen=True)
class TopicIdentity:
    """A topic as the cluster knows it now; `epoch` names cluster and topic for ever."""

    epoch: str
    partitions: int
    replicas: int


class Cluster:
    """A shared client. Brokers that come back are found again by themselves; requests meanwhile raise."""

    def __init__(self, address: Address, client_id: str) -> None:
        self.address = address
        self._client = AIOKafkaClient(
            bootstrap_servers=list(address.brokers),
            client_id=client_id,
            request_timeout_ms=int(REQUEST_TIMEOUT_SECONDS * 1000),
            metadata_max_age_ms=30_000,
            **address.security,
        )

    @classmethod
    async def connect(cls, address: Address, client_id: str) -> Cluster:
        """:raises aiokafka.errors.KafkaConnectionError: when no broker answers"""
        cluster = cls(address, client_id)
        try:
            await cluster._client.bootstrap()
        except BaseException:
            await cluster.close()
            raise
        return cluster

    async def follow(self, topics: Iterable[str]) -> None:
        """Keeps the leaders of these topics known."""
        await self._client.set_topics([self.address.name(topic) for topic in topics])

    async def send(self, node: int, request: Request[Any], *, lane: int) -> Any:
        """One request. Brokers answer each connection in order: whatever may wait there goes by a `lane` of its own."""
        return await self._client.send(node, request, group=lane)

    def leader(self, topic: str, partition: int) -> int:
        """:raises LeaderNotAvailableError: while the partition has none"""
        name = self.address.name(topic)
        node = self._client.cluster.leader_for_partition(TopicPartition(name, partition))
        if node is None or node == -1:
            self.look_again()
            raise kafka_errors.LeaderNotAvailableError(f"partition {partition} of bus topic {topic} has no leader")
        return int(node)

    def look_again(self) -> None:
        """Something does not fit: the leaders are read again, in the background."""
        self._client.force_metadata_update()

    async def coordinator(self, group: str) -> int:
        """The broker that keeps the offsets of a group."""
        return int(await self._client.coordinator_lookup(0, group))

    async def identities(self, topics: Iterable[str], *, lane: int = 0) -> dict[str, TopicIdentity]:
        """Those of the topics that exist."""
        by_name = {self.address.name(topic): topic for topic in topics}
        node = self._client.get_random_node()
        response = await self.send(node, _MetadataRequest(list(by_name)), lane=lane)
        found = {}
        for error, name, topic_id, _internal, partitions, _operations, _tags in response.topics:
            if error == kafka_errors.UnknownTopicOrPartitionError.errno:
                continue
            if error:
                raise kafka_errors.for_code(error)(name)
            epoch = f"kafka:{response.cluster_id}:{topic_id}"
            replicas = min(len(replicas) for _, _, _, _, replicas, _, _, _ in partitions)
            found[by_name[name]] = TopicIdentity(epoch, len(partitions), replicas)
        return found

    @property
    def broker_count(self) -> int:
        return len(self._client.cluster.brokers())

    async def close(self) -> None:
        await self._client.close()


async def make_topics(
    address: Address, missing: Iterable[str], *, partitions: int, replication_factor: int, timeout: float = 30.0
) -> None:
    """Makes topics that survive the loss of a broker where there are three; one that exists meanwhile is left as it is.

    :raises ConfigurationError: when the brokers refuse
    """
    config = {**_TOPIC_CONFIG, "min.insync.replicas": str(max(1, replication_factor - 1))}
    topics = [NewTopic(address.name(topic), partitions, replication_factor, topic_configs=config) for topic in missing]
    admin = AIOKafkaAdminClient(bootstrap_servers=list(address.brokers), **address.security)
    try:
        await admin.start()
        response = await admin.create_topics(topics, timeout_ms=int(timeout * 1000))
    finally:
        await admin.close()
    for name, code, reason in response.topic_errors:
        if code and code != kafka_errors.TopicAlreadyExistsError.errno:
            error = kafka_errors.for_code(code)
            if error.retriable:
                raise error(reason)
            raise ConfigurationError(f"Kafka refuses to make the topic {name}: {reason or error.description}.")


async def await_topics(cluster: Cluster, topics: Iterable[str], *, timeout: float = 30.0) -> dict[str, TopicIdentity]:
    """The identities of all the topics, once every broker that is asked knows them.

    :raises ConfigurationError: when they do not appear in time
    """
    wanted = list(topics)
    try:
        async with asyncio.timeout(timeout):
            while len(found := await cluster.identities(wanted)) < len(wanted):
                await pause(0.1)
    except TimeoutError:
        raise ConfigurationError(
            f"Kafka does not show the bus topics after {timeout:.0f} s; look into the brokers' logs."
        ) from None
    return found


class _Uuid(AbstractType[str]):
    """16 bytes, written as Kafka's tools write them: base64 for URLs, without padding."""

    @classmethod
    def encode(cls, value: str) -> bytes:
        return base64.urlsafe_b64decode(value + "==")

    @classmethod
    def decode(cls, data: BytesIO) -> str:
        return base64.urlsafe_b64encode(data.read(16)).decode().rstrip("=")


_NO_TOPIC_ID = "A" * 22


class _MetadataResponse(Response):
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataRequestV12(RequestStruct):
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataRequestV12]):
    API_KEY = 3

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[_MetadataRequestV12]) -> _MetadataRequestV12:
        return request_struct_class([(_NO_TOPIC_ID, name, {}) for name in self._names], False, False, {})
