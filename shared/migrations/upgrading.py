"""Running a history's migrations by Alembic, while other programs use the tables."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from shared.errors import ConfigurationError, sqlstate
from shared.log import get_logger
from shared.migrations import ENVIRONMENT, ONE_AT_A_TIME, History, Patience, revisions, stands_at

TABLE_IS_TAKEN = frozenset({"55P03", "40P01"})  # a lock did not come in time; whoever waited for each other

log = get_logger(__name__)


async def upgrade(url: str, history: History, patience: Patience, turn: asyncpg.Connection) -> None:
    """Brings the history's schema to the newest version, again and again while tables are in use. A try goes on where the one
    before it stopped; between two of them `turn`, which holds the advisory lock, lets others have it.

    :raises ConfigurationError: a table was in use for longer than `patience` allows
    """
    engine = create_async_engine(
        "postgresql+asyncpg://", poolclass=NullPool, async_creator=lambda: asyncpg.connect(url)
    )
    try:
        for left in reversed(range(patience.tries)):
            try:
                async with engine.connect() as connection:
                    return await connection.run_sync(_upgrade, history, patience.lock)
            except DBAPIError as problem:
                if problem.orig is None or sqlstate(problem.orig) not in TABLE_IS_TAKEN:
                    raise
                log.warning("migrate.waits", schema=history.schema, tries_left=left, said=str(problem.orig))
            if left and await _somebody_was_faster(history, patience, turn):
                return None
    finally:
        await engine.dispose()
    raise ConfigurationError(
        f"A table of the schema {history.schema} was in use all the time that the migration waited for it, by a backup or a long "
        "transaction: run `dripline migrate` again when that is over."
    )


async def _somebody_was_faster(history: History, patience: Patience, turn: asyncpg.Connection) -> bool:
    """Lets others have the turn for a while; says whether the schema has left what this program knows, or is up to date."""
    await turn.execute("SELECT pg_advisory_unlock($1)", ONE_AT_A_TIME)
    await asyncio.sleep(patience.pause.total_seconds())
    await turn.execute("SELECT pg_advisory_lock($1)", ONE_AT_A_TIME)
    version = await stands_at(turn, history)
    return version is not None and version not in revisions(history)[:-1]


def _upgrade(connection: Connection, history: History, lock: timedelta) -> None:
    config = Config()
    config.set_main_option("script_location", str(ENVIRONMENT))
    config.set_main_option("version_locations", str(history.versions))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["schema"] = history.schema
    connection.execute(text(f"SET search_path TO {history.schema}"))
    connection.execute(text(f"SET lock_timeout TO {int(lock.total_seconds() * 1000)}"))
    # Inside a transaction of ours Alembic would begin none of its own.
    connection.commit()
    command.upgrade(config, "head")
    connection.commit()
