"""`make bench`: measures and prints; asserts nothing about time.

`python -m tests.bench [ingest] [profiles] [latency] [idle] [room]`; without a name all of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tests.bench import idle, ingest, latency, profiles, room

# Each yields what it has found as soon as it is known.
BENCHES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "ingest": lambda: iter([ingest.measure()]),
    "profiles": lambda: iter([asyncio.run(profiles.measure())]),
    "latency": latency.measure,
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
