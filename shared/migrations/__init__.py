"""Brings a database to the newest version: the schemas, one role a service, one Alembic history a schema, the grants.

The histories are `shared/migrations/versions` (schemas platform and bus) and `services/<service>/migrations/versions`.
Running it twice, or from two processes at once, is harmless: an advisory lock lets one through at a time. A schema that a
later version has migrated is left as it is: in a rolling upgrade, and after a roll-back, the old version starts on it.

Programs may be at work meanwhile. A statement that waits for a table's lock makes all wait who come to the table after it, so
it gives up sooner than they do (`shared.db`: 5 s), lets them pass, and comes again; processes that start pass, too.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg

from shared.ids import lock_key
from shared.log import get_logger

ENVIRONMENT = Path(__file__).parent
ONE_AT_A_TIME = lock_key("migrate", "all")

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
        later: list[str] = []
        for history in histories:
            known, version = revisions(history), await stands_at(connection, history)
            if version is not None and version not in known:
                later.append(history.schema)
            elif version != known[-1]:
                # Alembic takes a third of a second to import, which nearly no start of the program needs.
                from shared.migrations.upgrading import upgrade

                await upgrade(url, history, patience or Patience(), connection)
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


def revisions(history: History) -> list[str]:
    """The versions of a history, the newest last: the numbers that its files begin with."""
    return sorted(file.name.partition("_")[0] for file in history.versions.glob("[0-9]*_*.py"))


async def stands_at(connection: asyncpg.Connection, history: History) -> str | None:
    """The version that the history's schema is at; None before the first."""
    table = f"{history.schema}.alembic_version"
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table):
        return None
    version: str | None = await connection.fetchval(f"SELECT version_num FROM {table}")
    return version
