"""What only the log table has to keep: days."""

from __future__ import annotations

import asyncpg
import pytest

from shared.bus.base import OutOfRange
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


async def _as_if_of_day_one(world: World, own_table: bool) -> None:
    assert isinstance(world, PostgresWorld)
    connection = await asyncpg.connect(world.url)
    try:
        if own_table:
            await connection.execute("CREATE TABLE bus.record_1 PARTITION OF bus.record FOR VALUES FROM (1) TO (2)")
        await connection.execute("UPDATE bus.record SET day = 1")
    finally:
        await connection.close()
