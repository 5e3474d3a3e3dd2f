"""A real server as a process, pinned to a core, with a data folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

SERVER_CORE, LOAD_CORE = 0, 1


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    port: int
    data: Path
    credentials: dict[str, Any]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def on_core(core: int | None, command: list[str]) -> list[str]:
    """The command, held on one core where the machine can do that."""
    taskset = shutil.which("taskset")
    if core is None or taskset is None or (os.cpu_count() or 1) < 2:
        return command
    return [taskset, "-c", str(core), *command]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until_answers(url: str, process: subprocess.Popen[bytes], limit: float = 60.0) -> None:
    """Waits until the URL answers; raises when the process has ended or the limit is over."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            with urlopen(url, timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"{url} did not answer within {limit:g} s")


@contextmanager
def dripline(folder: Path, settings: dict[str, str], core: int | None = None) -> Iterator[Running]:
    """`dripline up` with these settings; ends with the block."""
    port = free_port()
    data = folder / "data"
    environment = {**os.environ, **settings, "PORT": str(port), "DATA_DIR": str(data), "LOG_LEVEL": "warning"}
    process = subprocess.Popen(on_core(core, [sys.executable, "-m", "services", "up"]), env=environment)
    try:
        until_answers(f"http://127.0.0.1:{port}/livez", process)
        credentials: dict[str, Any] = {}
        deadline = time.monotonic() + 20
        while not credentials and time.monotonic() < deadline:
            try:
                credentials = json.loads((data / "credentials.json").read_text())
            except (OSError, ValueError):
                time.sleep(0.05)
        yield Running(process, port, data, credentials)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
