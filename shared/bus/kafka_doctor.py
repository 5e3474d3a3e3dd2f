"""Whether a Kafka cluster can keep the promise that an answered event is never lost. Looks, and makes nothing."""

from __future__ import annotations

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from shared.bus.kafka_cluster import Address, Cluster, TopicIdentity
from shared.events import TOPICS

MEMBER = "dripline-doctor"


async def look(url: str) -> list[str]:
    """One sentence for each thing that could be better.

    :raises ConfigurationError: the URL is wrong
    :raises aiokafka.errors.KafkaError: no broker answers
    """
    address = Address.parse(url)
    cluster = await Cluster.connect(address, MEMBER)
    try:
        brokers = cluster.broker_count
        known = await cluster.identities(TOPICS)
    finally:
        await cluster.close()
    least = await _least_in_sync(address, list(known)) if known else {}
    found = [] if brokers >= 3 else [f"the cluster has {brokers} broker(s); from three on none is missed when it dies"]
    return found + [sentence for topic in sorted(known) for sentence in judge(topic, known[topic], least.get(topic))]


def judge(topic: str, identity: TopicIdentity, least: int | None) -> list[str]:
    """What replication and min.insync.replicas of one bus topic mean for acks=all. Pure."""
    if identity.replicas < 2:
        return [f"bus topic {topic} has one replica: the loss of one broker's disk loses events"]
    if least is None:
        return []
    if least < 2:
        return [f"bus topic {topic} has min.insync.replicas={least}: acks=all may mean one broker; set it to 2"]
    if least >= identity.replicas:
        return [
            f"bus topic {topic} has min.insync.replicas={least} of {identity.replicas} replicas: without one broker nothing can "
            "be written; set it one lower"
        ]
    return []


async def _least_in_sync(address: Address, topics: list[str]) -> dict[str, int]:
    """By bus topic `min.insync.replicas`; nothing where we may not look."""
    by_name = {address.name(topic): topic for topic in topics}
    admin = AIOKafkaAdminClient(bootstrap_servers=list(address.brokers), client_id=MEMBER, **address.security)
    await admin.start()
    try:
        answers = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name, {"min.insync.replicas": None}) for name in by_name]
        )
    finally:
        await admin.close()
    found: dict[str, int] = {}
    for answer in answers:
        for code, _message, _kind, name, entries in answer.resources:
            for key, value, *_ in entries:
                if not code and key == "min.insync.replicas" and name in by_name:
                    found[by_name[name]] = int(value)
    return found
