"""`make bench`: measures and prints; asserts nothing about time.

`python -m tests.bench [ingest] [profiles] [latency] [idle]`; without a name all of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from tests.bench import idle, ingest, latency, profiles

BENCHES: dict[str, Callable[[], dict[str, Any]]] = {
    "ingest": ingest.measure,
    "profiles": lambda: asyncio.run(profiles.measure()),
    "latency": latency.measure,
    "idle": idle.measure,
}


def main(names: list[str]) -> None:
    for name in names or BENCHES:
        print(f"── {name}: {(sys.modules[f'tests.bench.{name}'].__doc__ or '').strip().splitlines()[0]}", flush=True)
        print(json.dumps(BENCHES[name](), indent=2), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
