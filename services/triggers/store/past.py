"""The CDP store as a backtest must see it: for one page of people, copied into temporary tables of its own connection.

What an import brought counts as if it had come when it occurred: `history` is false there, and learned-at is occurred-at.
Identifiers that an import joined belong together from the person's first imported event on. Everything that came live is as
it was learned. The tables have the names of the views of `cdp`, and whoever reads through `Past` reads them, so facts and
events are folded by the very statements that production uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from shared.db import Tx

_LIKE = (
    "node node_seen_before membership profile profile_alias trait event order_entity order_report order_line refund "
    "cart_operation cart_op consent"
).split()

MAKE = [
    *(f"CREATE TEMP TABLE {name} (LIKE cdp.{name}) ON COMMIT DELETE ROWS" for name in _LIKE),
    "CREATE TEMP TABLE imported (id uuid, node uuid, at timestamptz, learned_at timestamptz) ON COMMIT DELETE ROWS",
    "CREATE TEMP TABLE began (profile uuid, at timestamptz) ON COMMIT DELETE ROWS",
    *(
        f"CREATE INDEX ON pg_temp.{name} (node)"
        for name in _LIKE
        if name not in ("node", "profile", "profile_alias", "order_line")
    ),
    "CREATE INDEX ON pg_temp.node (id)",
    "CREATE INDEX ON pg_temp.imported (id)",
    "CREATE INDEX ON pg_temp.membership (profile)",
    "CREATE INDEX ON pg_temp.order_line (event)",
    "CREATE INDEX ON pg_temp.order_report (order_key)",
    "CREATE INDEX ON pg_temp.refund (order_key)",
]

_MOMENTS = "(SELECT learned_at FROM pg_temp.imported)"
_OWN_KEYS = """
    (SELECT order_key FROM cdp.order_report WHERE node = ANY($1::uuid[])
     UNION SELECT order_key FROM cdp.refund WHERE node = ANY($1::uuid[]))"""

# In this order; each takes the nodes.
FILL = [
    """
    INSERT INTO pg_temp.imported SELECT id, node, occurred_at, learned_at FROM cdp.event
    WHERE node = ANY($1::uuid[]) AND history
    """,
    """
    INSERT INTO pg_temp.began SELECT m.profile, min(h.at) FROM cdp.membership m JOIN pg_temp.imported h USING (node)
    WHERE m.node = ANY($1::uuid[]) GROUP BY 1
    """,
    f"""
    INSERT INTO pg_temp.membership (node, profile, from_at, to_at)
    SELECT node, profile, CASE WHEN place = 1 AND by_import AND began < from_at THEN began ELSE from_at END, to_at
    FROM (
        SELECT m.*, b.at AS began, m.from_at IN {_MOMENTS} AS by_import,
               row_number() OVER (PARTITION BY m.node ORDER BY m.from_at) AS place
        FROM cdp.membership m LEFT JOIN pg_temp.began b USING (profile)
        WHERE m.node = ANY($1::uuid[])
            AND NOT (m.from_at IN {_MOMENTS} AND m.to_at IS NOT NULL AND m.to_at IN {_MOMENTS})
    ) kept
    """,
    f"""
    INSERT INTO pg_temp.node (id, kind, value, folded, profile, first_seen, learned_at, asserted_at, confirmed_at, status)
    SELECT n.id, n.kind, n.value, n.folded, n.profile,
           CASE WHEN n.first_seen IN {_MOMENTS} THEN least(b.at, n.first_seen) ELSE n.first_seen END, n.learned_at,
           CASE WHEN n.asserted_at IN {_MOMENTS} THEN least(b.at, n.asserted_at) ELSE n.asserted_at END,
           CASE WHEN n.confirmed_at IN {_MOMENTS} THEN least(b.at, n.confirmed_at) ELSE n.confirmed_at END, n.status
    FROM cdp.node n LEFT JOIN pg_temp.began b USING (profile) WHERE n.id = ANY($1::uuid[])
    """,
    "INSERT INTO pg_temp.node_seen_before SELECT * FROM cdp.node_seen_before WHERE node = ANY($1::uuid[])",
    # Nobody's present row serves a moment of the past.
    """
    INSERT INTO pg_temp.profile (id, nodes, last_learned_at, first_seen, timezone, state)
    SELECT id, nodes, 'infinity', first_seen, timezone, state FROM cdp.profile
    WHERE id IN (SELECT profile FROM cdp.membership WHERE node = ANY($1::uuid[]))
    """,
    """
    INSERT INTO pg_temp.trait (node, name, value, folded, number, trust, at, id, learned_at)
    SELECT t.node, t.name, t.value, t.folded, t.number, t.trust, t.at, t.id, coalesce(h.at, t.learned_at)
    FROM cdp.trait t LEFT JOIN pg_temp.imported h USING (id) WHERE t.node = ANY($1::uuid[])
    """,
    """
    INSERT INTO pg_temp.event (id, node, name, type, occurred_at, received_at, learned_at, trust, history, source,
                               properties, order_key, first, message_id, rest)
    SELECT id, node, name, type, occurred_at, received_at, CASE WHEN history THEN occurred_at ELSE learned_at END, trust,
           false, source, properties, order_key, first, message_id, rest
    FROM cdp.event WHERE node = ANY($1::uuid[])
    """,
    f"""
    INSERT INTO pg_temp.order_report (order_key, event, node, kind, trust, states_money, at, learned_at, history, total, channel)
    SELECT order_key, event, node, kind, trust, states_money, at, CASE WHEN history THEN at ELSE learned_at END, false, total,
           channel
    FROM cdp.order_report WHERE order_key IN {_OWN_KEYS}
    """,
    f"""
    INSERT INTO pg_temp.refund (order_key, event, node, refund_key, trust, at, learned_at, history, amount, lines)
    SELECT order_key, event, node, refund_key, trust, at, CASE WHEN history THEN at ELSE learned_at END, false, amount, lines
    FROM cdp.refund WHERE order_key IN {_OWN_KEYS}
    """,
    f"""
    INSERT INTO pg_temp.order_entity (key, node, event, at, first_learned_at, first_event, total, refunded, cancelled, history,
                                      channel)
    SELECT key, node, event, at, CASE WHEN history THEN at ELSE first_learned_at END, first_event, total, refunded, cancelled,
           false, channel
    FROM cdp.order_entity WHERE key IN {_OWN_KEYS}
    """,
    f"INSERT INTO pg_temp.order_line SELECT * FROM cdp.order_line WHERE order_key IN {_OWN_KEYS}",
    """
    INSERT INTO pg_temp.cart_operation (node, at, id, kind, order_key, items, learned_at)
    SELECT o.node, o.at, o.id, o.kind, o.order_key, o.items, coalesce(h.at, o.learned_at)
    FROM cdp.cart_operation o LEFT JOIN pg_temp.imported h USING (id) WHERE o.node = ANY($1::uuid[])
    """,
    """
    INSERT INTO pg_temp.cart_op (node, at, id, kind, order_key, product_id, quantity, price, product, learned_at)
    SELECT o.node, o.at, o.id, o.kind, o.order_key, o.product_id, o.quantity, o.price, o.product, coalesce(h.at, o.learned_at)
    FROM cdp.cart_op o LEFT JOIN pg_temp.imported h USING (id) WHERE o.node = ANY($1::uuid[])
    """,
    """
    INSERT INTO pg_temp.consent (id, node, origin, channel, topic, state, at, learned_at, trust, proof)
    SELECT c.id, c.node, c.origin, c.channel, c.topic, c.state, c.at, coalesce(h.at, c.learned_at), c.trust, c.proof
    FROM cdp.consent c LEFT JOIN pg_temp.imported h USING (id) WHERE c.node = ANY($1::uuid[])
    """,
]


class Past:
    """A connection whose statements read the copies in place of the views of `cdp`."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        return await self._tx.fetch(_past(sql), *arguments)

    async def fetchrow(self, sql: str, *arguments: Any) -> Any:
        return await self._tx.fetchrow(_past(sql), *arguments)

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        return await self._tx.fetchval(_past(sql), *arguments)


