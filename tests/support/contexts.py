"""A Context over a real database, for tests that build parts of a service without starting the whole server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared import channels
from shared.bus import open_bus
from shared.bus.leases import Leases
from shared.clock import Clock, SystemClock
from shared.db import Database
from shared.deployment import read_deployment
from shared.hooks import Hooks
from shared.ids import uuid7
from shared.service import Context
from shared.settings import Settings, load
from shared.wake import Wake


@asynccontextmanager
async def context_for(
    database_url: str,
    *,
    role: str | None = None,
    clock: Clock | None = None,
    bus_url: str | None = None,
    leases: bool = True,
    **settings: object,
) -> AsyncIterator[Context]:
    """A context of a new member; with `leases` its lease loop runs. Everything is closed in the end."""
    clock = clock or SystemClock()
    member = f"test-{uuid7(SystemClock().now())}"
    chosen: Settings = load(**{"partitions": 4, "linger_ms": 0, "erasure_journal": "off", **settings})
    channels.declare(chosen.channels_path)
    wake = Wake()
    database = await Database.open(database_url, member=member, role=role, size=10)
    async with database.connection() as connection:
        deployment = await read_deployment(connection)
    bus = await open_bus(bus_url or database_url, member=member, partitions=chosen.partitions, wake=wake)
    holder = Leases(database_url, member, chosen.lease_seconds)
    renewing = asyncio.create_task(holder.run()) if leases else None
    try:
        yield Context(
            settings=chosen,
            clock=clock,
            database=database,
            bus=bus,
            leases=holder,
            wake=wake,
            hooks=Hooks(),
            member=member,
            node_namespace=deployment.node_namespace,
            secret=deployment.secret,
            generation=deployment.generation,
        )
    finally:
        if renewing is not None:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        await bus.close()
        await database.close()


@asynccontextmanager
async def running(loops: dict[str, object]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Runs loops beside the test. A loop that fails fails the test at the end."""
    tasks = [asyncio.create_task(loop(), name=name) for name, loop in loops.items()]  # type: ignore[operator]
    for task in tasks:
        task.add_done_callback(_say)
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


def _say(task: asyncio.Task[None]) -> None:
    """At once, so that a test that waits in vain shows why."""
    if not task.cancelled() and (problem := task.exception()) is not None:
        print(f"loop {task.get_name()} failed: {type(problem).__name__}: {problem}")
