"""Wake-ups between processes: names go out by NOTIFY, at most every 10 ms, and come in by LISTEN, each on a connection
of its own. Losing the connection loses wake-ups, never records: every waiter has a fallback."""

from __future__ import annotations

import asyncio
import time

import asyncpg

from shared import db
from shared.clock import pause
from shared.errors import is_transient
from shared.service import Loop
from shared.wake import CHANNEL, Wake

INTERVAL = 0.01  # seconds between two NOTIFYs
LOOK_AROUND = 1.0  # seconds between two looks for other processes
OTHERS = "SELECT EXISTS (SELECT 1 FROM platform.member WHERE member <> $1 AND expires_at > clock_timestamp())"


class Notifier:
    """One a process."""

    def __init__(self, url: str, member: str, wake: Wake) -> None:
        self._url, self._member, self._wake = url, member, wake
        self._own_pids: set[int] = set()

    def loops(self) -> dict[str, Loop]:
        return {"notify": self._send, "listen": self._hear}

    async def _send(self) -> None:
        """Sends only while there is another process to hear it; one that has just come looks by itself at first."""
        connection = await db.connect(self._url, f"{self._member}/notify")
        self._own_pids = {connection.get_server_pid()}
        heard, asked = True, -LOOK_AROUND
        try:
            while True:
                names = await self._wake.outgoing()
                if time.monotonic() - asked > LOOK_AROUND:
                    heard, asked = await connection.fetchval(OTHERS, self._member), time.monotonic()
                if heard:
                    await connection.execute(
                        "SELECT pg_notify($1, name) FROM unnest($2::text[]) AS name", CHANNEL, names
                    )
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
