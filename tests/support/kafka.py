"""A real Kafka for the tests, or a loud skip where Java or Maven is missing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from scripts.kafka import Kafka, KafkaUnavailable, fetch

FIXTURES = frozenset({"kafka", "kafka_url", "own_kafka"})
REQUIRED = "DRIPLINE_REQUIRE_KAFKA"


@cache
def jars_or_reason() -> Path | str:
    """Kafka's jars, or why there are none. Maven is asked once a session."""
    try:
        return fetch()
    except KafkaUnavailable as reason:
        return str(reason)


@contextmanager
def temporary_kafka(under: Sequence[str] = ()) -> Iterator[Kafka]:
    """One node on free ports, in a folder that is gone at the end. Skips, or fails if Kafka is required.

    :param under: what the node is started under, such as `taskset -c 1`
    """
    jars = jars_or_reason()
    if isinstance(jars, str):
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{jars} {REQUIRED}=1 forbids to skip.", pytrace=False)
        pytest.skip(f"KAFKA: {jars}")
    folder = Path(tempfile.mkdtemp(prefix="dripline-test-kafka-"))
    try:
        with Kafka(jars, folder, under=under) as kafka:
            yield kafka
    finally:
        shutil.rmtree(folder, ignore_errors=True)
