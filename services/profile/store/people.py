"""Everybody, a few components at a time: for computing them again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from shared.db import Tx


class Kept(msgspec.Struct, frozen=True):
    """A profile's row."""

    id: UUID
    nodes: list[UUID]
    last_learned_at: datetime


class Observation(msgspec.Struct, frozen=True):
    """What events of one source named together: the latest of them stands for all. `ids`: kind, node, whether the source
    vouches for it."""

    origin: UUID
    trust: int
    alias: bool
    ids: list[tuple[str, UUID, bool]]
    id: UUID
    learned_at: datetime


async def components_after(tx: Tx, after: UUID | None, limit: int) -> list[UUID]:
    """The next components, sorted."""
    rows = await tx.fetch(
        """
        SELECT DISTINCT component FROM profile.profile
        WHERE $1::uuid IS NULL OR component > $1 ORDER BY component LIMIT $2
        """,
        after,
        limit,
    )
    return [row["component"] for row in rows]


async def people_in(tx: Tx, components: Sequence[UUID]) -> list[Kept]:
    """Everybody in them."""
    rows = await tx.fetch(
        "SELECT id, nodes, last_learned_at FROM profile.profile WHERE component = ANY($1::uuid[]) ORDER BY id",
        components,
    )
    return [Kept(*row) for row in rows]


async def observations(tx: Tx, origins: Sequence[UUID]) -> list[Observation]:
    """What the events of these nodes named together; our own events observe nobody."""
    rows = await tx.fetch(
        """
        SELECT node, trust, type = 'alias' AS alias, rest -> 'ids' AS ids,
            (array_agg(id ORDER BY learned_at DESC))[1] AS id, max(learned_at) AS learned_at
        FROM profile.event WHERE node = ANY($1::uuid[]) AND trust < 3 GROUP BY 1, 2, 3, 4
        """,
        origins,
    )
    return [
        Observation(row["node"], row["trust"], row["alias"], _named(row["ids"]), row["id"], row["learned_at"])
        for row in rows
    ]


def _named(ids: list[list]) -> list[tuple[str, UUID, bool]]:
    return [(kind, UUID(node), strong) for kind, node, strong in ids]
