"""Takes rows away: of purged addresses, of people who asked to be erased."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from shared.db import Tx


async def delete_links(tx: Tx, nodes: Sequence[UUID]) -> None:
    """All links and cannot-links of these nodes."""
    for table in ("link", "cannot_link"):
        await tx.execute(f"DELETE FROM profile.{table} WHERE a = ANY($1::uuid[]) OR b = ANY($1::uuid[])", nodes)


async def delete_nodes(tx: Tx, nodes: Sequence[UUID]) -> None:
    """The nodes themselves. Their memberships stay: they hold ids that say nothing without the nodes."""
    await tx.execute("DELETE FROM profile.node_seen_before WHERE node = ANY($1::uuid[])", nodes)
    await tx.execute("DELETE FROM profile.node WHERE id = ANY($1::uuid[])", nodes)


async def forget_addresses(tx: Tx, nodes: Sequence[UUID], linked: Sequence[UUID], values: Sequence[str]) -> None:
    """What these address nodes carried, and the addresses themselves wherever events of `linked` nodes name them.

    Opt-outs and complaints stay.
    """
    await tx.execute("DELETE FROM profile.trait WHERE node = ANY($1::uuid[])", nodes)
    await tx.execute("DELETE FROM profile.cart_op WHERE node = ANY($1::uuid[])", nodes)
    await tx.execute(
        "DELETE FROM profile.consent WHERE node = ANY($1::uuid[]) AND state NOT IN ('withdrawn', 'complained')", nodes
    )
    folded = [value.casefold() for value in values]
    await tx.execute(
        "DELETE FROM profile.trait WHERE node = ANY($1::uuid[]) AND folded = ANY($2::text[])", linked, folded
    )
    await tx.execute(
        """
        UPDATE profile.event SET
            properties = properties - ARRAY(
                SELECT key FROM jsonb_each_text(properties) WHERE lower(value) = ANY($2::text[])
            ),
            rest = (rest - '{traits,context}'::text[]) || jsonb_build_object('ids', coalesce((
                SELECT jsonb_agg(i) FROM jsonb_array_elements(rest -> 'ids') AS i WHERE NOT (i ->> 1)::uuid = ANY($3::uuid[])
            ), '[]'))
        WHERE node = ANY($1::uuid[]) AND (
            EXISTS (SELECT FROM jsonb_each_text(properties) WHERE lower(value) = ANY($2::text[]))
            OR EXISTS (SELECT FROM jsonb_array_elements(rest -> 'ids') AS i WHERE (i ->> 1)::uuid = ANY($3::uuid[]))
        )
        """,
        [*linked, *nodes],
        folded,
        nodes,
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
