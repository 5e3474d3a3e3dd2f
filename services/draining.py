"""An orderly end: told to stop (SIGTERM), a process first says that it is not ready any more, goes on answering for
DRAIN_SECONDS so that whoever sends it requests hears of it, answers what is under way, lets its senders end their exchanges
and gives its leases back at once. It ends within LIMIT seconds, whatever hangs: everything it does survives a kill.

Where the database is gone too, as when a whole machine goes down, it is not waited for, nor are the providers, whose answers
could not be kept.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading

import asyncpg
import structlog

from shared import db
from shared.clock import pause

log = structlog.get_logger(__name__)
LIMIT = 28.0  # seconds after the drain; Kubernetes kills after 30 by default
DATABASE_SECONDS = 3.0  # that a database which does not answer may take to be back, when all requests are answered
BROKEN_OFF = 70  # exit status
# It is not there, or goes; the first one also while it starts.
_AWAY = (asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)


class Drain:
    """`seconds`: how long requests are still taken after the first SIGTERM. `began`: whether it came."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = False
        self._timer: threading.Timer | None = None
        self._looking: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Not ready from now on; the time limit runs."""
        if self.began:
            return
        self.began = True
        log.info("drain.began", seconds=self.seconds)
        self._timer = threading.Timer(self.seconds + LIMIT, _end)
        self._timer.daemon = True
        self._timer.start()

    def look_after(self, database: db.Database) -> None:
        """From now on what hangs may hang at this database: without it the process is at its end."""
        if self.began:
            self._looking = asyncio.create_task(self._end_without(database))

    async def _end_without(self, database: db.Database) -> None:
        if not await _answers(database):
            log.warning(
                "drain.database_gone",
                said="The database does not answer: the process ends without it, and without waiting for providers.",
            )
            os._exit(BROKEN_OFF)

    def ended(self) -> None:
        """Everything is closed: the time limit is off."""
        if self._looking is not None:
            self._looking.cancel()
        if self._timer is not None:
            self._timer.cancel()
            log.info("drain.ended")


async def _answers(database: db.Database) -> bool:
    """Whether it takes a new connection within DATABASE_SECONDS; an open one hides much."""
    try:
        async with asyncio.timeout(DATABASE_SECONDS):
            while True:
                try:
                    connection = await db.connect(database.url, f"{database.member}/ending")
                except _AWAY:
                    await pause(0.2)
                except asyncpg.PostgresError:
                    return True  # it refuses us, so it is there
                else:
                    connection.terminate()
                    return True
    except TimeoutError:
        return False


def _end() -> None:
    """Ends the process as a kill would, with every thread's stack in the log."""
    faulthandler.dump_traceback(file=sys.stderr)
    os._exit(BROKEN_OFF)
