"""Migrating: what the histories make, from where, and beside whom. Against a real database."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from services.migrate import HISTORIES, migrate
from shared.errors import ConfigurationError
from shared.migrations import History, Patience, revisions
from shared.migrations import migrate as migrate_by
from tests.support import catalog, histories
from tests.support.wait import until

WRITE_A_MIGRATION = (
    "The tables that the migrations make are not those that tables.py (or its EXTRAS) declares. Whoever changes the tables "
    "writes a migration, too: the next number in services/<service>/migrations/versions (platform and bus: shared/migrations/"
    "versions), which only adds (docs/adr/0011-compatible-releases.md). A migration that was released is never changed.\n"
)
MOMENT = "2026-11-02T10:00:00+00:00"
ID, HIGHER_ID = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
# One value of each type, and what the checks of the first tables ask for.
VALUES = {
    "uuid": ID,
    "text": "x",
    "boolean": "true",
    "smallint": "1",
    "integer": "1",
    "bigint": "1",
    "numeric": "1.50",
    "double precision": "0.5",
    "date": "2026-11-02",
    "timestamp with time zone": MOMENT,
    "bytea": "\\x0102",
    "jsonb": '{"a": 1}',
    "uuid[]": f"{{{ID}}}",
    "bigint[]": "{1}",
    "date[]": "{2026-11-02}",
    "text[]": "{x}",
}
CHECKED = {
    ("dispatch.message", "state"): "queued",
    ("dispatch.report", "state"): "waiting",
    ("ingest.source", "kind"): "public",
    ("profile.link", "b"): HIGHER_ID,
    ("profile.cannot_link", "b"): HIGHER_ID,
}


# ── what the histories make ───────────────────────────────────────────────────────────────────────────────────────────
async def test_the_histories_make_the_tables_that_are_declared(database_url: str) -> None:
    engine = create_async_engine(
        "postgresql+asyncpg://", poolclass=NullPool, async_creator=lambda: asyncpg.connect(database_url)
    )
    try:
        async with engine.connect() as connection:
            differences = await connection.run_sync(_differences)
    finally:
        await engine.dispose()
    assert differences == [], WRITE_A_MIGRATION + "\n".join(map(repr, differences))


def _differences(connection: Connection) -> list[Any]:
    found = connection.exec_driver_sql(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE relispartition"
    )
    partitions = {tuple(row) for row in found}
    schemas = {"bus", *(history.schema for history in HISTORIES)}

    def is_ours(thing: Any, name: str | None, kind: str, reflected: bool, _other: object) -> bool:
        return (
            kind != "table" or not reflected or ((thing.schema, name) not in partitions and name != "alembic_version")
        )

    context = MigrationContext.configure(
        connection,
        opts={
            "include_schemas": True,
            "include_name": lambda name, kind, _parents: kind != "schema" or name in schemas,
            "include_object": is_ours,
            "compare_type": True,
            "compare_server_default": True,
        },
    )
    declared = [metadata for history in HISTORIES for metadata in histories.metadata_of(history.schema)]
    return list(compare_metadata(context, declared))  # type: ignore[arg-type]


async def test_the_histories_make_everything_else_that_is_declared(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    await migrate_by(empty_database_url, histories.declared(tmp_path))
    declared, made = await catalog.described(empty_database_url), await catalog.described(database_url)
    different = [
        f"{name}\n  declared: {declared.get(name, '(nothing)')}\n  made:     {made.get(name, '(nothing)')}"
        for name in sorted(declared.keys() | made.keys())
        if declared.get(name) != made.get(name)
    ]
    assert different == [], WRITE_A_MIGRATION + "\n".join(different)
    kinds = {name.split()[0] for name in made}
    assert {"schema", "table", "column", "constraint", "index", "view", "function", "sequence"} <= kinds


async def test_the_histories_put_the_same_rows_into_a_new_database(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    await migrate_by(empty_database_url, histories.declared(tmp_path))
    found = []
    for url in (database_url, empty_database_url):
        connection = await asyncpg.connect(url)
        try:
            rows = await catalog.contents(connection)
        finally:
            await connection.close()
        assert len(json.loads(rows.pop("platform.deployment"))) == 1, "its secrets are its own"
        found.append({table: text for table, text in rows.items() if text != "[]"})
    assert found[0] == found[1], WRITE_A_MIGRATION
    assert "ingest.key_version" in found[0]


# ── from an older version ─────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_database_of_the_first_version_keeps_its_rows(empty_database_url: str, tmp_path: Path) -> None:
    await migrate_by(empty_database_url, histories.first_versions(tmp_path))
    connection = await asyncpg.connect(empty_database_url)
    try:
        assert await versions(connection) == {history.schema: {histories.FIRST} for history in HISTORIES}
        await fill(connection)
        before = {table: json.loads(rows) for table, rows in (await catalog.contents(connection)).items()}
        assert [table for table, rows in before.items() if len(rows) != 1] == []
        assert await migrate(empty_database_url) == []
        assert await versions(connection) == {history.schema: {revisions(history)[-1]} for history in HISTORIES}
        after = {table: json.loads(rows) for table, rows in (await catalog.contents(connection)).items()}
        for table, [row] in before.items():
            [kept] = after[table]
            assert {column: kept.get(column) for column in row} == row, table
        assert await connection.fetchval("SELECT count(*) FROM cdp.node") == 1, "views show what they did"
    finally:
        await connection.close()


async def test_a_database_that_came_from_the_first_version_is_like_a_new_one(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    await migrate_by(empty_database_url, histories.first_versions(tmp_path))
    await migrate(empty_database_url)
    assert await catalog.described(empty_database_url) == await catalog.described(database_url)


async def fill(connection: asyncpg.Connection) -> None:
    """One row, with a value in every column, into each table that has none."""
    columns = await connection.fetch(
        """
        SELECT n.nspname || '.' || c.relname AS "table", array_agg(a.attname ORDER BY a.attnum) AS names,
            array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) AS types
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname || '.' || c.relname = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped GROUP BY 1
        """,
        await catalog.tables(connection),
    )
    await connection.execute("SET session_replication_role TO replica")  # rows come table by table
    for table, names, types in columns:
        if await connection.fetchval(f"SELECT count(*) FROM {table}"):
            continue
        values = [
            f"'{CHECKED.get((table, name), VALUES[type])}'::{type}" for name, type in zip(names, types, strict=True)
        ]
        await connection.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(values)})")


def of_triggers(all_of_them: list[History]) -> History:
    return next(history for history in all_of_them if history.schema == "triggers")


async def versions(connection: asyncpg.Connection) -> dict[str, set[str]]:
    """By schema the versions at which it stands."""
    return {
        history.schema: {
            row[0] for row in await connection.fetch(f"SELECT version_num FROM {history.schema}.alembic_version")
        }
        for history in HISTORIES
    }


# ── beside others ─────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_table_in_use_is_waited_for_without_holding_up_others(empty_database_url: str, tmp_path: Path) -> None:
    version_before = histories.first_versions(tmp_path)
    await migrate_by(empty_database_url, version_before)
    backup, other = await asyncpg.connect(empty_database_url), await asyncpg.connect(empty_database_url)
    try:
        reading = backup.transaction()
        await reading.start()
        await backup.execute("LOCK TABLE triggers.run IN ACCESS SHARE MODE")
        await other.execute("SET lock_timeout TO '2s'")
        patience = Patience(lock=timedelta(milliseconds=100), pause=timedelta(milliseconds=20), tries=500)
        with structlog.testing.capture_logs() as logs:
            migrating = asyncio.create_task(migrate_by(empty_database_url, HISTORIES, patience))
            await until(lambda: logs, what="the migration says that it waits")
            assert await other.fetchval("SELECT count(*) FROM triggers.run") == 0
            assert await asyncio.wait_for(migrate_by(empty_database_url, version_before), 10) == [], (
                "it may start again"
            )
            assert (logs[0]["event"], logs[0]["schema"]) == ("migrate.waits", "triggers")
        await reading.rollback()
        assert await asyncio.wait_for(migrating, 10) == []
        assert (await versions(other))["triggers"] == {revisions(of_triggers(HISTORIES))[-1]}
    finally:
        await backup.close()
        await other.close()


async def test_a_table_that_stays_in_use_is_told_in_one_sentence(empty_database_url: str, tmp_path: Path) -> None:
    await migrate_by(empty_database_url, histories.first_versions(tmp_path))
    backup = await asyncpg.connect(empty_database_url)
    try:
        async with backup.transaction():
            await backup.execute("LOCK TABLE triggers.run IN ACCESS SHARE MODE")
            hasty = Patience(lock=timedelta(milliseconds=20), pause=timedelta(milliseconds=1), tries=2)
            with pytest.raises(ConfigurationError, match=r"schema triggers was in use .* run `dripline migrate` again"):
                await migrate_by(empty_database_url, HISTORIES, hasty)
        assert await migrate(empty_database_url) == [], "later it goes on"
    finally:
        await backup.close()


async def test_what_was_migrated_before_a_migration_failed_stays(empty_database_url: str, tmp_path: Path) -> None:
    changed = histories.whole(tmp_path)
    triggers = of_triggers(changed)
    good = histories.add_migration(triggers, 'op.execute("CREATE TABLE triggers.later (id uuid PRIMARY KEY)")')
    histories.add_migration(triggers, 'op.execute("ALTER TABLE triggers.nowhere ADD COLUMN a jsonb")')
    with pytest.raises(Exception, match="nowhere"):
        await migrate_by(empty_database_url, changed)
    connection = await asyncpg.connect(empty_database_url)
    try:
        assert await connection.fetchval("SELECT version_num FROM triggers.alembic_version") == good
        assert await connection.fetchval("SELECT count(*) FROM triggers.later") == 0
    finally:
        await connection.close()


async def test_an_index_is_made_without_locking_its_table(empty_database_url: str, tmp_path: Path) -> None:
    changed = histories.whole(tmp_path)
    histories.add_migration(
        of_triggers(changed),
        """\
