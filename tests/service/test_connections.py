"""No connection of a process may hold the others: each has the limits of time, and the server keeps them by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from shared import db
from shared.db import Database
from shared.errors import is_transient
from shared.settings import SERVICE_NAMES
from tests.support.ingesting import server_over
from tests.support.wait import until

LIMITS = {
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "tcp_user_timeout": "4000",  # ms, as the socket has it
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "2",
}
# Its renewals must not take longer than the lease.
LIMITS_OF_LEASES = LIMITS | {"lock_timeout": "1s", "statement_timeout": "2s"}


async def test_every_connection_of_a_process_has_the_limits_of_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[int, tuple[str, dict[str, str]]] = {}
    prepare = db._prepare

    async def asks(connection: asyncpg.Connection) -> None:
        """Each connection is prepared when it is opened, a pool's as well as a single one."""
        await prepare(connection)
        name = await connection.fetchval("SHOW application_name")
        limits = {limit: await connection.fetchval(f"SHOW {limit}") for limit in LIMITS}
        said[connection.get_server_pid()] = (name, limits)

    monkeypatch.setattr(db, "_prepare", asks)
    observer = await asyncpg.connect(database_url)
    try:
        async with server_over(database_url, services=",".join(SERVICE_NAMES)) as server:
            member = server.context.member
            single = {f"{member}/{what}" for what in ("leases", "listen", "notify", "keeper")}

            async def all_open() -> bool:
                return single <= {name for name, _ in said.values()}

            async def all_asked() -> bool:
                rows = await observer.fetch(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
                    "AND backend_type = 'client backend'"
                )
                return {row["pid"] for row in rows} <= set(said)

            await until(all_open, limit=20, what=f"all of {single} are open")
            await until(all_asked, limit=20, what="no connection was opened past shared.db")
    finally:
        await observer.close()
    for name, limits in said.values():
        assert limits == (LIMITS_OF_LEASES if name.endswith("/leases") else LIMITS), name
    assert member in {name for name, _ in said.values()}, "the pools' were among them"


async def test_a_transaction_that_stands_still_is_ended_by_the_server_and_its_locks_are_free(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a successor that would end it: nobody else asks for its lease."""
    monkeypatch.setitem(db.SESSION_SETTINGS, "idle_in_transaction_session_timeout", "200ms")
    frozen, other = [await Database.open(database_url, member=name) for name in ("frozen", "other")]
    ended: list[BaseException] = []
    locked, thaw = asyncio.Event(), asyncio.Event()

    async def stands_still() -> Any:
        async with frozen.transaction() as tx:
            await tx.execute("LOCK TABLE platform.lease IN ACCESS EXCLUSIVE MODE")
            locked.set()
            await thaw.wait()
            await tx.execute("DELETE FROM platform.deployment")

    async def keeps_its_error() -> None:
        try:
            await stands_still()
        except Exception as problem:
            ended.append(problem)

    standing = asyncio.create_task(keeps_its_error())
    try:
        await until(locked.is_set, what="it holds the lock")
        async with asyncio.timeout(3), other.transaction() as tx:
            await tx.execute("SELECT 1 FROM platform.lease FOR UPDATE")
        thaw.set()
        await standing
        (error,) = ended
        assert is_transient(error), "its batch is tried again, on another connection"
        async with other.connection() as connection:
            assert await connection.fetchval("SELECT count(*) FROM platform.deployment") == 1, "nothing of it is left"
    finally:
        thaw.set()
        await standing
        await frozen.close()
        await other.close()
