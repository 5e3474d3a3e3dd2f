"""`postmaster.pid` of a cluster: what a server that runs, or was killed, says of itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class PostmasterFile:
    """The file's lines: process id, cluster, start, port, folder of the socket, address, shared memory, state."""

    lines: tuple[str, ...] = ()

    @classmethod
    def of(cls, cluster: Path) -> Self:
        """As it is now; without lines if there is none."""
        try:
            return cls(tuple((cluster / "postmaster.pid").read_text(errors="replace").splitlines()))
        except FileNotFoundError:
            return cls()

    @property
    def process(self) -> str:
        """The server's process id, for a sentence."""
        return self.lines[0] if self.lines else "unknown"

    @property
    def is_ready(self) -> bool:
        """Whether the server said that it answers; one that was killed leaves that behind."""
        return len(self.lines) > 7 and self.lines[7].strip() == "ready"

    @property
    def port(self) -> int:
        """Of a server that is ready."""
        return int(self.lines[3])

    @property
    def socket_folder(self) -> str:
        """Of a server that is ready; empty if it listens on a port only."""
        return self.lines[4]

    @property
    def lives(self) -> bool:
        """Whether there is a process of that id."""
        try:
            os.kill(int(self.process), 0)
        except (ProcessLookupError, ValueError):
            return False
        except PermissionError:
            return True
        return True
