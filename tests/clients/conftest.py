"""One deployment, `dripline up` with all services and the log table, for all clients and their stories."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.embedded_postgres import EmbeddedPostgres
from tests.clients.line import Line
from tests.clients.programs import REQUIRED
from tests.faults.deployment import ONE_PROCESS, Deployment
from tests.support import databases
from tests.support.shop import SERVICES, Shop
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until


@pytest.fixture(scope="session")
def letters_to_nobody() -> Iterator[SmtpPeer]:
    with SmtpPeer() as peer:
        yield peer


@pytest.fixture(scope="session")
async def deployment(postgres_server: EmbeddedPostgres, letters_to_nobody: SmtpPeer) -> AsyncIterator[Deployment]:
    folder = Path(tempfile.mkdtemp(prefix="dripline-test-clients-"))
    async with databases.cloned(postgres_server.url, "template0") as database_url:
        made = Deployment(
            folder, database_url=database_url, bus_url=None, smtp_url=letters_to_nobody.url, layout=ONE_PROCESS
        )
        # Browsers are told where to send by the settings answer; without this it names the host that they asked.
        made.environment["PUBLIC_URL"] = ""
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
async def shop(deployment: Deployment, letters_to_nobody: SmtpPeer) -> AsyncIterator[Shop]:
    urls = {service: deployment.of(service)[0].url for service in SERVICES}
    async with Shop(urls, deployment.credentials, letters_to_nobody) as made:
        yield made


@pytest.fixture(scope="session")
def line(deployment: Deployment) -> Iterator[Line]:
    """Between the clients and ingest. Each test begins its own ledger."""
    with Line(deployment.of("ingest")[0].url) as made:
        yield made


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skipped client is said loudly, not among other lines."""
    reasons = {
        report.longrepr[2].removeprefix("Skipped: CLIENTS: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and "CLIENTS: " in report.longrepr[2]
    }
    for reason in sorted(reasons):
        terminalreporter.write_sep("!", "CLIENT TESTS SKIPPED", yellow=True, bold=True)
        terminalreporter.write_line(f"{reason} With {REQUIRED}=1 this fails.", yellow=True)
