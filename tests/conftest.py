"""Fixtures for all tests. Nothing is started before a test asks for it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from scripts.kafka import Kafka
from shared.embedded_postgres import EmbeddedPostgres
from tests.support import databases, kafka
from tests.support.smtp_peer import SmtpPeer


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The processes that tests start share compiled modules, outside the work tree: where Python is told to write none,
    each of some hundred starts would compile everything again, for longer than it then runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """One PostgreSQL server for the session, over TCP. Tests that stop or kill it take `own_postgres`."""
    # The tests kill processes, never the machine: without fsync they are faster and as strict.
    with databases.temporary_server(in_memory=True, fsync="off", max_wal_size="256MB") as server:
        yield server


@pytest.fixture(scope="session")
async def migrated_template(postgres_server: EmbeddedPostgres) -> str:
    """Name of the database that holds the newest tables and no rows."""
    return await databases.make_template(postgres_server.url)


@pytest.fixture
async def database_url(postgres_server: EmbeddedPostgres, migrated_template: str) -> AsyncIterator[str]:
    """A migrated database for this test alone."""
    async with databases.cloned(postgres_server.url, migrated_template) as url:
        yield url


@pytest.fixture
async def empty_database_url(postgres_server: EmbeddedPostgres) -> AsyncIterator[str]:
    """A database without tables for this test alone."""
    async with databases.cloned(postgres_server.url, "template0") as url:
        yield url


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server for this test alone, to stop, kill and start; empty. Its port stays the same."""
    with databases.temporary_server() as server:
        yield server


@pytest.fixture(scope="session", name="kafka")
def shared_kafka() -> Iterator[Kafka]:
    """One Kafka node for the session: name bus topics apart. Tests that stop or kill it take `own_kafka`."""
    with kafka.temporary_kafka() as node:
        yield node


@pytest.fixture(scope="session")
def kafka_url(kafka: Kafka) -> str:
    """`kafka://host:port` of the session's node."""
    return kafka.url


@pytest.fixture
def own_kafka() -> Iterator[Kafka]:
    """A Kafka node for this test alone, to stop, kill, pause and start."""
    with kafka.temporary_kafka() as node:
        yield node


@pytest.fixture
def smtp_peer() -> Iterator[SmtpPeer]:
    """An SMTP server that is a process of its own, with its own ledger."""
    with SmtpPeer() as peer:
        yield peer


# What takes longest begins first, so that no worker is left alone with it in the end.
LONGEST_FIRST = ("tests/faults", "tests/e2e", "tests/clients", "tests/service", "tests/contracts", "tests/unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever takes a Kafka fixture is marked so: `-m kafka` and `-m "not kafka"` are complete."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if kafka.FIXTURES & set(getattr(item, "fixturenames", ())) or "kafka" in parameters.values():
            item.add_marker(pytest.mark.kafka)
    items.sort(key=_place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Called when tests run in several workers."""
    from tests.support.workers import ByFixtures

    return ByFixtures(config, log)


class FailuresAtOnce:
    """Says what failed when it fails: a run that is cut off never comes to its summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = f"\n  {crash.path}:{crash.lineno}: {crash.message[:1000]}" if crash is not None else ""
            self._terminal.write_line(f"\nFAILED ({report.when}) {report.nodeid}{why}")


@pytest.hookimpl(trylast=True)  # the terminal's own reporter is there by then
def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell without job control has what it runs in the background ignore Ctrl-C, and so would the processes that
        # tests start and press it in.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(terminal))


def _place(item: pytest.Item) -> int:
    return next((n for n, name in enumerate(LONGEST_FIRST) if f"/{name}/" in item.path.as_posix()), -1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skipped Kafka or OpenSMTPD is said loudly, not among other lines."""
    advice = {
        "KAFKA": "With Java and Maven at hand, run `make test-kafka`.",
        "OPENSMTPD": "On Debian as root, or with uidmap, they run by themselves; DRIPLINE_REQUIRE_OPENSMTPD=1 insists.",
    }
    skipped = [
        report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)
    ]
    for what, mend in advice.items():
        for reason in sorted({text.partition(f"{what}: ")[2] for text in skipped if f"{what}: " in text}):
            terminalreporter.write_sep("!", f"{what} TESTS SKIPPED", yellow=True, bold=True)
            terminalreporter.write_line(f"{reason} {mend}", yellow=True)
    unchecked = {
        report.longrepr[2].partition("DEPLOY: ")[2]
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and "DEPLOY: " in report.longrepr[2]
    }
    for reason in sorted(unchecked):
        terminalreporter.write_sep("!", "DEPLOYMENT NOT CHECKED WHOLLY", yellow=True, bold=True)
        terminalreporter.write_line(f"{reason} Get it by `make deploy-tools`.", yellow=True)
