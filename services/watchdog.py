"""A thread of its own that watches the event loop and the consumers: /livez fails when polling or handling stands still.

A consumer that waits for records polls every second; one that has not come back for a minute is stuck, whatever the
reason, and a supervisor should start the process anew. When the event loop itself stands still nothing can answer
/livez at all; the thread then writes every thread's stack into the log, once.
"""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import threading
import time
from collections.abc import Callable

import structlog

from shared.service import Service

log = structlog.get_logger(__name__)
BEAT = 1.0  # seconds
LOOP_LIMIT = 15.0  # seconds without a beat of the event loop
POLL_LIMIT = 60.0  # seconds without a poll of a consumer


class Watchdog:
    """`reason` is None while all is well."""

    def __init__(self, services: Callable[[], list[Service]]) -> None:
        self._services = services
        self._beat = time.monotonic()
        self._stopped = threading.Event()
        self._dumped = False
        self.reason: str | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(BEAT):
            try:
                self._loop.call_soon_threadsafe(self._mark)
            except RuntimeError:  # the loop is closed: the process is ending
                return
            self.reason = self._look(time.monotonic())

    def _mark(self) -> None:
        self._beat = time.monotonic()

    def _look(self, now: float) -> str | None:
        if now - self._beat > LOOP_LIMIT:
            if not self._dumped:
                self._dumped = True
                faulthandler.dump_traceback(sys.stderr)
            return f"the event loop has stood still for {now - self._beat:.0f} s"
        for service in self._services():
            for name, polled in service.polls().items():
                if now - polled > POLL_LIMIT:
                    return f"{service.name}: {name} has not come back for {now - polled:.0f} s"
        return None
