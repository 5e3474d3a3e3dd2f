"""What only the log table has to keep: days."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import asyncpg
import pytest

from shared.bus import postgres
from shared.bus.base import Bus, OutOfRange
from shared.bus.postgres import PostgresBus
from shared.db import Database
from shared.errors import is_transient
from shared.wake import Wake
from tests.contracts.conftest import OTHER_TOPIC, PARTITIONS, TOPIC, PostgresWorld, World
from tests.contracts.test_bus import record


@pytest.fixture
def kind() -> str:
    return "postgres"


@pytest.mark.parametrize("table", ["bus.record_1", "bus.record_default"])
async def test_an_old_day_is_kept_until_everything_of_it_is_handled(world: World, table: str) -> None:
    bus = await world.open()
    await bus.append([record(str(n), str(n)) for n in range(40)])
    first, ends = await bus.beginnings(TOPIC), await bus.ends(TOPIC)
    await _as_if_of_day_one(world, own_table=table == "bus.record_1")

    await bus.maintain({TOPIC: ends | {1: ends[1] - 1}, OTHER_TOPIC: await bus.ends(OTHER_TOPIC)})
    kept = await bus.fetch(TOPIC, first, limit=100, wait=1)
    assert sum(len(records) for records in kept.values()) == 40

    await bus.maintain({TOPIC: ends})
    assert await bus.beginnings(TOPIC) == ends
    with pytest.raises(OutOfRange):
        await (await world.open("fresh")).fetch(TOPIC, first, limit=100, wait=1)
    await bus.append([record("later", "later")])
    later = await bus.fetch(TOPIC, ends, limit=100, wait=1)
    assert [one.value for records in later.values() for one in records] == [b"later"]


async def test_a_day_of_which_no_reader_has_said_anything_is_kept(world: World) -> None:
    bus = await world.open()
    await bus.append([record("one", "one")])
    first = await bus.beginnings(TOPIC)
    await _as_if_of_day_one(world, own_table=True)
    await bus.maintain({})
    assert await bus.fetch(TOPIC, {p: first[p] for p in range(PARTITIONS)}, limit=100, wait=1)


async def test_a_statement_that_hangs_does_not_keep_the_bus_from_closing(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(postgres, "CLOSE_SECONDS", 0.2)
    bus = await world.open()
    backends = await _backends(world)
    for backend in backends:
        os.kill(backend, signal.SIGSTOP)
    try:
        await _closes_and_tells_who_appended(bus)
    finally:
        for backend in backends:
            os.kill(backend, signal.SIGCONT)
    assert capsys.readouterr().out.count("bus.not_flushed") == 1


async def test_a_server_that_takes_connections_and_says_nothing_does_not_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres, "CLOSE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://nobody:secret@127.0.0.1:{silent.getsockname()[1]}/nothing"
        pool = await asyncpg.create_pool(url, min_size=0, max_size=1)
        await _closes_and_tells_who_appended(
            PostgresBus(Database(pool, url, "one", None), Wake(), {TOPIC: ("epoch", PARTITIONS)})
        )


async def _closes_and_tells_who_appended(bus: Bus) -> None:
    """Nobody is left to wait, and all are told that trying again may help."""
    appending = [asyncio.create_task(bus.append([record(name, name)])) for name in ("one", "two")]
    await asyncio.sleep(0)  # they are with the flusher
    async with asyncio.timeout(5):
        await bus.close()
        said = await asyncio.gather(*appending, return_exceptions=True)
    assert all(isinstance(one, Exception) and is_transient(one) for one in said), said


async def _backends(world: World) -> list[int]:
    """The server's processes for the connections of the bus."""
    connection = await asyncpg.connect(world.url)
    try:
        rows = await connection.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
    finally:
        await connection.close()
    return [row["pid"] for row in rows]


async def _as_if_of_day_one(world: World, own_table: bool) -> None:
    assert isinstance(world, PostgresWorld)
    connection = await asyncpg.connect(world.url)
    try:
        if own_table:
            await connection.execute("CREATE TABLE bus.record_1 PARTITION OF bus.record FOR VALUES FROM (1) TO (2)")
        await connection.execute("UPDATE bus.record SET day = 1")
    finally:
        await connection.close()
