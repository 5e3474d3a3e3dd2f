"""The embedded server lives exactly as long as its parent, keeps its rows, and says in one sentence why it cannot."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from shared.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError, running_url
from tests.support.wait import until_blocking

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import asyncio, sys, time
from pathlib import Path
import asyncpg
from shared.embedded_postgres import EmbeddedPostgres

async def write(url):
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE IF NOT EXISTS note (text text)")
    await connection.execute("INSERT INTO note VALUES ('kept')")
    await connection.close()

server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
asyncio.run(write(server.url))
print(server.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder that every user may enter; pytest's own are closed to the server when the tests run as root."""
    path = Path(tempfile.mkdtemp(prefix="dripline-test-"))
    path.chmod(0o755)
    yield path / "data"
    shutil.rmtree(path, ignore_errors=True)


async def fetch(server: EmbeddedPostgres, query: str) -> object:
    connection = await asyncpg.connect(server.url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.fixture
def parent_process(folder: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], psutil.Process]]]:
    """Starts another process that runs a server on `folder`; gives both processes."""
    started: list[subprocess.Popen[str]] = []
    servers: list[psutil.Process] = []

    def start() -> tuple[subprocess.Popen[str], psutil.Process]:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        started.append(parent)
        assert parent.stdout is not None
        line = parent.stdout.readline()
        assert line, "the parent ended before its server ran"
        servers.append(psutil.Process(int(line)))
        return parent, servers[-1]

    yield start
    for parent in started:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
    for server in servers:  # when the test has failed
        if server.is_running():
            server.send_signal(signal.SIGQUIT)


def gone(processes: list[psutil.Process]) -> Callable[[], bool]:
    return lambda: not any(process.is_running() and process.status() != "zombie" for process in processes)


async def test_rows_are_there_after_a_restart(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        await fetch(server, "SELECT 1")
        connection = await asyncpg.connect(server.url)
        await connection.execute("CREATE TABLE note (text text); INSERT INTO note VALUES ('kept')")
        await connection.close()
    with EmbeddedPostgres(folder) as server:
        assert await fetch(server, "SELECT text FROM note") == "kept"


async def test_cyrillic_is_lowered_whatever_the_locale(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    with EmbeddedPostgres(folder) as server:
        assert await fetch(server, "SELECT lower('ПРИВЕТ')") == "привет"
        assert await fetch(server, "SELECT datcollate || datlocprovider::text FROM pg_database LIMIT 1")


async def test_environment_variables_for_another_server_do_no_harm(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere.invalid"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres(folder) as server:
        assert await fetch(server, "SELECT current_database()") == "dripline"


async def test_nothing_is_left_when_the_parent_is_killed_and_the_next_start_has_the_rows(
    folder: Path, parent_process: Callable[[], tuple[subprocess.Popen[str], psutil.Process]]
) -> None:
    parent, postmaster = parent_process()
    family = [postmaster, *postmaster.children(recursive=True)]
    assert len(family) > 1
    parent.kill()
    with EmbeddedPostgres(folder) as server:  # at once, while the former server is still shutting down
        assert await fetch(server, "SELECT text FROM note") == "kept"
        until_blocking(gone(family), what="the killed parent's server is gone")


async def test_it_recovers_when_parent_and_server_are_killed_together(
    folder: Path, parent_process: Callable[[], tuple[subprocess.Popen[str], psutil.Process]]
) -> None:
    parent, postmaster = parent_process()
    parent.send_signal(signal.SIGSTOP)
    postmaster.kill()
    parent.kill()
    with EmbeddedPostgres(folder) as server:
        assert await fetch(server, "SELECT text FROM note") == "kept"


async def test_it_comes_back_on_the_same_port_after_kill(folder: Path) -> None:
    with EmbeddedPostgres(folder, port=0) as server:
        before = server.url
        server.kill()
        assert not server.is_running
        server.start()
        assert await fetch(server, "SELECT 1") == 1
        assert server.url == before


def test_a_second_starter_is_told_who_holds_the_folder(
    folder: Path, parent_process: Callable[[], tuple[subprocess.Popen[str], psutil.Process]]
) -> None:
    parent, postmaster = parent_process()
    with pytest.raises(EmbeddedPostgresError, match=rf"in use by another Dripline \(process {parent.pid}\)"):
        EmbeddedPostgres(folder).start()
    assert postmaster.is_running()


def test_another_process_finds_the_running_server(folder: Path) -> None:
    assert running_url(folder) is None
    server = EmbeddedPostgres(folder)
    server.start()
    assert running_url(folder) == server.url
    server.kill()
    assert running_url(folder) is None
    server.stop()


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        assert server.pid is not None
        assert os.getsid(server.pid) == server.pid


def test_it_refuses_to_be_started_by_a_thread_that_may_end_before_the_process(folder: Path) -> None:
    caught: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedPostgres(folder).start()
        except EmbeddedPostgresError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


async def test_a_long_path_moves_the_socket_and_leaves_nothing_behind(folder: Path) -> None:
    with EmbeddedPostgres(folder / ("long" * 30)) as server:
        assert await fetch(server, "SELECT 1") == 1
        socket_dir = Path(server.url.partition("host=")[2].partition("&")[0])
        assert len(str(socket_dir)) < 90
        assert socket_dir.stat().st_mode & 0o077 == 0
    assert not socket_dir.exists()


async def test_on_a_port_it_listens_on_this_machine_only(folder: Path) -> None:
    with EmbeddedPostgres(folder, port=0) as server:
        assert await fetch(server, "SHOW listen_addresses") == "127.0.0.1"


def test_a_taken_port_is_one_sentence(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedPostgresError, match=f"port {port} is in use"):
            EmbeddedPostgres(folder, port=port).start()


async def test_the_settings_that_dripline_counts_on(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        assert await fetch(server, "SHOW max_connections") == "200"
        assert await fetch(server, "SHOW max_locks_per_transaction") == "1024"
        assert await fetch(server, "SHOW fsync") == "on"
        assert await fetch(server, "SHOW wal_compression") == "pglz"


async def test_a_failing_statement_leaves_no_personal_data_in_the_log(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        with pytest.raises(asyncpg.PostgresError):
            await fetch(server, "SELECT 'jane@example.com'::int")
    assert "ready to accept connections" in server.log_file.read_text()
    assert "jane" not in server.log_file.read_text()


async def test_a_first_start_that_was_broken_off_is_begun_again(folder: Path) -> None:
    (folder / "postgres.new" / "base").mkdir(parents=True)
    with EmbeddedPostgres(folder) as server:
        assert await fetch(server, "SELECT 1") == 1
    assert not (folder / "postgres.new").exists()


def test_data_of_another_version_is_refused_with_the_way_out(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        pass
    (folder / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedPostgresError, match="made by PostgreSQL 17"):
        EmbeddedPostgres(folder).start()


def test_after_a_failed_start_the_folder_is_free(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        pass
    with pytest.raises(EmbeddedPostgresError):
        EmbeddedPostgres(folder, settings={"shared_buffers": "nonsense"}).start()
    with EmbeddedPostgres(folder) as server:
        assert server.is_running
