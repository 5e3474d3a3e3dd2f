"""What an event takes on the disk, with the log table as the bus, and how many connections a process holds."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg

from services.migrate import migrate
from shared.settings import SERVICE_NAMES
from tests.bench import profiles
from tests.bench.servers import dripline
from tests.support.contexts import context_for
from tests.support.databases import cloned, make_template, temporary_server

EVENTS = 5_000
_SIZES = """
SELECT nspname, sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relkind IN ('r', 'm') AND nspname IN ('bus', 'platform', 'profile', 'triggers', 'dispatch') GROUP BY 1
"""
_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%.' || $1 || '.%'"


async def _sizes(connection: asyncpg.Connection) -> dict[str, int]:
    await connection.execute("VACUUM")
    return {schema: int(size) for schema, size in await connection.fetch(_SIZES)}


async def _disk(url: str) -> dict[str, Any]:
    connection = await asyncpg.connect(url)
    async with context_for(url, partitions=8) as context:
        records = profiles.make_events(context, EVENTS, hot=False, seed=1)
        before, wal = await _sizes(connection), await connection.fetchval("SELECT pg_current_wal_lsn()")
        await profiles.ours(context, records)
        written = await connection.fetchval("SELECT pg_current_wal_lsn() - $1::pg_lsn", wal)
    after = await _sizes(connection)
    await connection.close()
    return {
        "event_bytes": sum(len(record.value) for record in records) // EVENTS,
        "bytes_an_event": {schema: round((after[schema] - before[schema]) / EVENTS) for schema in sorted(after)},
        "wal_bytes_an_event": round(written / EVENTS),
    }


async def _count(url: str, pid: int) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval(_CONNECTIONS, str(pid)))
    finally:
        await connection.close()


def _connections(url: str) -> dict[str, int]:
    held = {}
    for service in SERVICE_NAMES:
        with TemporaryDirectory(prefix="dripline-bench-") as folder:
            os.chmod(folder, 0o755)
            with dripline(Path(folder), {"DATABASE_URL": url, "SERVICES": service}) as server:
                time.sleep(3)
                held[service] = asyncio.run(_count(url, server.process.pid))
    return held


def measure() -> dict[str, Any]:
    with temporary_server(fsync="off") as server:

        async def disk() -> dict[str, Any]:
            template = await make_template(server.url)
            async with cloned(server.url, template) as url:
                return await _disk(url)

        found = asyncio.run(disk())
        asyncio.run(migrate(server.url))
        return {**found, "connections_at_rest": _connections(server.url)}
