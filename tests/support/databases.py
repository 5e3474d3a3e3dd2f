"""A real PostgreSQL for the tests: the embedded binaries over TCP, one migrated template, a clone of it a test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from shared.embedded_postgres import EmbeddedPostgres

TEMPLATE = "dripline_template"
MEMORY = Path("/dev/shm")
ROOM = 3 * 2**30  # bytes that must be free in memory before servers are kept there
_numbers = itertools.count(1)
_in_memory: set[str] = set()


@contextmanager
def temporary_server(*, in_memory: bool = False, **settings: str) -> Iterator[EmbeddedPostgres]:
    """A server of one's own on a free port; what it stored is gone at the end.

    :param in_memory: keeps its files in memory where the machine has such a folder with room: a clone of the template takes
        a twentieth of the time
    """
    kept_in = MEMORY if in_memory and _has_room(MEMORY) else None
    folder = Path(tempfile.mkdtemp(prefix="dripline-test-pg-", dir=kept_in))
    folder.chmod(0o755)  # the server is another user when the tests run as root
    try:
        with EmbeddedPostgres(folder, port=0, settings=settings) as server:
            if kept_in is not None:
                _in_memory.add(urlsplit(server.url).netloc)
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _has_room(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK) and shutil.disk_usage(folder).free > ROOM


def on_database(url: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def make_template(server_url: str) -> str:
    """A database with every migration applied, from which tests clone theirs. Returns its name."""
    from services.migrate import migrate  # imported here: unit tests need no service

    await _execute(server_url, f"CREATE DATABASE {TEMPLATE}")
    await migrate(on_database(server_url, TEMPLATE))
    await _execute(server_url, f"ALTER DATABASE {TEMPLATE} IS_TEMPLATE true ALLOW_CONNECTIONS false")
    return TEMPLATE


@asynccontextmanager
async def cloned(server_url: str, template: str) -> AsyncIterator[str]:
    """The URL of a new database like `template`; dropped at the end, whoever is still connected."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    # For forty tables WAL_LOG takes 54–138 ms on a quiet machine's disk and FILE_COPY 1–3 s; in memory 200 and 25 ms.
    strategy = "FILE_COPY" if urlsplit(server_url).netloc in _in_memory else "WAL_LOG"
    await _execute(server_url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {strategy}")
    try:
        yield on_database(server_url, name)
    finally:
        await _execute(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
