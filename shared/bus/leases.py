"""Leases in PostgreSQL: who reads which partition, who runs a job that must run once. They only save work; the fence is
the compare-and-set of positions.

Leases last a few seconds by the database's clock and are renewed every second, all in a few statements, on a connection
of their own outside any pool. Whoever takes over an expired lease first terminates the former holder's back ends: a
process that stopped inside a transaction has people's rows locked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import asyncpg
import structlog

from shared import db
from shared.errors import is_transient
from shared.metrics import LEASES_HELD, TAKEOVERS

log = structlog.get_logger(__name__)


class LeasePool:
    """The leases of one kind of work, shared fairly by the members that ask for them."""

    def __init__(self, leases: Leases, name: str, names: Iterable[str]) -> None:
        self._leases = leases
        self.name = name
        self.names = sorted(names)
        self._held: frozenset[str] = frozenset()
        self.changed = asyncio.Event()

    @property
    def held(self) -> frozenset[str]:
        """What this member holds now; nothing when the last renewal is too long ago to be sure."""
        return self._held if self._leases.fresh else frozenset()

    def _set(self, held: frozenset[str]) -> None:
        if held != self._held:
            self._held = held
            self.changed.set()
        LEASES_HELD.labels(self.name).set(len(held))


class Leases:
    """One a process. `run` is its loop."""

    def __init__(self, url: str, member: str, seconds: float = 3.0) -> None:
        self._url, self._member, self._seconds = url, member, seconds
        self._pools: dict[str, LeasePool] = {}
        self._connection: asyncpg.Connection | None = None
        self._renewed = 0.0
        self._again = asyncio.Event()

    @property
    def fresh(self) -> bool:
        return time.monotonic() - self._renewed < self._seconds

    def pool(self, name: str, names: Iterable[str]) -> LeasePool:
        """Asks for a fair share of `names` from the next renewal on."""
        pool = self._pools[name] = LeasePool(self, name, names)
        self._again.set()
        return pool

    async def run(self) -> None:
        """Renews until cancelled; then gives everything back, so that the others need not wait."""
        try:
            while True:
                try:
                    await self._renew()
                except Exception as problem:
                    if not is_transient(problem):
                        raise
                    log.warning("leases.renewal_failed", error=type(problem).__name__)
                    await self._disconnect()
                self._again.clear()
                try:
                    async with asyncio.timeout(self._seconds / 3):
                        await self._again.wait()
                except TimeoutError:
                    pass
        finally:
            await self._give_back()

    async def _renew(self) -> None:
        if self._connection is None or self._connection.is_closed():
            self._connection = await db.connect(
                self._url, f"{self._member}/leases", lock_timeout="1s", statement_timeout="2s"
            )
        started = time.monotonic()
        pools = dict(self._pools)
        if not pools:
            return
        held, live = await self._hold(self._connection, pools)
        for name, pool in pools.items():
            mine = held.get(name, frozenset())
            fair = -(-len(pool.names) // max(1, live.get(name, 1)))
            if len(mine) > fair:
                mine -= await self._release(self._connection, sorted(mine)[fair:])
            elif len(mine) < fair:
                mine |= await self._take(self._connection, pool, fair - len(mine))
            pool._set(mine)
        self._renewed = started

    async def _hold(
        self, connection: asyncpg.Connection, pools: dict[str, LeasePool]
    ) -> tuple[dict[str, frozenset[str]], dict[str, int]]:
        """Renews members and leases of all pools; returns what is held and how many members each pool has."""
        until = self._seconds
        async with connection.transaction():
            await connection.execute(
                """
                INSERT INTO platform.member (pool, member, expires_at)
                SELECT pool, $2, clock_timestamp() + make_interval(secs => $3) FROM unnest($1::text[]) AS pool ORDER BY 1
                ON CONFLICT (pool, member) DO UPDATE SET expires_at = excluded.expires_at
                """,
                sorted(pools),
                self._member,
                until,
            )
            rows = await connection.fetch(
                """
                WITH mine AS (
                    SELECT name FROM platform.lease
                    WHERE holder = $1 AND pool = ANY($2) AND expires_at > clock_timestamp() ORDER BY name FOR UPDATE
                )
                UPDATE platform.lease l SET expires_at = clock_timestamp() + make_interval(secs => $3)
                FROM mine WHERE l.name = mine.name RETURNING l.pool, l.name
                """,
                self._member,
                list(pools),
                until,
            )
            live = await connection.fetch(
                "SELECT pool, count(*) FROM platform.member WHERE pool = ANY($1) AND expires_at > clock_timestamp() GROUP BY 1",
                list(pools),
            )
        held: dict[str, set[str]] = {}
        for pool, name in rows:
            held.setdefault(pool, set()).add(name)
        return {pool: frozenset(names) for pool, names in held.items()}, dict(live)

    async def _take(self, connection: asyncpg.Connection, pool: LeasePool, count: int) -> frozenset[str]:
        async with connection.transaction():
            await connection.execute(
                """
                INSERT INTO platform.lease (name, pool) SELECT name, $2 FROM unnest($1::text[]) AS name ORDER BY 1
                ON CONFLICT DO NOTHING
                """,
                pool.names,
                pool.name,
            )
            rows = await connection.fetch(
                """
                WITH free AS (
                    SELECT name, holder FROM platform.lease
                    WHERE pool = $1 AND name = ANY($5) AND (holder IS NULL OR expires_at < clock_timestamp())
                    ORDER BY name LIMIT $2 FOR UPDATE SKIP LOCKED
                )
                UPDATE platform.lease l SET holder = $3, expires_at = clock_timestamp() + make_interval(secs => $4)
                FROM free WHERE l.name = free.name RETURNING l.name, free.holder
                """,
                pool.name,
                count,
                self._member,
                self._seconds,
                pool.names,
            )
        former = sorted({holder for _, holder in rows if holder and holder != self._member})
        if former:
            await self._terminate(connection, former)
        return frozenset(name for name, _ in rows)

    async def _terminate(self, connection: asyncpg.Connection, former: list[str]) -> None:
        """Ends the back ends of members whose leases ran out, and waits for them to be gone (2 s at most)."""
        count = await connection.fetchval(
            """
            SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 500)) FROM pg_stat_activity
            WHERE application_name = ANY($1) AND pid <> pg_backend_pid() AND datname = current_database()
            """,
            former,
        )
        TAKEOVERS.inc()
        log.warning("leases.taken_over", former=former, back_ends_terminated=count)

    async def _release(self, connection: asyncpg.Connection, names: list[str]) -> frozenset[str]:
        await connection.execute(
            "UPDATE platform.lease SET holder = NULL, expires_at = NULL WHERE name = ANY($1) AND holder = $2",
            names,
            self._member,
        )
        return frozenset(names)

    async def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _give_back(self) -> None:
        for pool in self._pools.values():
            pool._set(frozenset())
        try:
            connection = self._connection
            if connection is not None and not connection.is_closed():
                await connection.execute(
                    "UPDATE platform.lease SET holder = NULL, expires_at = NULL WHERE holder = $1", self._member
                )
                await connection.execute("DELETE FROM platform.member WHERE member = $1", self._member)
                await connection.close(timeout=2)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as problem:
            log.info("leases.not_given_back", error=type(problem).__name__)
