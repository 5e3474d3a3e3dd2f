"""`dripline backup DIR` and `dripline restore DIR`, over PostgreSQL's own pg_dump and pg_restore.

A backup is a folder: the dump (one consistent snapshot of all schemas; with the log table, of the bus too), the erasure
journal, the secrets without which neither ids nor links mean anything, and a note of when and of what it is. A Kafka bus is
not in it: what Kafka still holds when the database comes back is read again from where the backup's positions stand.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import asyncpg

from services.migrate import HISTORIES, migrate
from services.restoring import Restored, read_journals, take_up
from shared import erasure
from shared.clock import Clock, SystemClock
from shared.db import Database
from shared.deployment import Deployment, read_deployment, refuse_without_tables
from shared.errors import ConfigurationError
from shared.migrations import make_roles
from shared.postgres_binaries import find_installation
from shared.postgres_errors import EmbeddedPostgresError
from shared.settings import Settings

MEMBER = "dripline-backup"
DUMP, NOTE, JOURNAL, SECRETS = "dripline.dump", "backup.json", "erasures.txt", "secrets.json"
FORMAT = 1


@dataclass(frozen=True)
class Note:
    """`backup.json`. `at`: the restore takes everything after this moment for lost."""

    at: datetime
    dripline: str
    postgresql: str
    generation: int
    bus: dict[str, str] | None
    dump_sha256: str


async def back_up(settings: Settings, database_url: str, folder: Path, clock: Clock | None = None) -> Note:
    """Writes the backup; the services may run meanwhile.

    :param folder: must not exist; it appears when it is complete
    :raises ConfigurationError: with the sentence of pg_dump, or what else stands in the way
    """
    if folder.exists():
        raise ConfigurationError(f"{folder} exists; name a new folder for each backup.")
    at = (clock or SystemClock()).now()
    server, deployment, journal = await _look(database_url)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, mode=0o700)
    try:
        _write_private(unfinished / DUMP, "")
        _run("pg_dump", server, database_url, ["--format=custom", "--no-owner", f"--file={unfinished / DUMP}"])
        _write_private(unfinished / JOURNAL, erasure.lines_of(_united(settings, journal)))
        _write_private(
            unfinished / SECRETS, json.dumps(_secrets(settings, deployment.node_namespace, deployment.secret))
        )
        note = Note(at, _dripline(), server, deployment.generation, deployment.bus, _sha256(unfinished / DUMP))
        document = {"format": FORMAT, **vars(note), "at": at.isoformat()}
        _write_private(unfinished / NOTE, json.dumps(document, indent=2) + "\n")
        unfinished.rename(folder)
    except BaseException:
        # Half a dump a night would fill the disk, and somebody might take it for a backup.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return note


async def _look(database_url: str) -> tuple[str, Deployment, dict[bytes, datetime]]:
    """The server's version, the deployment, and the erasures that its database knows."""
    database = await Database.open(database_url, member=MEMBER, size=1)
    try:
        async with database.connection() as connection:
            await refuse_without_tables(connection)
            server = str(await connection.fetchval("SHOW server_version"))
            return server, await read_deployment(connection), await erasure.read_digests(connection)
    finally:
        await database.close()


async def restore(
    settings: Settings, database_url: str, folder: Path, journals: Sequence[Path] = (), clock: Clock | None = None
) -> tuple[Note, Restored]:
    """Fills an empty database from a backup, migrates it, and takes it up (`services.restoring`).

    :param journals: further files of the erasure journal, younger than the backup
    :raises ConfigurationError: the folder is no backup, the database is not empty, or pg_restore says why not
    """
    note = read_note(folder)
    if _sha256(folder / DUMP) != note.dump_sha256:
        raise ConfigurationError(f"{folder / DUMP} is not as it was written: take another backup.")
    # Whatever is wrong with what lies beside the dump is said before anything is done.
    read_journals([folder / JOURNAL, *journals])
    _compare_secrets(settings, folder)
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        server = await connection.fetchval("SHOW server_version")
        if await connection.fetchval("SELECT to_regnamespace('platform') IS NOT NULL"):
            raise ConfigurationError(
                "The database is not empty; restore into a new one (another --data, or a new database in DATABASE_URL)."
            )
        await make_roles(connection, [history.role for history in HISTORIES if history.role])
    finally:
        await connection.close()
    _run(
        "pg_restore",
        server,
        database_url,
        ["--no-owner", "--exit-on-error", "--single-transaction", str(folder / DUMP)],
    )
    await migrate(database_url)
    restored = await take_up(
        settings, database_url, journals=[folder / JOURNAL, *journals], backup_at=note.at, clock=clock
    )
    return note, restored


