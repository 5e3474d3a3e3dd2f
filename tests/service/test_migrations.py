"""Migrating beside another version of the program, against a real database."""

from __future__ import annotations

import asyncpg
import structlog

from services.migrate import HISTORIES, migrate


async def test_a_database_of_a_later_version_is_left_as_it_is(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("UPDATE triggers.alembic_version SET version_num = 'of a later version'")
        with structlog.testing.capture_logs() as logs:
            assert await migrate(database_url) == ["triggers"]
        assert [(line["log_level"], line["schemas"]) for line in logs] == [("warning", ["triggers"])]
        assert await connection.fetchval("SELECT version_num FROM triggers.alembic_version") == "of a later version"
        assert await connection.fetchval("SELECT version_num FROM dispatch.alembic_version") == "0001"
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
