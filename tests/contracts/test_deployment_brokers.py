"""The health check of Kafka's containers: a question that a broker answers, asked by bash alone."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[2]


def services_of(path: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / path).read_text())["services"]


BROKERS = {
    "kafka": services_of("docker-compose.yml")["kafka"],
    **{name: services_of("deploy/kafka-three.yml")[name] for name in ("kafka-2", "kafka-3")},
}


def test_a_brokers_health_is_asked_without_a_java_machine() -> None:
    for broker in BROKERS.values():
        kind, shell, _, command = broker["healthcheck"]["test"]
        assert (kind, shell) == ("CMD", "bash") and ".sh" not in command
        assert broker["init"] is True, "Java as the first process reaps no check that was cut off"


def test_a_broker_that_answers_is_healthy_and_one_that_is_gone_is_not(kafka_url: str) -> None:
    command = BROKERS["kafka"]["healthcheck"]["test"][3].replace("$$", "$")
    broker = urlsplit(kafka_url)
    assert command.count("127.0.0.1/9092") == 1

    def status(port: int | None) -> int:
        asked = command.replace("127.0.0.1/9092", f"{broker.hostname}/{port}")
        return subprocess.run(["bash", "-c", asked], check=False, capture_output=True, timeout=10).returncode

    assert status(broker.port) == 0
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    assert status(port) != 0