def read_note(folder: Path) -> Note:
    """:raises ConfigurationError: the folder is no backup of ours"""
    if not (folder / NOTE).exists():
        missing = f"it has no {NOTE}" if folder.is_dir() else "there is no such folder"
        raise ConfigurationError(f"{folder} is no backup: {missing}.")
    try:
        document: dict[str, Any] = json.loads((folder / NOTE).read_text())
        if document.pop("format") != FORMAT:
            raise ValueError("another format")
        return Note(**{**document, "at": datetime.fromisoformat(document["at"])})
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConfigurationError(f"{folder} is no backup that this version can read ({problem}).") from None


# ── what lies beside the dump ─────────────────────────────────────────────────────────────────────────────────────────
def _united(settings: Settings, journal: dict[bytes, datetime]) -> dict[bytes, datetime]:
    file = settings.erasure_journal_file
    outside = read_journals([file]) if file is not None and file.exists() else {}
    return {key: max(filter(None, [journal.get(key), outside.get(key)])) for key in journal.keys() | outside.keys()}


def _secrets(settings: Settings, namespace: object, secret: bytes) -> dict[str, str]:
    """SECRET_KEY itself is the operator's; its print shows whether the restored system has the same one."""
    return {"node_namespace": str(namespace), "secret": secret.hex(), "secret_key_sha256": _print_of_key(settings)}


def _print_of_key(settings: Settings) -> str:
    key = settings.secret_key.get_secret_value() if settings.secret_key else ""
    return hashlib.sha256(key.encode()).hexdigest() if key else ""


def _compare_secrets(settings: Settings, folder: Path) -> None:
    """Another key would make every link in sent messages dead, and the erasure journal unreadable."""
    try:
        kept = json.loads((folder / SECRETS).read_text())["secret_key_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConfigurationError(f"{folder / SECRETS} is not as it was written ({problem}).") from None
    if kept != _print_of_key(settings):
        raise ConfigurationError(
            "SECRET_KEY is not the one under which the backup was made: with another one the erasure journal cannot be "
            "applied. Nothing was restored; set it first."
        )


def _write_private(file: Path, text: str) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)


def _sha256(file: Path) -> str:
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as problem:
        raise ConfigurationError(f"{file} cannot be read ({problem.strerror}).") from None


def _dripline() -> str:
    try:
        return version("dripline")
    except PackageNotFoundError:
        return "unknown"


# ── PostgreSQL's programs ─────────────────────────────────────────────────────────────────────────────────────────────
def _run(name: str, server: str, database_url: str, arguments: list[str]) -> None:
    url, password = _without_password(database_url)
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    done = subprocess.run(
        [find_program(name, int(server.split(".")[0])), f"--dbname={url}", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise ConfigurationError(f"{name} failed: {said[0] if said else f'exit status {done.returncode}'}")


def find_program(name: str, major: int) -> str:
    """A program on the PATH that is not older than the server, else that of the embedded PostgreSQL.

    :raises ConfigurationError: there is none that could do it
    """
    if (found := shutil.which(name)) is not None:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        if (number := re.search(r"(\d+)", said)) and int(number[1]) >= major:
            return found
    try:
        installation = find_installation()
    except EmbeddedPostgresError:
        installation = None
    if installation is None or int(installation.version.split(".")[0]) < major:
        raise ConfigurationError(
            f"{name} of PostgreSQL {major} or later is needed; install PostgreSQL's client programs."
        )
    return installation.program(name)


def _without_password(url: str) -> tuple[str, str]:
    """The URL as a process list may show it, and the password."""
    parts = urlsplit(url)
    user, _, rest = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    place = f"{name}@{rest}" if user else rest
    return urlunsplit(parts._replace(netloc=place)), unquote(password)
