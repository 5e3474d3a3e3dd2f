"""What the providers of tests have in common: a process of its own on a port, told how to behave and read by files in a
folder, so that it can be killed, frozen and started again.

A peer is a module that is run by `python -m` with `--port`, `--folder` and `--parent`. It writes `ledger.jsonl` before its
answer leaves; a steered one reads `behaviour.json` before each answer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from tests.support.wait import until_blocking

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PeerProcess:
    """The test's side: starts and reads the peer. The port stays the same over `kill` and `start`."""

    module: ClassVar[str]

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"dripline-test-{self.module.rpartition('.')[2]}-"))
        self.ledger = self.folder / "ledger.jsonl"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def arguments(self) -> list[str]:
        """What the peer's module is told besides port, folder and parent."""
        return []

    def start(self) -> None:
        """Start the process and wait until it answers."""
        arguments = ["--port", str(self.port), "--folder", str(self.folder), "--parent", str(os.getpid())]
        command = [sys.executable, "-m", self.module, *arguments, *self.arguments()]
        self._process = subprocess.Popen(command, cwd=ROOT)
        until_blocking(self._is_up, what=f"{self.module} answers")

    def kill(self) -> None:
        """SIGKILL: connections break in the middle."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """An orderly end."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: its connections stand, and nobody answers on them, as behind a router that has forgotten them."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        until_blocking(self._stands, what=f"{self.module} stands")

    def thaw(self) -> None:
        """Goes on after `freeze`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def entries(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The ledger, whole or the entries of one kind, in the order of events."""
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [entry for entry in found if kind in (None, entry["kind"])]

    def answers(self) -> bool:
        """Whether the process that is up takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _stands(self) -> bool:
        """Whether each of its threads has heard the signal: one that runs on another processor may answer meanwhile."""
        assert self._process is not None
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(") ")[2].startswith("T") for stat in threads)

    def _is_up(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise AssertionError(f"{self.module} ended at once")
        return self.answers()

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class SteeredPeer(PeerProcess):
    """A peer that behaves as it is told, until it is told otherwise."""

    # A dataclass whose fields have defaults: how the peer behaves if nobody says anything.
    behaviours: ClassVar[type[Any]]

    def __init__(self) -> None:
        super().__init__()
        self.behaviour = self.behaviours()

    def start(self) -> None:
        self.behave()
        super().start()

    def behave(self, **changes: Any) -> None:
        """Change the behaviour from now on. Fields of the peer's `Behaviour`."""
        self.behaviour = self.behaviours(**{**asdict(self.behaviour), **changes})
        unfinished = self.folder / "behaviour.new"
        unfinished.write_text(json.dumps(asdict(self.behaviour)))
        unfinished.replace(self.folder / "behaviour.json")

    def reset(self) -> None:
        """An empty ledger and good behaviour, for the next test."""
        self.behaviour = self.behaviours()
        self.behave()
        if self.ledger.exists():
            os.truncate(self.ledger, 0)
