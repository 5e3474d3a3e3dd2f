"""Histories of migrations other than the program's own: as they began, as the tables declare them, as they may go on."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import MetaData

import services.dispatch.tables
import services.ingest.tables
import services.profile.tables
import services.triggers.tables
import shared.tables
from services.migrate import HISTORIES
from shared.migrations import History, migrate, revisions
from tests.support import catalog

FIRST = "0001"


def metadata_of(schema: str) -> list[MetaData]:
    """What the `tables.py` of this history declares."""
    if schema == "platform":
        return [shared.tables.metadata, shared.tables.bus_metadata]
    return [_TABLES[schema].metadata]


_TABLES: dict[str, Any] = {
    "platform": shared.tables,
    "profile": services.profile.tables,
    "ingest": services.ingest.tables,
    "triggers": services.triggers.tables,
    "dispatch": services.dispatch.tables,
}


def first_versions(folder: Path) -> list[History]:
    """Each history with its first migration alone: the tables of the first release."""
    return [_copied(history, folder, f"{FIRST}_*") for history in HISTORIES]


def whole(folder: Path) -> list[History]:
    """Each history as it is, in a folder to which a test may add."""
    return [_copied(history, folder, "[0-9]*") for history in HISTORIES]


def _copied(history: History, folder: Path, pattern: str) -> History:
    versions = folder / history.schema
    versions.mkdir(parents=True)
    for file in history.versions.glob(pattern):
        shutil.copy(file, versions)
    return dataclasses.replace(history, versions=versions)


def add_migration(history: History, body: str) -> str:
    """One more file at the end of the history, whose `upgrade()` does `body`. Returns its version."""
    newest = revisions(history)[-1]
    version = f"{int(newest) + 1:04}"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    (history.versions / f"{version}_of_a_later_version.py").write_text(
        f'from alembic import op\n\nrevision = "{version}"\ndown_revision = "{newest}"\n\n\ndef upgrade() -> None:\n{lines}\n'
    )
    return version


def declared(folder: Path) -> list[History]:
    """Histories of one migration each, which makes what stands in `tables.py` now."""
    found = []
    for history in HISTORIES:
        versions = folder / history.schema
        versions.mkdir(parents=True)
        prefixes = ("", "bus_") if history.schema == "platform" else ("",)
        makes = "".join(f"    tables.{prefix}metadata.create_all(op.get_bind())\n" for prefix in prefixes)
        extras = f"tables.{prefixes[-1].upper()}EXTRAS"
        (versions / f"{FIRST}_declared.py").write_text(
            f"from alembic import op\n\nimport {_TABLES[history.schema].__name__} as tables\n\n"
            f'revision = "{FIRST}"\ndown_revision = None\n\n\n'
            f"def upgrade() -> None:\n{makes}    for statement in {extras}:\n        op.execute(statement)\n"
        )
        found.append(dataclasses.replace(history, versions=versions))
    return found


async def put_back(url: str, folder: Path) -> None:
    """Makes of a database of this version one of the first release with the same rows, cut to the columns of its time."""
    connection = await asyncpg.connect(url)
    try:
        rows = await catalog.contents(connection)
        sequences = await connection.fetch(
            "SELECT format('%I.%I', schemaname, sequencename), last_value FROM pg_sequences WHERE last_value IS NOT NULL"
        )
        for schema in ("cdp", "bus", *(history.schema for history in HISTORIES)):
            await connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        await migrate(url, first_versions(folder))
        await connection.execute("SET session_replication_role TO replica")  # rows come table by table
        known = await catalog.tables(connection)
        await connection.execute(f"TRUNCATE {', '.join(known)}")
        for table in known:
            await connection.execute(
                f"INSERT INTO {table} SELECT * FROM json_populate_recordset(NULL::{table}, $1)", rows[table]
            )
        for sequence, value in sequences:
            await connection.execute(f"SELECT setval('{sequence}', {value})")
    finally:
        await connection.close()
