"""What makes this deployment this one: its secrets, its bus, its database, how often it was restored. One row, made by the
migration.

Two mistakes would lose or repeat messages silently, and are refused at the start: a copy of the database that nobody told
about it (a restored backup), and a bus that is not the one whose records the positions count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from shared.bus.base import Bus
from shared.db import Tx
from shared.errors import ConfigurationError
from shared.events import TOPICS


@dataclass(frozen=True)
class Deployment:
    """`state` is open, or held after a restore (dispatch then sends nothing until somebody looked). `bus`: bus topic →
    epoch in use; None until the first start."""

    node_namespace: UUID
    secret: bytes
    generation: int
    state: str
    bus: dict[str, str] | None = None


async def refuse_without_tables(tx: Tx) -> None:
    """For commands that act on what is there: a mistyped name is not to become a new deployment.

    :raises ConfigurationError: the database was never migrated
    """
    if not await tx.fetchval("SELECT to_regclass('platform.deployment') IS NOT NULL"):
        raise ConfigurationError(
            "The database has no tables of Dripline: mend DATABASE_URL, or run `dripline migrate` if it is to be a new one."
        )


async def read_deployment(tx: Tx) -> Deployment:
    """Reads the row."""
    row = await tx.fetchrow("SELECT node_namespace, secret, generation, state, bus FROM platform.deployment")
    return Deployment(row["node_namespace"], row["secret"], row["generation"], row["state"], row["bus"])


def epochs(bus: Bus) -> dict[str, str]:
    """Bus topic → epoch."""
    return {topic: bus.epoch(topic) for topic in TOPICS}


async def settle(tx: Tx, bus: Bus) -> None:
    """The first start after a migration, a restore or a move remembers where it is; every other one compares.

    :raises ConfigurationError: this database is a copy, or this is another bus
    """
    await tx.execute(
        f"UPDATE platform.deployment SET home = coalesce(home, {_HOME}), bus = coalesce(bus, $1)", epochs(bus)
    )
    row = await tx.fetchrow(f"SELECT home, {_HOME} AS here, bus FROM platform.deployment")
    if row["home"] != row["here"]:
        raise ConfigurationError(
            "This database is a copy of the one that ran last, perhaps a backup: run `dripline restored` before the services "
            "start, or `dripline restored --nothing-lost` if it was only moved."
        )
    refuse_another_bus(row["bus"], epochs(bus))


def refuse_another_bus(known: Mapping[str, str], found: Mapping[str, str]) -> None:
    """:raises ConfigurationError: a topic has another epoch than the one that is read"""
    other = sorted(topic for topic in found if known.get(topic) != found[topic])
    if other:
        raise ConfigurationError(
            f"BUS_URL leads to another bus than the one in use ({', '.join(other)}): with all services stopped, "
            f"`dripline bus move FROM TO` empties the old one and switches; if the old one is lost, add --lost."
        )


# Where we are: the server by the identifier that initdb gave it, and the database by its number.
_HOME = """(SELECT system_identifier FROM pg_control_system()) || '/' || (
    SELECT oid FROM pg_database WHERE datname = current_database())"""


async def forget_home(tx: Tx) -> None:
    """The next start takes the database it finds for its own."""
    await tx.execute("UPDATE platform.deployment SET home = NULL")
