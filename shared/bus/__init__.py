"""The bus and who may read it. Only this package acts on the scheme of BUS_URL; the settings refuse an unknown one."""

from __future__ import annotations

import asyncpg

from shared.bus.base import Bus
from shared.bus.postgres import PostgresBus
from shared.errors import ConfigurationError, is_transient
from shared.events import TOPICS
from shared.server_urls import refuse_unusable
from shared.wake import Wake


async def open_bus(url: str, *, member: str, partitions: int, wake: Wake) -> Bus:
    """Opens the bus that the URL names: `postgresql://…` (log table) or `kafka://host:port,…`."""
    scheme = url.partition("://")[0]
    try:
        refuse_unusable(url)
    except ValueError as problem:
        raise ConfigurationError(f"The URL of a bus: {problem}.") from None
    if scheme in ("postgresql", "postgres"):
        return await PostgresBus.open(url, member=member, partitions=partitions, wake=wake, topics=TOPICS)
    if scheme in ("kafka", "kafkas"):
        from shared.bus.kafka import KafkaBus

        return await KafkaBus.open(url, partitions=partitions, member=member, wake=wake)
    raise ConfigurationError("The URL of a bus must begin with postgresql:// or kafka://.")


async def open_bus_or_explain(url: str, *, member: str, partitions: int, wake: Wake, name: str = "BUS_URL") -> Bus:
    """The same for a person at a terminal, who told the URL as `name`.

    :raises ConfigurationError: it cannot be reached, does not let us in, or has no log table
    """
    try:
        return await open_bus(url, member=member, partitions=partitions, wake=wake)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as problem:
        raise ConfigurationError(
            "The database of the bus has no log table; run `dripline migrate` with DATABASE_URL set to it first."
        ) from problem
    except (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.ClientConfigurationError,
    ) as problem:
        raise ConfigurationError(f"The database of the bus cannot be used: {problem}; mend {name}.") from problem
    except Exception as problem:
        if not is_transient(problem) and not isinstance(problem, OSError):
            raise
        raise ConfigurationError(
            f"The bus cannot be reached ({type(problem).__name__}: {problem}); start it, or mend {name}."
        ) from problem


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