def _past(sql: str) -> str:
    return sql.replace("cdp.", "pg_temp.")


async def make(tx: Tx) -> None:
    """Makes the empty tables, once a connection."""
    for statement in MAKE:
        await tx.execute(statement)


async def fill(tx: Tx, nodes: Sequence[UUID]) -> Past:
    """Copies what concerns these nodes; it is gone at the end of the transaction."""
    for statement in FILL:
        await tx.execute(statement, list(nodes))
    return Past(tx)


async def entering_nodes(tx: Tx, names: Sequence[str], since: Any, until: Any, limit: int) -> list[UUID]:
    """Nodes with an event of these names in (since, until], by the time that counts here; at most `limit`."""
    rows = await tx.fetch(
        """
        SELECT DISTINCT node FROM cdp.event WHERE name = ANY($1::text[])
            AND ((NOT history AND learned_at > $2 AND learned_at <= $3)
                 OR (history AND occurred_at > $2 AND occurred_at <= $3))
        ORDER BY node LIMIT $4
        """,
        list(names),
        since,
        until,
        limit,
    )
    return [row[0] for row in rows]


async def all_nodes(tx: Tx, limit: int) -> list[UUID]:
    """One node of every profile there is, at most `limit`."""
    return [row[0] for row in await tx.fetch("SELECT nodes[1] FROM cdp.profile ORDER BY id LIMIT $1", limit)]


async def joinings(tx: Past, nodes: Sequence[UUID], since: Any, until: Any) -> list[Any]:
    """`node, from_at` of the memberships that began in (since, until] though the node was known before, or that joined others."""
    return await tx.fetch(
        "SELECT node, from_at FROM cdp.membership WHERE node = ANY($1::uuid[]) AND from_at > $2 AND from_at <= $3",
        list(nodes),
        since,
        until,
    )
