"""Brings a database to the newest version: the schemas, one role a service, one Alembic history a schema, the grants.

The histories are `shared/migrations/versions` (schemas platform and bus) and `services/<service>/migrations/versions`.
Running it twice, or from two processes at once, is harmless: an advisory lock lets one through at a time. A schema that a
later version has migrated is left as it is: in a rolling upgrade, and after a roll-back, the old version starts on it.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from shared.ids import lock_key
from shared.log import get_logger

ENVIRONMENT = Path(__file__).parent

log = get_logger(__name__)


@dataclass(frozen=True)
class History:
    """One Alembic history. `schema` keeps its version table; `role` may write it (None: every service's role may)."""

    schema: str
    versions: Path
    role: str | None


PLATFORM = History("platform", ENVIRONMENT / "versions", None)


async def migrate(url: str, histories: list[History]) -> list[str]:
    """Migrates `url` (asyncpg form) through the histories in order. Raises what the server says.

    Returns the schemas that a later version has migrated: nothing is changed in them.
    """
    roles = [history.role for history in histories if history.role]
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", lock_key("migrate", "all"))
        await make_roles(connection, roles)
        for schema in ["platform", "bus", "cdp", *(h.schema for h in histories)]:
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        engine = create_async_engine(
            "postgresql+asyncpg://", poolclass=NullPool, async_creator=lambda: asyncpg.connect(url)
        )
        later: list[str] = []
        try:
            for history in histories:
                async with engine.connect() as sa_connection:
                    if not await sa_connection.run_sync(_upgrade, history):
                        later.append(history.schema)
                    await sa_connection.commit()
        finally:
            await engine.dispose()
        if later:
            log.warning("migrate.later_version", schemas=later)
        for history in histories:
            if history.schema not in later:
                await _grant(connection, history, roles)
        await connection.execute(
            "INSERT INTO platform.deployment (node_namespace, secret) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            uuid4(),
            secrets.token_bytes(32),
        )
        return later
    finally:
        await connection.close()


async def make_roles(connection: asyncpg.Connection, roles: list[str]) -> None:
    """Makes the services' roles that are missing, and lets the one who connects assume them."""
    # Roles belong to the whole server: another database's migration may be making the same ones now.
    for role in roles:
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            try:
                await connection.execute(f"CREATE ROLE {role} NOLOGIN")
            except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
                pass
        # SET, not MEMBER: who makes a role without being superuser is its member, and may not assume it (PostgreSQL 16).
        if not await connection.fetchval("SELECT pg_has_role(current_user, $1, 'SET')", role):
            await connection.execute(f"GRANT {role} TO current_user")


async def _grant(connection: asyncpg.Connection, history: History, roles: list[str]) -> None:
    everyone = ", ".join(roles)
    if not everyone:
        return
    if history.role is None:
        for schema in ("platform", "bus"):
            await connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {everyone}")
            await connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {everyone}")
            await connection.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {everyone}")
        return
    schema, role = history.schema, history.role
    await connection.execute(f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}")
    await connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}")
    await connection.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role}")
    await connection.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}")
    await connection.execute(f"GRANT USAGE ON SCHEMA cdp TO {everyone}")
    await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA cdp TO {everyone}")


def _upgrade(connection: Connection, history: History) -> bool:
    """Upgrades to the newest version that this program knows; False if the schema is at one that it does not know."""
    config = _config(history)
    config.attributes["connection"] = connection
    config.attributes["schema"] = history.schema
    connection.execute(text(f"SET search_path TO {history.schema}"))
    stands = MigrationContext.configure(connection, opts={"version_table_schema": history.schema}).get_current_heads()
    if not known_versions(history).issuperset(stands):
        return False
    command.upgrade(config, "head")
    return True


def _config(history: History) -> Config:
    config = Config()
    config.set_main_option("script_location", str(ENVIRONMENT))
    config.set_main_option("version_locations", str(history.versions))
    config.set_main_option("path_separator", "os")
    return config


def newest_versions(history: History) -> set[str]:
    """The versions at which the history's schema stands when it is up to date."""
    return set(ScriptDirectory.from_config(_config(history)).get_heads())


def known_versions(history: History) -> set[str]:
    """All versions of the history; a schema that stands at another one was migrated by a later program."""
    return {script.revision for script in ScriptDirectory.from_config(_config(history)).walk_revisions()}


def migrate_sync(url: str, histories: list[History]) -> list[str]:
    """The same, for callers without a running loop."""
    return asyncio.run(migrate(url, histories))
