"""The watermark's promise under load: once it has passed F, nothing that is learned at or before F appears any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from services.first_start import make_credentials
from services.run import Server, run
from shared.marks import BEGINNING
from shared.settings import load
from tests.support.wait import until

SECONDS, MOST_SECONDS = 6.0, 60.0
PEOPLE = 40


@asynccontextmanager
async def server_in_real_time(database_url: str, folder: Path) -> AsyncIterator[tuple[Server, dict[str, Any]]]:
    settings = load(database_url=database_url, data_dir=folder, port=0, partitions=4, linger_ms=5, mark_interval_ms=50)
    there: asyncio.Future[tuple[Server, dict[str, Any]]] = asyncio.get_running_loop().create_future()
    finished = asyncio.Event()

    async def ready(server: Server) -> None:
        there.set_result((server, await make_credentials(server.context, server.origin) or {}))
        await finished.wait()

    task = asyncio.create_task(run(settings, database_url, ready=ready))
    await asyncio.wait({task, there}, return_when=asyncio.FIRST_COMPLETED)
    if not there.done():
        await task
    try:
        yield there.result()
    finally:
        finished.set()
        await task


async def post_for_a_while(server: Server, keys: dict[str, Any], enough: Callable[[], bool]) -> int:
    """Events of people whom logins and merges tie together, so that rows of several partitions meet; how many. For some
    seconds, and on a machine that is busy for as long as it takes to see enough."""
    loop, count = asyncio.get_running_loop(), 0
    began = loop.time()
    async with httpx.AsyncClient(base_url=server.origin, timeout=30, auth=(keys["server_write_key"], "")) as client:
        while loop.time() < began + SECONDS or not (enough() or loop.time() > began + MOST_SECONDS):
            batch = []
            for _ in range(10):
                person = count % PEOPLE
                event: dict[str, Any] = {
                    "type": "track",
                    "event": "Product Viewed",
                    "anonymousId": f"a-{count % (3 * PEOPLE)}",
                    "properties": {"product_id": f"p-{count}"},
                }
                if count % 7 == 0:
                    event["userId"] = f"u-{person}"
                batch.append(event)
                count += 1
            (await client.post("/v1/batch", json={"batch": batch})).raise_for_status()
    return count


async def merge_by_hand(server: Server, keys: dict[str, Any], stop: asyncio.Event) -> int:
    """What the API writes is learned, too, without a record of `events`; how many merges there were."""
    merged = 0
    bearer = {"Authorization": f"Bearer {keys['api_key']}"}
    async with httpx.AsyncClient(base_url=server.origin, timeout=30, headers=bearer) as client:
        while not stop.is_set():
            found = [
                (await client.get("/v1/profiles", params={"anonymous_id": f"a-{number}"})).json()["items"]
                for number in (merged, merged + PEOPLE)
            ]
            if all(found) and found[0][0]["id"] != found[1][0]["id"]:
                ids = [one[0]["id"] for one in found]
                merged += (await client.post("/v1/profiles/merge", json={"profiles": ids})).is_success
            await asyncio.sleep(0)
    return merged


COUNT = """
    SELECT (SELECT count(*) FROM profile.event WHERE learned_at <= $1)
         + (SELECT count(*) FROM profile.membership WHERE from_at <= $1)
         + (SELECT count(*) FROM profile.membership WHERE to_at <= $1)
"""


async def test_nothing_learned_before_the_watermark_appears_behind_it(database_url: str, tmp_path: Path) -> None:
    seen: dict[datetime, int] = {}
    async with server_in_real_time(database_url, tmp_path) as (server, keys):
        connection = await asyncpg.connect(database_url)
        stop = asyncio.Event()
        merging = asyncio.create_task(merge_by_hand(server, keys, stop))
        posting = asyncio.create_task(
            post_for_a_while(server, keys, lambda: len(seen) > 10 and len(set(seen.values())) > 5)
        )
        while not posting.done():
            watermark = await connection.fetchval("SELECT value FROM platform.watermark")
            if watermark is not None and watermark > BEGINNING and watermark not in seen:
                seen[watermark] = await connection.fetchval(COUNT, watermark)
            await asyncio.sleep(0.005)
        posted = await posting
        stop.set()
        merges = await merging

        async def all_applied() -> bool:
            return await connection.fetchval("SELECT count(*) FROM profile.event") >= posted

        await until(all_applied, limit=60, what="every event is stored")
        late = {w: (n, m) for w, n in seen.items() if (m := await connection.fetchval(COUNT, w)) != n}
        await connection.close()
    assert late == {}, "rows appeared behind the watermark"
    assert len(seen) > 10
    assert len(set(seen.values())) > 5, "the watermark must have moved among the events, not before or behind them"
    assert posted > 200
    assert merges > 0
