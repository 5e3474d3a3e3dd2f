"""The database, the bus or the mail server dies under load and comes back: everything goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from scripts.kafka import Kafka
from shared.embedded_postgres import EmbeddedPostgres
from tests.faults.books import CATCHING_UP, Observer, assert_all_agree, catch_up
from tests.faults.client import Client
from tests.faults.conftest import BOTH, SEED
from tests.faults.deployment import ONE_PROCESS, Deployment
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

pytestmark = pytest.mark.timeout(300)
VISITORS_A_SECOND = 12
# Seconds that letters may be late once the mail server is back: what it did not take is tried again after 10 s; the others
# wait out the pause of its adapter (5 s, then 15 s), and then for room, longer each time, until an exchange finds it there.
AFTER_ITS_PAUSES = 60.0


class Mortal(Protocol):
    def kill(self) -> None: ...

    def start(self) -> None: ...


async def survives(
    deployment: Deployment, smtp_peer: SmtpPeer, log: Path, victim: Mortal, caught_up_within: float = CATCHING_UP
) -> None:
    """The victim is killed while visits are under way, is missed by somebody, and comes back."""
    await deployment.set_up()
    await deployment.start()
    urls = [process.url for process in deployment.of("ingest")]
    client = Client(urls, deployment.write_key, log, rate=VISITORS_A_SECOND, seed=SEED)
    client.start()
    await until(lambda: len(smtp_peer.letters()) >= 5, limit=30, what="letters go out")
    await until(lambda: client.unanswered > 0, limit=10, what="a POST is under way", every=0)
    await asyncio.to_thread(victim.kill)
    await asyncio.sleep(3)  # the length of the outage
    victim.start()
    after = len(client.visitors)
    await until(lambda: len(client.visitors) >= after + 3 * VISITORS_A_SECOND, limit=30, what="visitors come after it")
    await client.finish()
    async with Observer.of(deployment) as observer:
        await catch_up(observer, client, caught_up_within)
        await assert_all_agree(deployment, observer, client, smtp_peer)
    assert all(process.starts == 1 and process.is_running for process in deployment.processes)
    deployment.stop()


@BOTH
async def test_postgresql_killed_and_started_under_load(
    deploy: Callable[..., Deployment],
    bus_url: str | None,
    own_postgres: EmbeddedPostgres,
    smtp_peer: SmtpPeer,
    folder: Path,
) -> None:
    deployment = deploy(ONE_PROCESS, bus_url)
    await survives(deployment, smtp_peer, folder / "answers.jsonl", own_postgres)


async def test_kafka_killed_and_started_under_load(
    deploy: Callable[..., Deployment], own_kafka: Kafka, smtp_peer: SmtpPeer, folder: Path
) -> None:
    deployment = deploy(ONE_PROCESS, own_kafka.url)
    await survives(deployment, smtp_peer, folder / "answers.jsonl", own_kafka)


@pytest.mark.parametrize("kind", ["postgres"])
async def test_the_mail_server_killed_and_started_under_load(
    deploy: Callable[..., Deployment], bus_url: str | None, smtp_peer: SmtpPeer, folder: Path
) -> None:
    """Letters whose exchange it cut are unknown and never tried again; all others arrive once."""
    deployment = deploy(ONE_PROCESS, bus_url)
    await survives(deployment, smtp_peer, folder / "answers.jsonl", smtp_peer, AFTER_ITS_PAUSES + CATCHING_UP)
