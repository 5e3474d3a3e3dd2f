"""The bus and who may read it. Only this package looks at the scheme of BUS_URL."""

from __future__ import annotations

import asyncpg

from shared.bus.base import Bus
from shared.bus.postgres import PostgresBus
from shared.errors import DriplineError
from shared.events import TOPICS
from shared.wake import Wake


async def open_bus(url: str, *, member: str, partitions: int, wake: Wake) -> Bus:
    """Opens the bus that the URL names: `postgresql://…` (log table) or `kafka://host:port,…`."""
    scheme = url.partition("://")[0]
    if scheme in ("postgresql", "postgres"):
        return await PostgresBus.open(url, member=member, partitions=partitions, wake=wake, topics=TOPICS)
    if scheme in ("kafka", "kafkas"):
        from shared.bus.kafka import KafkaBus

        return await KafkaBus.open(url, partitions=partitions, member=member, wake=wake)
    raise DriplineError(f"BUS_URL begins with {scheme!r}; it must begin with postgresql:// or kafka://")


async def reach_bus(url: str) -> list[str]:
    """For `doctor`: reaches the bus, makes nothing, and says what could be better. Raises what the client raises."""
    scheme = url.partition("://")[0]
    if scheme in ("kafka", "kafkas"):
        from shared.bus.kafka_doctor import look

        return await look(url)
    connection = await asyncpg.connect(url, timeout=10)
    try:
        there = await connection.fetchval("SELECT to_regclass('bus.record') IS NOT NULL")
    finally:
        await connection.close()
    return [] if there else ["the database of the bus has no log table yet; `dripline migrate` makes it"]
