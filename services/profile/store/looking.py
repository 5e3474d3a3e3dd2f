"""What people are shown of profiles: lists, timelines, ledgers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from shared.db import Tx


async def list_profiles(tx: Tx, after: UUID | None, limit: int) -> list[UUID]:
    """Profile ids in their order."""
    rows = await tx.fetch(
        "SELECT id FROM profile.profile WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2", after, limit
    )
    return [row["id"] for row in rows]


async def first_nodes(tx: Tx, profiles: Sequence[UUID]) -> dict[UUID, UUID]:
    """A node of each of these profiles that exist."""
    rows = await tx.fetch("SELECT id, nodes[1] AS node FROM profile.profile WHERE id = ANY($1::uuid[])", profiles)
    return {row["id"]: row["node"] for row in rows}


async def identifiers(tx: Tx, nodes: Sequence[UUID]) -> list[dict[str, Any]]:
    """The nodes as a person reads them."""
    rows = await tx.fetch(
        """
        SELECT id AS node, kind, value, status, first_seen, learned_at FROM cdp.node WHERE id = ANY($1::uuid[])
        ORDER BY kind, first_seen, id
        """,
        nodes,
    )
    return [dict(row) for row in rows]


async def former_ids(tx: Tx, profile: UUID) -> list[UUID]:
    """The ids of the profiles that became part of this one."""
    rows = await tx.fetch(
        """
        WITH RECURSIVE former AS (
            SELECT old FROM profile.profile_alias WHERE new = $1
            UNION SELECT a.old FROM former f JOIN profile.profile_alias a ON a.new = f.old
        )
        SELECT old FROM former ORDER BY old
        """,
        profile,
    )
    return [row["old"] for row in rows]


async def timeline(
    tx: Tx, nodes: Sequence[UUID], before: tuple[datetime, UUID] | None, limit: int | None
) -> list[dict[str, Any]]:
    """Events of these nodes, newest first by (learned at, id), below `before`."""
    moment, event = before or (None, None)
    rows = await tx.fetch(
        """
        SELECT id, name, type, occurred_at, received_at, learned_at, trust, history, source, node, order_key, first, properties,
            rest -> 'traits' AS traits
        FROM profile.event
        WHERE node = ANY($1::uuid[]) AND ($2::timestamptz IS NULL OR (learned_at, id) < ($2, $3::uuid))
        ORDER BY learned_at DESC, id DESC LIMIT $4
        """,
        nodes,
        moment,
        event,
        limit,
    )
    return [dict(row) for row in rows]


async def ledger(tx: Tx, nodes: Sequence[UUID]) -> list[dict[str, Any]]:
    """The consent ledger of these addresses, oldest first."""
    rows = await tx.fetch(
        """
        SELECT c.id, c.channel, n.value AS address, c.topic, c.state, c.at, c.learned_at, c.trust, c.proof, c.node
        FROM profile.consent c LEFT JOIN profile.node n ON n.id = c.node
        WHERE c.node = ANY($1::uuid[]) ORDER BY c.at, c.id, c.topic
        """,
        nodes,
    )
    return [dict(row) for row in rows]


async def links(tx: Tx, nodes: Sequence[UUID]) -> list[dict[str, Any]]:
    """The links among these nodes."""
    rows = await tx.fetch(
        """
        SELECT a, b, strength, first_observed, learned_at, source, trust, cut_at FROM profile.link
        WHERE a = ANY($1::uuid[]) AND b = ANY($1::uuid[]) ORDER BY first_observed, id
        """,
        nodes,
    )
    return [dict(row) for row in rows]
