"""Brings a database to the newest version: the schemas, one role a service, one Alembic history a schema, the grants.

The histories are `shared/migrations/versions` (schemas platform and bus) and `services/<service>/migrations/versions`.
Running it twice, or from two processes at once, is harmless: an advisory lock lets one through at a time. A schema that a
later version has migrated is left as it is: in a rolling upgrade, and after a roll-back, the old version starts on it.

Programs may be at work meanwhile. A statement that waits for a table's lock makes all wait who come to the table after it, so
it gives up sooner than they do (`shared.db`: 5 s), lets them pass, and comes again; processes that start pass, too.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from shared.errors import ConfigurationError, sqlstate
from shared.ids import lock_key
from shared.log import get_logger

ENVIRONMENT = Path(__file__).parent
ONE_AT_A_TIME = lock_key("migrate", "all")
TABLE_IS_TAKEN = frozenset({"55P03", "40P01"})  # a lock did not come in time; whoever waited for each other

log = get_logger(__name__)


@dataclass(frozen=True)
class History:
    """One Alembic history. `schema` keeps its version table; `role` may write it (None: every service's role may)."""

    schema: str
    versions: Path
    role: str | None


PLATFORM = History("platform", ENVIRONMENT / "versions", None)


@dataclass(frozen=True)
class Patience:
    """How a migration waits for a table that is in use: `lock` at a time, `tries` times, with `pause` between them."""

    lock: timedelta = timedelta(seconds=2)
    pause: timedelta = timedelta(seconds=3)
    tries: int = 60


async def migrate(url: str, histories: list[History], patience: Patience | None = None) -> list[str]:
    """Migrates `url` (asyncpg form) through the histories in order. Raises what the server says.

    Returns the schemas that a later version has migrated: nothing is changed in them.

    :raises ConfigurationError: a table was in use for longer than `patience` allows; what was done by then stays
    """
    roles = [history.role for history in histories if history.role]
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", ONE_AT_A_TIME)
        await make_roles(connection, roles)
        for schema in ["platform", "bus", "cdp", *(h.schema for h in histories)]:
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        engine = create_async_engine(
            "postgresql+asyncpg://", poolclass=NullPool, async_creator=lambda: asyncpg.connect(url)
        )
        later: list[str] = []
        try:
            for history in histories:
                if not await _upgrade_in_time(engine, history, patience or Patience(), connection):
                    later.append(history.schema)
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


async def _upgrade_in_time(engine: AsyncEngine, history: History, patience: Patience, turn: asyncpg.Connection) -> bool:
    """`_upgrade`, again and again while tables are in use. A try goes on where the one before it stopped; between two of them
    `turn`, which holds the advisory lock, lets others have it."""
    for left in reversed(range(patience.tries)):
        try:
            async with engine.connect() as connection:
                return await connection.run_sync(_upgrade, history, patience.lock)
        except DBAPIError as problem:
            if problem.orig is None or sqlstate(problem.orig) not in TABLE_IS_TAKEN:
                raise
            log.warning("migrate.waits", schema=history.schema, tries_left=left, said=str(problem.orig))
        if left:
            await turn.execute("SELECT pg_advisory_unlock($1)", ONE_AT_A_TIME)
            await asyncio.sleep(patience.pause.total_seconds())
            await turn.execute("SELECT pg_advisory_lock($1)", ONE_AT_A_TIME)
    raise ConfigurationError(
        f"A table of the schema {history.schema} was in use all the time that the migration waited for it, by a backup or a long "
        "transaction: run `dripline migrate` again when that is over."
    )


def _upgrade(connection: Connection, history: History, lock: timedelta) -> bool:
    """Upgrades to the newest version that this program knows; False if the schema is at one that it does not know."""
    config = _config(history)
    config.attributes["connection"] = connection
    config.attributes["schema"] = history.schema
    connection.execute(text(f"SET search_path TO {history.schema}"))
    connection.execute(text(f"SET lock_timeout TO {int(lock.total_seconds() * 1000)}"))
    stands = MigrationContext.configure(connection, opts={"version_table_schema": history.schema}).get_current_heads()
    # Inside a transaction of ours Alembic would begin none of its own.
    connection.commit()
    script = ScriptDirectory.from_config(config)
    if not _known(script).issuperset(stands):
        return False
    if set(stands) == set(script.get_heads()):
        return True  # as at nearly every start of the program
    command.upgrade(config, "head")
    connection.commit()
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
    return _known(ScriptDirectory.from_config(_config(history)))


def _known(script: ScriptDirectory) -> set[str]:
    return {revision.revision for revision in script.walk_revisions()}


def migrate_sync(url: str, histories: list[History]) -> list[str]:
    """The same, for callers without a running loop."""
    return asyncio.run(migrate(url, histories))
