"""`dripline bus move FROM TO`: the records of one bus are handled to the last, then the deployment's bus is another one.

The services are stopped: nothing is accepted, decided or sent meanwhile, and whoever posts is told to come back by the
reverse proxy (503; the clients' libraries keep their events and try again). This process runs the consumers and relays of all
services over FROM until nothing is left on it nor in any outbox, and then remembers TO as the bus in use. Positions are
keyed by the bus's epoch, so those of TO begin at its beginning and the books of both balance.
See docs/adr/0010-moving-the-bus.md.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from services.migrate import migrate
from services.restoring import READERS, refuse_if_running
from shared.bus import open_bus_or_explain
from shared.bus.base import Bus
from shared.bus.leases import Leases
from shared.clock import SystemClock, pause
from shared.consumer import read_positions
from shared.db import Database, Tx
from shared.deployment import epochs, read_deployment, refuse_without_tables
from shared.errors import ConfigurationError, is_transient
from shared.events import READER_OF, TOPICS
from shared.hooks import Hooks
from shared.service import Context, Loop
from shared.settings import SERVICE_NAMES, Settings
from shared.wake import Wake

OUTBOXES = ("profile", "triggers", "dispatch")
# Empty that often in a row, so long apart: a writer that nobody saw would show.
LOOKS, BETWEEN = 3, 0.5  # seconds
LOOPS = ("consume:", "relay")


@dataclass(frozen=True)
class Moved:
    """How many records were still handled on the old bus, and how long that took."""

    handled: int
    seconds: float


async def move(settings: Settings, database_url: str, source: str, target: str, *, limit: float, lost: bool) -> Moved:
    """Empties `source` and makes `target` the bus in use. Run again it changes nothing.

    :param source: URL of the bus in use; :param target: URL of the other one
    :param limit: seconds that the old bus may take to become empty
    :param lost: the old bus is gone: what it held and nobody had handled is given up
    :raises ConfigurationError: services are running, `source` is not the bus in use, `target` does not fit, or something is
        left on the old bus when the time is over; then nothing has changed
    """
    async with AsyncExitStack() as stack:
        member = f"{socket.gethostname()[:20]}-bus-move.{os.getpid()}"
        platform = await Database.open(database_url, member=member, size=4)
        stack.push_async_callback(platform.close)
        async with platform.connection() as connection:
            await refuse_without_tables(connection)
            await refuse_if_running(connection, "dripline bus move")
        await migrate(database_url)
        async with platform.connection() as connection:
            deployment = await read_deployment(connection)
        wake = Wake()

        async def opened(url: str, name: str) -> Bus:
            bus = await open_bus_or_explain(url, member=member, partitions=settings.partitions, wake=wake, name=name)
            stack.push_async_callback(bus.close)
            return bus

        # Both are tried before anything is done.
        old = None if lost else await opened(source, "FROM")
        new = await opened(target, "TO")
        if old is None:
            moved = Moved(0, 0.0)
        elif _is_moved_already(deployment.bus, old, new):
            return Moved(0, 0.0)
        else:
            moved = await _empty(settings, database_url, old, platform, wake, member, limit)
        async with platform.transaction() as tx:
            await refuse_if_running(tx, "dripline bus move")
            if old is not None:
                await carry_over(tx, old, new)
            await tx.execute("UPDATE platform.deployment SET bus = $1", epochs(new))
        return moved


def _is_moved_already(known: Mapping[str, str] | None, old: Bus, new: Bus) -> bool:
    """:raises ConfigurationError: `old` is neither the bus in use nor what was moved to `new`, or both are one"""
    if epochs(old) == epochs(new):
        raise ConfigurationError("FROM and TO are one and the same bus; nothing was changed.")
    if known is None or known == epochs(old):
        return False
    if known == epochs(new):
        return True
    raise ConfigurationError(
        "FROM is not the bus in use: name the one that BUS_URL led to when the services ran last, `database` if it was not set; "
        "if that one is gone, add --lost. Nothing was changed."
    )


# ── emptying the old bus ──────────────────────────────────────────────────────────────────────────────────────────────
async def _empty(
    settings: Settings, database_url: str, bus: Bus, platform: Database, wake: Wake, member: str, limit: float
) -> Moved:
    """Runs the consumers and relays until everything on `bus` is handled and every outbox row is published on it."""
    began = time.monotonic()
    leases = Leases(database_url, member, settings.lease_seconds)
    async with AsyncExitStack() as stack:
        loops = await _loops(settings, database_url, bus, platform, wake, leases, member, stack)
        before = await _handled(platform, bus)
        renewing = asyncio.create_task(leases.run())
        working = [asyncio.create_task(_kept_running(loop)) for loop in loops.values()]
        try:
            await _until_empty(platform, bus, working, limit)
        finally:
            for task in (*working, renewing):
                task.cancel()
            await asyncio.gather(*working, renewing, return_exceptions=True)
        return Moved(await _handled(platform, bus) - before, time.monotonic() - began)


async def _loops(
    settings: Settings,
    database_url: str,
    bus: Bus,
    platform: Database,
    wake: Wake,
    leases: Leases,
    member: str,
    stack: AsyncExitStack,
) -> dict[str, Loop]:
    """What the services read and publish with; none of their claims, senders and calendars."""
    async with platform.connection() as connection:
        deployment = await read_deployment(connection)
    whole = Context(
        settings=settings,
        clock=SystemClock(),
        database=platform,
        bus=bus,
        leases=leases,
        wake=wake,
        hooks=Hooks(),
        member=member,
        node_namespace=deployment.node_namespace,
        secret=settings.secret_key.get_secret_value().encode() if settings.secret_key else deployment.secret,
        generation=deployment.generation,
    )
    found: dict[str, Loop] = {}
    for name in SERVICE_NAMES:
        database = await Database.open(
            database_url, member=member, role=f"dripline_{name}", size=settings.database_pool_size
        )
        stack.push_async_callback(database.close)
        service = await importlib.import_module(f"services.{name}.service").build(replace(whole, database=database))
        if service.close is not None:
            stack.push_async_callback(service.close)
        found |= {f"{name}:{key}": loop for key, loop in service.loops.items() if key.startswith(LOOPS)}
    return found


async def _kept_running(loop: Loop) -> None:
    while True:
        try:
            await loop()
        except Exception as problem:
            if not is_transient(problem):
                raise
        await pause(0.2)


async def _until_empty(platform: Database, bus: Bus, working: list[asyncio.Task[None]], limit: float) -> None:
    deadline, empty = time.monotonic() + limit, 0
    while empty < LOOKS:
        for task in working:
            if task.done():
                task.result()
        left = await remaining(platform, bus)
        empty = 0 if left else empty + 1
        if time.monotonic() > deadline:
            what = (
                ", ".join(f"{count} in {where}" for where, count in left.items()) or "nothing, but not for long enough"
            )
            raise ConfigurationError(
                f"After {limit:g} s the old bus still holds {what}. Nothing was changed; try again."
            )
        await pause(BETWEEN if empty else 0.1)


async def remaining(platform: Database, bus: Bus) -> dict[str, int]:
    """What nobody has handled: by bus topic records, by outbox rows. Empty if all is done."""
    left: dict[str, int] = {}
    async with platform.connection() as connection:
        for topic in TOPICS:
            reader = READER_OF[topic]
            handled = await read_positions(connection, reader, reader, bus.epoch(topic), topic)
            first, ends = await bus.beginnings(topic), await bus.ends(topic)
            count = sum(end - handled.get(partition, first.get(partition, 0)) for partition, end in ends.items())
            left |= {topic: count} if count else {}
        for schema in OUTBOXES:
            count = await connection.fetchval(f"SELECT count(*) FROM {schema}.outbox")
            left |= {f"{schema}.outbox": count} if count else {}
    return left


async def _handled(platform: Database, bus: Bus) -> int:
    async with platform.connection() as connection:
        total = 0
        for topic in TOPICS:
            total += await connection.fetchval(
                f"SELECT coalesce(sum(read), 0)::bigint FROM {READER_OF[topic]}.position WHERE topic = $1 AND epoch = $2",
                topic,
                bus.epoch(topic),
            )
        return total


# ── switching ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def carry_over(tx: Tx, old: Bus, new: Bus) -> None:
    """Readers know on the new bus what they have read of each shard. The outboxes are empty: whatever has a number up to the
    highest of its shard was handled, in whichever partition it lay; so the number of partitions may be another one."""
    for topic, reader in READER_OF.items():
        if reader not in READERS.values():
            continue
        rows = await tx.fetch(
            f"SELECT seen FROM {reader}.position WHERE group_name = $1 AND epoch = $2 AND topic = $3",
            reader,
            old.epoch(topic),
            topic,
        )
        beginnings = await new.beginnings(topic)
        await tx.execute(
            f"""
            INSERT INTO {reader}.position AS p (group_name, epoch, topic, partition, next, seen)
            SELECT $1, $2, $3, partition, first, $6 FROM unnest($4::int[], $5::bigint[]) AS f(partition, first)
            ON CONFLICT (group_name, epoch, topic, partition) DO UPDATE SET seen = p.seen || excluded.seen
            """,
            reader,
            new.epoch(topic),
            topic,
            list(beginnings),
            list(beginnings.values()),
            highest([row["seen"] for row in rows]),
        )


def highest(seen: Sequence[Mapping[str, list[int]]]) -> dict[str, list[int]]:
    """By shard the highest place that any partition's reader has seen."""
    found: dict[str, list[int]] = {}
    for one in seen:
        for shard, place in one.items():
            found[shard] = max(place, found.get(shard, place))
    return found
