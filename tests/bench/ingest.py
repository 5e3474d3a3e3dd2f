"""One event a request, answered after the durable write on Kafka, against the plain way (`plain.py`).

The server has one core, load and broker have the other. Counted at the far end: the records in the bus topic.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.bench.servers import LOAD_CORE, SERVER_CORE, dripline, free_port, on_core, until_answers
from tests.support.kafka import temporary_kafka

SECONDS, CONNECTIONS, ROUNDS, PARTITIONS = 8, 64, 3, 8


@contextmanager
def plain(bootstrap: str):
    """The plain server on one core."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "tests.bench.plain:app",
        "--port",
        str(port),
        "--log-level",
        "warning",
        "--no-access-log",
    ]
    process = subprocess.Popen(on_core(SERVER_CORE, command), env={**os.environ, "KAFKA": bootstrap})
    try:
        until_answers(f"http://127.0.0.1:{port}/docs", process)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def load(port: int, key: str, seed: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "tests.bench.load",
        "127.0.0.1",
        str(port),
        key,
        str(CONNECTIONS),
        str(SECONDS),
        seed,
    ]
    return json.loads(subprocess.run(on_core(LOAD_CORE, command), capture_output=True, check=True, text=True).stdout)


async def records_in(bootstrap: str, topic: str) -> int:
    """How many records the topic has: the far end."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in await _partitions(consumer, topic)]
        ends = await consumer.end_offsets(partitions)
        return sum(ends.values())
    finally:
        await consumer.stop()


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> list[int]:
    await consumer._client.force_metadata_update()
    return sorted(consumer.partitions_for_topic(topic) or ())


async def _make_plain_topic(bootstrap: str) -> None:
    """With as many partitions as Dripline's."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic("plain", PARTITIONS, 1)])
    finally:
        await admin.close()


async def _dripline_topic(bootstrap: str) -> str:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        return next(
            topic for topic in sorted(await consumer.topics()) if topic.endswith("events") and "profile" not in topic
        )
    finally:
        await consumer.stop()


def measure() -> dict[str, Any]:
    """Interleaved rounds; the medians, and the ratio within each round."""
    rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
    with temporary_kafka(on_core(LOAD_CORE, [])) as kafka, TemporaryDirectory(prefix="dripline-bench-") as folder:
        os.chmod(folder, 0o755)
        bootstrap = kafka.url.removeprefix("kafka://")
        settings = {"BUS_URL": kafka.url, "SERVICES": "ingest", "PARTITIONS": str(PARTITIONS)}
        settings["PUBLIC_EVENTS_PER_SECOND"] = "1000000"  # counted as ever, and not what is measured
        asyncio.run(_make_plain_topic(bootstrap))
        with plain(bootstrap) as plain_port, dripline(Path(folder), settings, core=SERVER_CORE) as server:
            key = server.credentials["site_write_key"]
            topic = asyncio.run(_dripline_topic(bootstrap))
            load(plain_port, "warm", "warm"), load(server.port, key, "warm")
            for number in range(ROUNDS):
                seed = f"r{number}"
                simple = load(plain_port, "x", seed)
                before = asyncio.run(records_in(bootstrap, topic))
                ours = load(server.port, key, seed)
                ours["arrived"] = asyncio.run(records_in(bootstrap, topic)) - before
                rounds.append((simple, ours))
    return {
        "plain_per_second": median(simple["per_second"] for simple, _ in rounds),
        "dripline_per_second": median(ours["per_second"] for _, ours in rounds),
        "ratio": round(median(ours["per_second"] / simple["per_second"] for simple, ours in rounds), 2),
        "dripline_p99_ms": median(ours["p99_ms"] for _, ours in rounds),
        "plain_p99_ms": median(simple["p99_ms"] for simple, _ in rounds),
        "answered_200": [ours["answers"].get("200", 0) for _, ours in rounds],
        "arrived_at_the_far_end": [ours["arrived"] for _, ours in rounds],
    }
