"""A server of one's own in this process, with the services one names, and a client that posts events to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from services.ingest.bootstrap import Credentials, first_sources
from services.run import Server, run
from shared.auth import create_key
from shared.events import EVENTS, Event, decode_event
from shared.settings import load


class Running:
    """A server as its clients and its owner see it."""

    def __init__(self, server: Server, http: httpx.AsyncClient, keys: Credentials, api_key: str) -> None:
        self.server, self.http, self.keys = server, http, keys
        self.owner = {"Authorization": f"Bearer {api_key}"}

    async def post(self, path: str, body: Any, key: str | None = None, **more: Any) -> httpx.Response:
        """Posts with HTTP Basic; the secret key unless another is named."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        auth = httpx.BasicAuth(key or self.keys.server_write_key, "")
        return await self.http.post(path, content=content, auth=auth, **more)

    async def events(self, topic: str = EVENTS) -> list[Event]:
        """Everything that is durable in a bus topic."""
        bus = self.server.context.bus
        positions = await bus.beginnings(topic)
        found = await bus.fetch(topic, positions, limit=10_000, wait=0)
        records = [record for batch in found.values() for record in batch]
        assert all(record.key == str(decode_event(record.value).origin).encode() for record in records)
        return sorted((decode_event(record.value) for record in records), key=lambda event: event.received_at)

    async def letters(self, **wanted: str) -> list[dict[str, Any]]:
        answer = await self.http.get("/v1/dead-letters", headers=self.owner, params=wanted)
        assert answer.status_code == 200, answer.text
        return answer.json()["items"]

    async def replay(self, letter: dict[str, Any], body: Any = None) -> httpx.Response:
        content = None if body is None else {"body": body}
        return await self.http.post(f"/v1/dead-letters/{letter['id']}/replay", json=content, headers=self.owner)


@asynccontextmanager
async def server_over(database_url: str, **settings: Any) -> AsyncIterator[Server]:
    """The whole process's code on a free port; the service ingest alone, unless others are named."""
    ready: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def hand_over(server: Server) -> None:
        ready.set_result(server)
        await over.wait()

    chosen = load(**{"services": "ingest", "port": 0, "partitions": 4, **settings})
    process = asyncio.create_task(run(chosen, database_url, ready=hand_over))
    await asyncio.wait({process, ready}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if process.done():
            process.result()
        yield await ready
    finally:
        over.set()
        await process


@asynccontextmanager
async def serving(database_url: str, **settings: Any) -> AsyncIterator[Running]:
    async with server_over(database_url, **settings) as server:
        context = server.context
        keys = await first_sources(context.database, context.clock, context.bits)
        assert keys is not None
        async with context.database.transaction() as tx:
            _, api_key = await create_key(tx, "test", "admin", context.clock.now())
        async with httpx.AsyncClient(base_url=server.origin, timeout=20) as http:
            yield Running(server, http, keys, api_key)


@asynccontextmanager
async def another_server(database_url: str, first: Running) -> AsyncIterator[Running]:
    """Another server over the same database; it has its own cache of keys."""
    async with server_over(database_url) as server, httpx.AsyncClient(base_url=server.origin, timeout=20) as http:
        yield Running(server, http, first.keys, first.owner["Authorization"].split()[1])
