"""Takes rows away: of purged addresses, of people who asked to be erased."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from services.profile.typed_addresses import TypedAddresses
from shared.db import Tx


async def delete_links(tx: Tx, nodes: Sequence[UUID]) -> None:
    """All links and cannot-links of these nodes."""
    for table in ("link", "cannot_link"):
        await tx.execute(f"DELETE FROM profile.{table} WHERE a = ANY($1::uuid[]) OR b = ANY($1::uuid[])", nodes)


async def delete_nodes(tx: Tx, nodes: Sequence[UUID]) -> None:
    """The nodes themselves. Their memberships stay: they hold ids that say nothing without the nodes."""
    await tx.execute("DELETE FROM profile.node_seen_before WHERE node = ANY($1::uuid[])", nodes)
    await tx.execute("DELETE FROM profile.node WHERE id = ANY($1::uuid[])", nodes)


async def forget_addresses(tx: Tx, nodes: Sequence[UUID]) -> None:
    """What these address nodes carried. Opt-outs and complaints stay."""
    await tx.execute("DELETE FROM profile.trait WHERE node = ANY($1::uuid[])", nodes)
    await tx.execute("DELETE FROM profile.cart_op WHERE node = ANY($1::uuid[])", nodes)
    await tx.execute(
        "DELETE FROM profile.consent WHERE node = ANY($1::uuid[]) AND state NOT IN ('withdrawn', 'complained')", nodes
    )


async def forget_typed(tx: Tx, nodes: Sequence[UUID], linked: Sequence[UUID], addresses: TypedAddresses) -> None:
    """Takes the addresses of `nodes` out of the traits and events of `linked` nodes, and out of their own events."""
    traits = await tx.fetch(
        "SELECT node, name, id, value FROM profile.trait WHERE node = ANY($1::uuid[])", list(linked)
    )
    gone = [row for row in traits if addresses.names(row["value"])]
    await tx.execute(
        """
        DELETE FROM profile.trait t USING unnest($1::uuid[], $2::text[], $3::uuid[]) AS g(node, name, id)
        WHERE t.node = g.node AND t.name = g.name AND t.id = g.id
        """,
        [row["node"] for row in gone],
        [row["name"] for row in gone],
        [row["id"] for row in gone],
    )
    events = await tx.fetch(
        """
        SELECT node, learned_at, id, properties, own.named FROM profile.event e CROSS JOIN LATERAL (
            SELECT array_agg(n) FILTER (WHERE n = ANY($2::uuid[])) AS named
            FROM (SELECT e.node AS n UNION ALL SELECT (i ->> 1)::uuid FROM jsonb_array_elements(e.rest -> 'ids') AS i) ids
        ) own WHERE node = ANY($1::uuid[])
        """,
        [*linked, *nodes],
        list(nodes),
    )
    left = []
    for row in events:
        properties = addresses.without(row["properties"], row["named"] or ())
        changed = properties != row["properties"]
        if changed or row["named"]:
            left.append((row, properties if changed else None))
    await _write_left(tx, nodes, left)


async def _write_left(tx: Tx, nodes: Sequence[UUID], left: Sequence[tuple[Any, dict[str, Any] | None]]) -> None:
    """The events with the properties that are left to them (None: all of them), without what else tells of the nodes."""
    await tx.execute(
        """
        UPDATE profile.event e SET
            properties = coalesce(l.properties, e.properties),
            rest = (e.rest - '{traits,context}'::text[]) || jsonb_build_object('ids', coalesce((
                SELECT jsonb_agg(i) FROM jsonb_array_elements(e.rest -> 'ids') AS i WHERE NOT (i ->> 1)::uuid = ANY($5::uuid[])
            ), '[]'))
        FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::jsonb[]) AS l(node, learned_at, id, properties)
        WHERE e.node = l.node AND e.learned_at = l.learned_at AND e.id = l.id
        """,
        [row["node"] for row, _ in left],
        [row["learned_at"] for row, _ in left],
        [row["id"] for row, _ in left],
        [properties for _, properties in left],
        list(nodes),
    )


async def note_purged(tx: Tx, digests: Sequence[bytes], at: datetime) -> None:
    """Keeps a hash and the date."""
    await tx.execute(
        """
        INSERT INTO profile.purged AS p (hmac, at) SELECT h, $2 FROM unnest($1::bytea[]) AS u(h)
        ON CONFLICT (hmac) DO UPDATE SET at = greatest(p.at, excluded.at)
        """,
        sorted(digests),
        at,
    )


async def delete_people(tx: Tx, nodes: Sequence[UUID], profiles: Sequence[UUID], at: datetime) -> int:
    """Everything that these nodes carry, and the profiles. Returns how many events that were.

    Opt-outs and complaints stay, without their proof: who comes back is not written to because they were forgotten.
    """
    events = await tx.fetchval(
        "WITH gone AS (DELETE FROM profile.event WHERE node = ANY($1::uuid[]) RETURNING 1) SELECT count(*) FROM gone",
        nodes,
    )
    for table in ("trait", "cart_op", "node_seen_before"):
        await tx.execute(f"DELETE FROM profile.{table} WHERE node = ANY($1::uuid[])", nodes)
    await tx.execute(
        "DELETE FROM profile.consent WHERE node = ANY($1::uuid[]) AND state NOT IN ('withdrawn', 'complained')", nodes
    )
    await tx.execute("UPDATE profile.consent SET proof = '{}' WHERE node = ANY($1::uuid[])", nodes)
    await delete_links(tx, nodes)
    await tx.execute("DELETE FROM profile.node WHERE id = ANY($1::uuid[])", nodes)
    await tx.execute("DELETE FROM profile.profile WHERE id = ANY($1::uuid[])", profiles)
    await tx.execute(
        "UPDATE profile.membership SET to_at = $2 WHERE node = ANY($1::uuid[]) AND to_at IS NULL", nodes, at
    )
    return int(events)


async def orders_of(tx: Tx, nodes: Sequence[UUID]) -> list[str]:
    """The orders that these nodes reported or sent back."""
    rows = await tx.fetch(
        """
        SELECT order_key FROM profile.order_report WHERE node = ANY($1::uuid[])
        UNION SELECT order_key FROM profile.refund WHERE node = ANY($1::uuid[]) ORDER BY 1
        """,
        nodes,
    )
    return [row["order_key"] for row in rows]


async def delete_reports(tx: Tx, nodes: Sequence[UUID], keys: Sequence[str]) -> list[str]:
    """The nodes' reports and refunds, and the orders that nobody else reported. Returns the orders that stay."""
    await tx.execute(
        """
        WITH gone AS (DELETE FROM profile.order_report WHERE node = ANY($1::uuid[]) RETURNING event)
        DELETE FROM profile.order_line l USING gone WHERE l.event = gone.event
        """,
        nodes,
    )
    await tx.execute("DELETE FROM profile.refund WHERE node = ANY($1::uuid[])", nodes)
    await tx.execute(
        """
        DELETE FROM profile.orders o WHERE key = ANY($1::text[])
            AND NOT EXISTS (SELECT FROM profile.order_report r WHERE r.order_key = o.key)
            AND NOT EXISTS (SELECT FROM profile.refund r WHERE r.order_key = o.key)
        """,
        keys,
    )
    rows = await tx.fetch("SELECT key FROM profile.orders WHERE key = ANY($1::text[]) ORDER BY key", keys)
    return [row["key"] for row in rows]
