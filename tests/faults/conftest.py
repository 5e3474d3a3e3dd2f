"""A deployment on either bus, made of real processes, with an SMTP server that keeps its own ledger."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from scripts.kafka import Kafka
from shared.embedded_postgres import EmbeddedPostgres
from tests.faults.deployment import Deployment
from tests.support.smtp_peer import SmtpPeer

BOTH = pytest.mark.parametrize("kind", ["postgres", "kafka"])
KILLS = int(os.environ.get("DRIPLINE_FAULT_KILLS", "3"))
"""Kills a bus; 10 show more, 3 fit into CI."""
SEED = int(os.environ.get("DRIPLINE_FAULT_SEED", "1"))
_prefixes = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The processes share compiled modules, outside the work tree: where Python is told to write none, each start would
    compile everything again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        if "PYTHONPYCACHEPREFIX" not in os.environ:
            patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture
def bus_url(kind: str, request: pytest.FixtureRequest) -> str | None:
    """None: the log table in the database."""
    if kind == "postgres":
        return None
    kafka: Kafka = request.getfixturevalue("kafka")
    return f"{kafka.url}/faults{next(_prefixes)}"


@pytest.fixture
def folder() -> Iterator[Path]:
    """For logs and data of the processes."""
    made = Path(tempfile.mkdtemp(prefix="dripline-test-faults-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def deploy(own_postgres: EmbeddedPostgres, smtp_peer: SmtpPeer, folder: Path) -> Iterator[Callable[..., Deployment]]:
    """`deploy(layout, bus_url)`: not started yet; whatever still runs at the end is killed."""
    made: list[Deployment] = []

    def make(layout: Sequence[Sequence[str]], bus_url: str | None) -> Deployment:
        made.append(
            Deployment(folder, database_url=own_postgres.url, bus_url=bus_url, smtp_url=smtp_peer.url, layout=layout)
        )
        return made[-1]

    yield make
    for deployment in made:
        for process in deployment.processes:
            if process.is_running:
                process.kill()
