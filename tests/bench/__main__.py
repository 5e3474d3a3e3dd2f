"""`make bench`: measures and prints; asserts nothing about time.

`python -m tests.bench [ingest] [profiles] [latency] [dead_provider] [idle] [room]`; without a name all of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvloop

from tests.bench import dead_provider, idle, ingest, latency, profiles, room


def _on_the_servers_loop(measured: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measured)


# Each yields what it has found as soon as it is known.
BENCHES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "ingest": lambda: iter([ingest.measure()]),
    "profiles": lambda: iter([_on_the_servers_loop(profiles.measure())]),
    "latency": latency.measure,
    "dead_provider": dead_provider.measure,
    "idle": lambda: iter([idle.measure()]),
    "room": lambda: iter([room.measure()]),
}


def main(names: list[str]) -> None:
    for name in names or BENCHES:
        print(f"── {name}: {(sys.modules[f'tests.bench.{name}'].__doc__ or '').strip().splitlines()[0]}", flush=True)
        for found in BENCHES[name]():
            print(json.dumps(found, indent=2), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