with op.get_context().autocommit_block():
    op.execute("SET lock_timeout TO 0")
    op.execute("DROP INDEX CONCURRENTLY IF EXISTS triggers.run_later")
    op.execute("CREATE INDEX CONCURRENTLY run_later ON triggers.run (goal_at)")""",
    )
    assert await migrate_by(empty_database_url, changed) == []
    assert "index triggers.run_later" in await catalog.described(empty_database_url)


async def test_a_database_of_a_later_version_is_left_as_it_is(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("UPDATE triggers.alembic_version SET version_num = 'of a later version'")
        with structlog.testing.capture_logs() as logs:
            assert await migrate(database_url) == ["triggers"]
        assert [(line["log_level"], line["schemas"]) for line in logs] == [("warning", ["triggers"])]
        newest = {history.schema: {revisions(history)[-1]} for history in HISTORIES}
        assert await versions(connection) == {**newest, "triggers": {"of a later version"}}
    finally:
        await connection.close()


async def test_migrating_again_changes_nothing(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        before = await connection.fetch(_VERSIONS)
        assert await migrate(database_url) == []
        assert await connection.fetch(_VERSIONS) == before
    finally:
        await connection.close()


_VERSIONS = " UNION ALL ".join(
    f"SELECT version_num, xmin::text FROM {history.schema}.alembic_version" for history in HISTORIES
)
