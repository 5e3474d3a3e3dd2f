"""The stories run against real processes: all services in one or each in its own, on either bus.

One deployment for each of the four combinations; all stories of a combination are told to it before the next is started.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from scripts.kafka import Kafka
from services.dispatch.cli import apply_templates
from services.rules_files import SHIPPED
from shared.embedded_postgres import EmbeddedPostgres
from tests.e2e import rules
from tests.faults.deployment import FOUR_PROCESSES, ONE_PROCESS, Deployment
from tests.support import databases
from tests.support.shop import SERVICES, Shop
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

LAYOUTS = {"one process": ONE_PROCESS, "four processes": FOUR_PROCESSES}
_prefixes = itertools.count(1)


@pytest.fixture(scope="session", params=["log table", "kafka"])
def bus(request: pytest.FixtureRequest) -> Kafka | None:
    """None: the log table in the database."""
    return None if request.param == "log table" else request.getfixturevalue("kafka")


@pytest.fixture(scope="session", params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> tuple[tuple[str, ...], ...]:
    """Which services each process runs."""
    return LAYOUTS[request.param]


@pytest.fixture(scope="session")
def letter_box(bus: Kafka | None, layout: tuple[tuple[str, ...], ...]) -> Iterator[SmtpPeer]:
    """Where the letters of one deployment arrive."""
    with SmtpPeer() as peer:
        yield peer


@pytest.fixture(scope="session")
async def deployment(
    postgres_server: EmbeddedPostgres, letter_box: SmtpPeer, bus: Kafka | None, layout: tuple[tuple[str, ...], ...]
) -> AsyncIterator[Deployment]:
    """Processes over an empty database, started at the same moment; they end by themselves when they are told to."""
    folder = Path(tempfile.mkdtemp(prefix="dripline-test-stories-"))
    bus_url = f"{bus.url}/stories{next(_prefixes)}" if bus else None
    async with databases.cloned(postgres_server.url, "template0") as database_url:
        made = Deployment(folder, database_url=database_url, bus_url=bus_url, smtp_url=letter_box.url, layout=layout)
        try:
            await made.start()
            await until((folder / "data" / "credentials.json").exists, what="the first start wrote its credentials")
            yield made
            made.stop()
        finally:
            for process in made.processes:
                if process.is_running:
                    process.kill()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
async def shop(deployment: Deployment, letter_box: SmtpPeer) -> AsyncIterator[Shop]:
    """The shop in front of the deployment, with the shipped templates and the rules of the stories."""
    urls = {service: deployment.of(service)[0].url for service in SERVICES}
    async with Shop(urls, deployment.credentials, letter_box) as made:
        await asyncio.to_thread(lambda: list(apply_templates(SHIPPED, urls["dispatch"], deployment.api_key)))
        await made.post("/v1/templates", rules.ORDER_READY_TEMPLATE)
        await made.activate(*rules.ALL)
        yield made
