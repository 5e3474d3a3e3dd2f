"""Wake-ups between processes: names go out by NOTIFY, at most every 10 ms, and come in by LISTEN, each on a connection
of its own. Losing the connection loses wake-ups, never records: every waiter has a fallback."""

from __future__ import annotations

import asyncio

import asyncpg

from shared import db
from shared.clock import pause
from shared.errors import is_transient
from shared.service import Loop
from shared.wake import CHANNEL, Wake

INTERVAL = 0.01  # seconds between two NOTIFYs


class Notifier:
    """One a process."""

    def __init__(self, url: str, member: str, wake: Wake) -> None:
        self._url, self._member, self._wake = url, member, wake
        self._own_pids: set[int] = set()

    def loops(self) -> dict[str, Loop]:
        return {"notify": self._send, "listen": self._hear}

    async def _send(self) -> None:
        connection = await db.connect(self._url, f"{self._member}/notify")
        self._own_pids = {connection.get_server_pid()}
        try:
            while True:
                names = await self._wake.outgoing()
                await connection.execute("SELECT pg_notify($1, name) FROM unnest($2::text[]) AS name", CHANNEL, names)
                await pause(INTERVAL)
        finally:
            connection.terminate()

    async def _hear(self) -> None:
        lost = asyncio.Event()

        def heard(_connection: asyncpg.Connection, pid: int, _channel: str, name: str) -> None:
            if pid not in self._own_pids:
                self._wake.signal(name, remote=False)

        connection = await db.connect(self._url, f"{self._member}/listen")
        connection.add_termination_listener(lambda _connection: lost.set())
        try:
            await connection.add_listener(CHANNEL, heard)
            await lost.wait()
        except Exception as problem:
            if not is_transient(problem):
                raise
        finally:
            connection.terminate()
