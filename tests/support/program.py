"""`dripline` as an operator runs it: the installed program, a process of its own, told by its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("dripline")
LONGEST = 120.0  # seconds


@dataclass(frozen=True)
class Ended:
    """`out` is what it was asked for, `said` what it tells the person at the terminal (without lines of the log)."""

    status: int
    out: str
    said: str

    @property
    def sentence(self) -> str:
        """The one line that a mistake ends with."""
        lines = self.said.splitlines()
        assert (self.status, len(lines)) == (1, 1), f"ended with {self.status}: {self.out}\n{self.said}"
        return lines[0]


def dripline(*arguments: str, folder: Path | None = None, **environment: str) -> Ended:
    """Runs it to its end.

    :param folder: where it is started, by default where we are; :param environment: on top of ours
    """
    done = subprocess.run(
        [PROGRAM, *arguments],
        cwd=folder,
        env={**os.environ, "LOG_FORMAT": "json", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST,
    )
    said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("{"))
    return Ended(done.returncode, done.stdout, said)
