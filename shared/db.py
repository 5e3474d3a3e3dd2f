"""PostgreSQL: one bounded pool a service, every connection with the same limits.

A stopped process must not hold the others: every connection has `idle_in_transaction_session_timeout` and `lock_timeout`
of 5 s, `statement_timeout` 30 s, keepalive and `tcp_user_timeout` of 4 s, and carries the member's id as
`application_name`, so that whoever takes over its lease can terminate it.

SQLAlchemy declares the tables (`tables.py`) and carries the migrations; statements are SQL, sent by asyncpg, because
batches are arrays and `unnest`. jsonb columns take and give Python values (msgspec), uuid columns UUIDs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
import msgspec

# A connection inside somebody's transaction (or in autocommit, where a function says so).
Tx: TypeAlias = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy

SESSION_SETTINGS = {
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": "4000",
    "jit": "off",
    "timezone": "UTC",
}

_json_encoder = msgspec.json.Encoder(decimal_format="number")


def _encode_json(value: Any) -> str:
    return _json_encoder.encode(value).decode()


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=_encode_json, decoder=msgspec.json.decode, format="text"
    )


def session_settings(member: str, role: str | None = None, **changes: str) -> dict[str, str]:
    """The settings of a connection of this member; `role` is assumed at connect, so that grants hold."""
    settings = {**SESSION_SETTINGS, "application_name": member[:63], **changes}
    if role:
        settings["role"] = role
    return settings


async def connect(url: str, member: str, *, role: str | None = None, **changes: str) -> asyncpg.Connection:
    """A single connection outside any pool (leases, LISTEN, keeper)."""
    connection: asyncpg.Connection = await asyncpg.connect(
        url, server_settings=session_settings(member, role, **changes), timeout=10, command_timeout=60
    )
    await _prepare(connection)
    return connection


async def _keep(_connection: Tx) -> None:
    """Instead of asyncpg's reset at every return, a round trip each: nothing here changes a session's state (settings and
    locks are local to transactions)."""


class Database:
    """A pool. `async with db.transaction() as tx:` gives an asyncpg connection in a READ COMMITTED transaction."""

    def __init__(self, pool: asyncpg.Pool, url: str, member: str, role: str | None) -> None:
        self._pool = pool
        self.url, self.member, self.role = url, member, role

    @classmethod
    async def open(cls, url: str, *, member: str, role: str | None = None, size: int = 8) -> Database:
        """Opens at once; raises what asyncpg raises when the server cannot be reached."""
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=size,
            server_settings=session_settings(member, role),
            init=_prepare,
            reset=_keep,
            timeout=10,
            command_timeout=60,
            max_inactive_connection_lifetime=300,
        )
        return cls(pool, url, member, role)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Tx]:
        """A connection in autocommit."""
        async with self._pool.acquire(timeout=30) as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self, isolation: str | None = None) -> AsyncIterator[Tx]:
        """A transaction; commits at the end of the block, rolls back on any exception. `isolation`: e.g. repeatable_read."""
        async with self._pool.acquire(timeout=30) as connection, connection.transaction(isolation=isolation):
            yield connection

    def terminate(self) -> None:
        """Closes every connection at once; what is under way fails."""
        self._pool.terminate()

    async def close(self) -> None:
        self._pool.terminate() if self._pool.is_closing() else await self._pool.close()
