"""Ordinary mistakes at the start end `dripline up` with one sentence that says what to mend, against real servers."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import asyncpg
import httpx
import pytest

from services.run import Server, run
from shared.embedded_postgres import EmbeddedPostgres
from shared.settings import load
from tests.support.databases import on_database


async def started(folder: Path, port: int = 0, **environment: str) -> str:
    """What `dripline up` says that cannot start."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services", "up", "--port", str(port), "--data", str(folder)),
        env={**os.environ, "LOG_FORMAT": "json", "PARTITIONS": "2", **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 1, said.decode()
    lines = [line for line in said.decode().splitlines() if not line.startswith("{")]  # logs
    assert len(lines) == 1, said.decode()
    return lines[0]


async def test_a_database_that_does_not_exist(postgres_server: EmbeddedPostgres, tmp_path: Path) -> None:
    said = await started(tmp_path, DATABASE_URL=on_database(postgres_server.url, "nowhere"))
    assert 'database "nowhere" does not exist' in said
    assert "DATABASE_URL" in said


async def test_a_user_that_the_database_does_not_know(postgres_server: EmbeddedPostgres, tmp_path: Path) -> None:
    url = postgres_server.url.replace("://", "://nobody-we-know:hunter2@", 1)
    said = await started(tmp_path, DATABASE_URL="postgresql://nobody-we-know:hunter2@" + url.rpartition("@")[2])
    assert said.startswith("The database does not let us in:")
    assert "hunter2" not in said


async def test_a_port_that_somebody_else_listens_on(database_url: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = await started(tmp_path, port, DATABASE_URL=database_url)
    assert said == (
        f"Port {port} on 127.0.0.1 cannot be used (Address already in use); stop what uses it, or choose another with --port."
    )


async def test_a_port_for_which_two_processes_start_at_once(database_url: str, tmp_path: Path) -> None:
    """Both may take it, as long as nobody listens; one may listen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings, over = load(services="ingest", port=port, partitions=2, data_dir=tmp_path), asyncio.Event()

    async def stay(_: Server) -> None:
        await over.wait()

    both = [asyncio.create_task(run(settings, database_url, ready=stay)) for _ in range(2)]
    try:
        [ended], [staying] = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        assert str(ended.exception()) == (
            f"Port {port} on 127.0.0.1 cannot be used (Address already in use); "
            "stop what uses it, or choose another with --port."
        )
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"http://127.0.0.1:{port}/livez", timeout=20)).status_code == 200
        assert not staying.done()
    finally:
        over.set()
        await asyncio.gather(*both, return_exceptions=True)


async def test_a_kafka_that_is_not_up(database_url: str, tmp_path: Path) -> None:
    said = await started(tmp_path, DATABASE_URL=database_url, BUS_URL="kafka://127.0.0.1:1")
    assert said.startswith("The bus cannot be reached (KafkaConnectionError")
    assert said.endswith("mend BUS_URL.")


async def test_a_log_table_in_a_database_that_nobody_migrated(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    said = await started(tmp_path, DATABASE_URL=database_url, BUS_URL=empty_database_url)
    assert said.startswith("The database of the bus has no log table; run `dripline migrate`")


async def test_a_bus_that_there_is_none_of(database_url: str, tmp_path: Path) -> None:
    said = await started(tmp_path, DATABASE_URL=database_url, BUS_URL="redis://cache:6379")
    assert said.startswith("Wrong setting. BUS_URL: must begin with")


async def test_a_mistake_of_our_own_keeps_its_traceback() -> None:
    from services.mistakes import mistakes_in_one_sentence

    with pytest.raises(asyncpg.UndefinedTableError), mistakes_in_one_sentence():
        raise asyncpg.UndefinedTableError("relation does not exist")
