"""What an idle server costs: memory (PSS, database included) and CPU, after ten seconds of rest."""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from tests.bench.servers import dripline

REST, WATCH = 10.0, 30.0  # seconds


def _family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes if process.is_running())


def measure() -> dict[str, Any]:
    with TemporaryDirectory(prefix="dripline-bench-") as folder:
        os.chmod(folder, 0o755)
        with dripline(Path(folder), {}) as server:
            time.sleep(REST)
            before, began = _cpu(_family(server.process.pid)), time.monotonic()
            time.sleep(WATCH)
            spent = _cpu(_family(server.process.pid)) - before
            memory = {f"{p.name()} {p.pid}": p.memory_full_info().pss for p in _family(server.process.pid)}
            return {
                "pss_mb": round(sum(memory.values()) / 1e6, 1),
                "pss_of_python_mb": round(sum(v for k, v in memory.items() if not k.startswith("postgres")) / 1e6, 1),
                "processes": len(memory),
                "cpu_percent_of_a_core": round(100 * spent / (time.monotonic() - began), 1),
            }
