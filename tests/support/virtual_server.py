"""The whole server in this process, on virtual time: for tests that let weeks pass and look at what was decided when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from services.first_start import make_credentials
from services.run import Server, run
from services.virtual import VirtualTime
from shared.clock import VirtualClock
from shared.settings import load


@dataclass
class VirtualServer:
    """A server whose clock the test moves. `keys`: as in credentials.json; `http` speaks to its port."""

    server: Server
    time: VirtualTime
    keys: dict[str, Any]
    http: httpx.AsyncClient

    async def post(self, *events: dict[str, Any]) -> None:
        """Events of the secret source, now; returns once they are durable."""
        answer = await self.http.post(
            "/v1/batch", json={"batch": list(events)}, auth=(self.keys["server_write_key"], "")
        )
        assert answer.status_code == 200, answer.text

    async def activate(self, rule: str) -> None:
        """A rule's text; in virtual time it counts from the next slice on."""
        answer = await self.http.post("/v1/rules", params={"activate": True}, content=rule, headers=self.bearer)
        assert answer.status_code == 201, answer.text

    async def list(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        """All pages of a list of the management API."""
        items: list[dict[str, Any]] = []
        cursor = None
        while True:
            chosen = {"limit": 200, **parameters, **({"cursor": cursor} if cursor else {})}
            answer = await self.http.get(path, params=chosen, headers=self.bearer)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            items += page["items"]
            if (cursor := page["next"]) is None:
                return items

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys['api_key']}"}


@asynccontextmanager
async def virtual_server(
    database_url: str, folder: Path, start: datetime, **settings: Any
) -> AsyncIterator[VirtualServer]:
    """All four services over an empty database; the clock stands at `start`. `settings`: fields of Settings."""
    clock = VirtualClock(start)
    chosen = load(
        **{"database_url": database_url, "data_dir": folder, "port": 0, "partitions": 4, "linger_ms": 0, **settings}
    )
    running: asyncio.Future[VirtualServer] = asyncio.get_running_loop().create_future()
    finished = asyncio.Event()

    async def ready(server: Server) -> None:
        keys = await make_credentials(server.context, server.origin)
        assert keys is not None, "the database is not empty"
        time = VirtualTime(server, clock)
        async with httpx.AsyncClient(base_url=server.origin, timeout=60) as http:
            running.set_result(VirtualServer(server, time, keys, http))
            await finished.wait()

    task = asyncio.create_task(run(chosen, database_url, clock=clock, ready=ready))
    await asyncio.wait({task, running}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await task  # raises what kept the server from starting
    try:
        yield running.result()
    finally:
        finished.set()
        await task
