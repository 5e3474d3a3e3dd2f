"""An orderly end: told to stop (SIGTERM), a process first says that it is not ready any more, goes on answering for
DRAIN_SECONDS so that whoever sends it requests hears of it, answers what is under way, lets its senders end their exchanges
and gives its leases back at once. It ends within LIMIT seconds, whatever hangs: everything it does survives a kill.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading

import structlog

log = structlog.get_logger(__name__)
LIMIT = 28.0  # seconds after the drain; Kubernetes kills after 30 by default


class Drain:
    """`seconds`: how long requests are still taken after the first SIGTERM. `began`: whether it came."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = False
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Not ready from now on; the time limit runs."""
        if self.began:
            return
        self.began = True
        log.info("drain.began", seconds=self.seconds)
        self._timer = threading.Timer(self.seconds + LIMIT, _end)
        self._timer.daemon = True
        self._timer.start()

    def ended(self) -> None:
        """Everything is closed: the time limit is off."""
        if self._timer is not None:
            self._timer.cancel()
            log.info("drain.ended")


def _end() -> None:
    """Ends the process as a kill would, with every thread's stack in the log."""
    faulthandler.dump_traceback(file=sys.stderr)
    os._exit(70)
