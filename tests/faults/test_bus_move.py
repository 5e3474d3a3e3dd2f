"""The bus is moved while it holds much that nobody has handled: nothing is lost, nothing happens twice, the books balance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from scripts.kafka import Kafka
from services.migrate import migrate
from shared.embedded_postgres import EmbeddedPostgres
from tests.faults.books import Observer, assert_all_agree, catch_up
from tests.faults.client import Client
from tests.faults.conftest import SEED
from tests.faults.deployment import ONE_PROCESS, PARTITIONS, Deployment
from tests.support.databases import on_database
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

pytestmark = pytest.mark.timeout(300)
VISITORS_A_SECOND = 3


@asynccontextmanager
async def another_log_table(server: EmbeddedPostgres) -> AsyncIterator[str]:
    connection = await asyncpg.connect(server.url)
    await connection.execute("CREATE DATABASE another_bus TEMPLATE template0")
    await connection.close()
    url = on_database(server.url, "another_bus")
    await migrate(url)
    yield url


async def test_from_one_log_table_to_another(
    deploy: Callable[..., Deployment], own_postgres: EmbeddedPostgres, smtp_peer: SmtpPeer, folder: Path
) -> None:
    async with another_log_table(own_postgres) as target:
        await moved_under_load(deploy(ONE_PROCESS, None), smtp_peer, folder, target, partitions=12)


async def test_from_the_log_table_to_kafka_and_back(
    deploy: Callable[..., Deployment], own_postgres: EmbeddedPostgres, smtp_peer: SmtpPeer, folder: Path, kafka: Kafka
) -> None:
    await moved_under_load(deploy(ONE_PROCESS, None), smtp_peer, folder, f"{kafka.url}/moved", and_back=True)


async def moved_under_load(
    deployment: Deployment,
    smtp_peer: SmtpPeer,
    folder: Path,
    target: str,
    *,
    and_back: bool = False,
    partitions: int = PARTITIONS,
) -> None:
    await deployment.set_up()
    [process] = deployment.processes
    home = deployment.bus_url
    client = Client([process.url], deployment.write_key, folder / "answers.jsonl", rate=VISITORS_A_SECOND, seed=SEED)
    client.start()
    await until(lambda: len(smtp_peer.letters()) >= 3, limit=40, what="letters go out")
    refused = await asyncio.to_thread(deployment.tried, "bus", "move", "database", target)
    assert refused.sentence.startswith("dripline bus move needs the services stopped; connected is ")
    process.kill()  # in the middle of everything
    await switched(deployment, home, target, partitions)
    if and_back:
        await until(lambda: len(client.visitors) % 5 == 0, limit=10, what="some more came")
        process.kill()
        await switched(deployment, target, home, partitions)
    after = len(client.visitors)
    await until(lambda: len(client.visitors) >= after + 3, limit=30, what="visitors come on the new bus")
    await client.finish()
    async with Observer.of(deployment) as observer:
        await catch_up(observer, client)
        await assert_all_agree(deployment, observer, client, smtp_peer)
    deployment.stop()


async def switched(deployment: Deployment, source: str, target: str, partitions: int) -> None:
    """The operator's steps: move, set BUS_URL, start. The new bus may have another number of partitions."""
    [process] = deployment.processes
    deployment.environment["PARTITIONS"] = str(partitions)
    names = ["database" if bus == deployment.database_url else bus for bus in (source, target)]
    moved = await asyncio.to_thread(deployment.command, "bus", "move", *names, "--limit", "60")
    assert " records were handled in " in moved
    if source == deployment.database_url:
        again = await asyncio.to_thread(deployment.command, "bus", "move", *names)
        assert "\n0 records were handled in 0.0 s" in again, f"the first move left some: {moved}"
    connection = await asyncpg.connect(deployment.database_url)
    try:
        left = await connection.fetchval(
            "SELECT (SELECT count(*) FROM profile.outbox) + (SELECT count(*) FROM triggers.outbox)"
            " + (SELECT count(*) FROM dispatch.outbox)"
        )
    finally:
        await connection.close()
    assert left == 0
    deployment.bus_url = deployment.environment["BUS_URL"] = target
    process.start()
    await process.ready()
