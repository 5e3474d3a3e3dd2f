"""Which nodes, links and people a batch concerns, read and locked in one order for all: event ids, nodes, people, orders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from services.profile.identity import Link, Pair
from services.profile.people import KnownNode, Person
from shared.db import Tx

_NODE = "id, kind, value, profile, first_seen, learned_at, asserted_at, confirmed_at, over_limit"


async def see(tx: Tx, events: Sequence[tuple[UUID, bytes, datetime]]) -> dict[UUID, bytes]:
    """Notes the events (id, hash, received at; sorted by id) as seen. Returns the hashes of those that were seen before."""
    ids = [event for event, _, _ in events]
    rows = await tx.fetch(
        """
        INSERT INTO profile.event_seen (id, hash, received_at) SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::timestamptz[])
        ON CONFLICT (id) DO NOTHING RETURNING id
        """,
        ids,
        [digest for _, digest, _ in events],
        [received for _, _, received in events],
    )
    if len(rows) == len(ids):
        return {}
    new = {row["id"] for row in rows}
    known = await tx.fetch(
        "SELECT id, hash FROM profile.event_seen WHERE id = ANY($1::uuid[])",
        [event for event in ids if event not in new],
    )
    return {row["id"]: row["hash"] for row in known}


async def forget_seen(tx: Tx, before: datetime, limit: int) -> int:
    """Forgets up to `limit` events that were received before that moment; returns how many.

    No index leads there: one more would cost each event something, and the table is read to the end once a day only.
    """
    done = await tx.fetch(
        """
        DELETE FROM profile.event_seen
        WHERE id = ANY(ARRAY(SELECT id FROM profile.event_seen WHERE received_at < $1 LIMIT $2)) RETURNING 1
        """,
        before,
        limit,
    )
    return len(done)


async def read_nodes(tx: Tx, nodes: Iterable[UUID]) -> dict[UUID, KnownNode]:
    """The nodes that exist."""
    rows = await tx.fetch(f"SELECT {_NODE} FROM profile.node WHERE id = ANY($1::uuid[])", list(nodes))
    return {row[0]: _node(row) for row in rows}


def _node(row: Sequence) -> KnownNode:
    node, kind, value, profile, first_seen, learned_at, asserted_at, confirmed_at, over_limit = row
    return KnownNode(
        node,
        kind,
        first_seen,
        asserted_at is not None or confirmed_at is not None,
        over_limit,
        value,
        profile,
        learned_at,
        asserted_at,
        confirmed_at,
    )


async def claim_nodes(tx: Tx, nodes: Sequence[KnownNode]) -> dict[UUID, KnownNode]:
    """Inserts nodes that nobody has met (sorted by id). Returns those that somebody else has met meanwhile."""
    rows = await tx.fetch(
        """
        INSERT INTO profile.node
            (id, kind, value, folded, profile, first_seen, learned_at, asserted_at, confirmed_at, over_limit)
        SELECT *, false FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::timestamptz[],
            $7::timestamptz[], $8::timestamptz[], $9::timestamptz[])
        ON CONFLICT (id) DO NOTHING RETURNING id
        """,
        *columns([node_columns(node) for node in nodes], 9),
    )
    if len(rows) == len(nodes):
        return {}
    new = {row["id"] for row in rows}
    return await read_nodes(tx, [node.id for node in nodes if node.id not in new])


def node_columns(node: KnownNode) -> tuple:
    """The columns of a node in the order of the statements."""
    return (
        node.id, node.kind, node.value, node.value.casefold(), node.profile, node.first_seen, node.learned_at,
        node.asserted_at, node.confirmed_at,
    )  # fmt: skip


def columns(rows: Sequence[tuple], width: int) -> list[list]:
    """Rows as parallel arrays."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


async def read_pairs(tx: Tx, keys: Iterable[tuple[Pair, int]]) -> list[Link]:
    """Those of these links that are known."""
    keys = sorted(keys)
    rows = await tx.fetch(
        """
        SELECT l.a, l.b, l.strength, l.first_observed, l.id
        FROM unnest($1::uuid[], $2::uuid[], $3::smallint[]) AS u(a, b, strength) JOIN profile.link l USING (a, b, strength)
        WHERE l.cut_at IS NULL
        """,
        [a for (a, _), _ in keys],
        [b for (_, b), _ in keys],
        [strength for _, strength in keys],
    )
    return [Link(*row) for row in rows]


async def read_owners(tx: Tx, keys: Iterable[str]) -> dict[UUID, UUID]:
    """Node → profile of everybody who has one of these orders among their facts now."""
    rows = await tx.fetch(
        """
        WITH wanted AS (SELECT k COLLATE "C" AS key FROM unnest($1::text[]) AS u(k))
        SELECT n.id, n.profile FROM profile.orders o JOIN wanted USING (key) JOIN profile.node n ON n.id = o.node
        UNION
        SELECT n.id, n.profile FROM profile.refund r JOIN wanted ON r.order_key = wanted.key
        JOIN profile.node n ON n.id = r.node
        """,
        list(keys),
    )
    return {row["id"]: row["profile"] for row in rows}


async def connected(tx: Tx, profiles: Iterable[UUID]) -> set[UUID]:
    """All profiles in the components of these profiles."""
    rows = await tx.fetch(
        """
        SELECT DISTINCT other.id FROM profile.profile own JOIN profile.profile other USING (component)
        WHERE own.id = ANY($1::uuid[])
        """,
        list(profiles),
    )
    return {row["id"] for row in rows}


async def lock_people(tx: Tx, profiles: Iterable[UUID]) -> list[Person]:
    """Locks the profiles' rows in the order of their ids; returns those that exist still."""
    rows = await tx.fetch(
        """
        SELECT id, component, nodes, last_learned_at, first_seen, state FROM profile.profile
        WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE
        """,
        sorted(profiles),
    )
    return [Person(*row) for row in rows]


async def lock_orders(tx: Tx, keys: Sequence[str]) -> dict[str, UUID | None]:
    """Makes (where missing) and locks these orders' rows; `keys` sorted. Returns the event that was their first report."""
    await tx.execute(
        """
        INSERT INTO profile.orders (key, refunded, cancelled, history)
        SELECT k, 0, false, false FROM unnest($1::text[]) AS u(k) ON CONFLICT (key) DO NOTHING
        """,
        keys,
    )
    rows = await tx.fetch(
        """
        SELECT key, first_event FROM profile.orders WHERE key = ANY($1::text[]) ORDER BY key FOR UPDATE
        """,
        keys,
    )
    return {row["key"]: row["first_event"] for row in rows}


async def read_links(tx: Tx, nodes: Sequence[UUID]) -> list[Link]:
    """All links of these nodes that are not cut."""
    rows = await tx.fetch(
        """
        SELECT a, b, strength, first_observed, id FROM profile.link WHERE a = ANY($1::uuid[]) AND cut_at IS NULL
        UNION
        SELECT a, b, strength, first_observed, id FROM profile.link WHERE b = ANY($1::uuid[]) AND cut_at IS NULL
        """,
        nodes,
    )
    return [Link(*row) for row in rows]


async def read_cannot(tx: Tx, nodes: Sequence[UUID]) -> list[Pair]:
    """The pairs among these nodes that a person cut by hand."""
    rows = await tx.fetch(
        "SELECT a, b FROM profile.cannot_link WHERE a = ANY($1::uuid[]) AND b = ANY($1::uuid[])", nodes
    )
    return [(row["a"], row["b"]) for row in rows]
