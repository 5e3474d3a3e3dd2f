"""Items put aside: those whose handling failed for a reason outside their rule. They are held, with the reason, until a
person has them tried again or dropped (`services.triggers.store.queue.put_aside` puts them here)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from shared.db import Tx

_ASIDE = "held AND rule IS NULL AND payload ? 'put_aside'"
_LIST = f"""
    SELECT i.node, i.id, i.kind, i.due, (i.payload ->> 'rule')::uuid AS rule, r.name AS rule_name, i.run,
           i.payload ->> 'put_aside' AS reason, i.payload -> 'event' -> 'name' AS event
    FROM (SELECT * FROM triggers.item WHERE {_ASIDE}) i
    LEFT JOIN triggers.rule r ON r.id = (i.payload ->> 'rule')::uuid
"""


async def list_aside(
    tx: Tx, *, nodes: Sequence[UUID] | None, after: tuple[datetime, UUID, UUID] | None, limit: int
) -> list[Any]:
    """In order of (due, node, id), behind `after`; of these nodes."""
    return await tx.fetch(
        f"""
        {_LIST} WHERE ($1::uuid[] IS NULL OR i.node = ANY($1))
            AND ($2::timestamptz IS NULL OR (i.due, i.node, i.id) > ($2, $3::uuid, $4::uuid))
        ORDER BY i.due, i.node, i.id LIMIT $5
        """,
        list(nodes) if nodes is not None else None,
        *(after or (None, None, None)),
        limit,
    )


async def find_aside(tx: Tx, node: UUID, id: UUID) -> Any | None:
    """One of them."""
    return await tx.fetchrow(f"{_LIST} WHERE i.node = $1 AND i.id = $2", node, id)


async def retry_aside(tx: Tx, node: UUID | None = None, id: UUID | None = None) -> int:
    """Puts one of them (or all) back into the queue, due when it was; says how many."""
    rows = await tx.fetch(
        f"""
        UPDATE triggers.item SET held = false, rule = (payload ->> 'rule')::uuid, payload = payload - 'put_aside' - 'rule'
        WHERE {_ASIDE} AND ($1::uuid IS NULL OR (node = $1 AND id = $2)) RETURNING 1
        """,
        node,
        id,
    )
    return len(rows)
