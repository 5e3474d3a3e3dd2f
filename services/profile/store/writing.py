"""Writes what became of a batch: a statement a table, whatever the size of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from services.profile.people import KnownLink, KnownNode, Person, Placed, Stay
from services.profile.person_facts import PersonFacts
from services.profile.store import copying
from services.profile.store.copying import text
from services.profile.store.locking import columns, node_columns
from shared.conditions.values import folded_of, number_of
from shared.db import Tx
from shared.facts.orders import Folded
from shared.facts.rows import OrderReport, RefundRow


# ── people ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def update_nodes(tx: Tx, nodes: Sequence[KnownNode]) -> None:
    """Rewrites the columns of nodes that can change (sorted by id)."""
    if not nodes:
        return
    await tx.execute(
        """
        UPDATE profile.node n SET profile = u.profile, first_seen = u.first_seen, learned_at = u.learned_at,
            asserted_at = u.asserted_at, confirmed_at = u.confirmed_at, over_limit = u.over_limit
        FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[],
            $7::boolean[]) AS u(id, profile, first_seen, learned_at, asserted_at, confirmed_at, over_limit)
        WHERE n.id = u.id
        """,
        *columns([(node.id, *node_columns(node)[4:], node.over_limit) for node in nodes], 7),
    )


async def write_people(tx: Tx, people: Sequence[Person], facts: Mapping[UUID, PersonFacts]) -> None:
    """The rows of profiles: whole where the person is new or regrouped, state and times where facts changed, times else."""
    whole = [person for person in people if person.regrouped]
    known = [person for person in people if not person.regrouped and person.id in facts]
    rest = [person for person in people if not person.regrouped and person.id not in facts]
    await _write_whole(tx, whole, facts)
    if known:
        await tx.execute(
            """
            UPDATE profile.profile p SET last_learned_at = u.last, first_seen = u.first, timezone = u.zone, state = u.state
            FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::text[], $5::bytea[])
                AS u(id, last, first, zone, state)
            WHERE p.id = u.id
            """,
            *columns([(p.id, p.last, p.first_seen, facts[p.id].timezone, facts[p.id].kept()) for p in known], 5),
        )
    if rest:
        await tx.execute(
            """
            UPDATE profile.profile p SET last_learned_at = u.last, first_seen = u.first
            FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[]) AS u(id, last, first) WHERE p.id = u.id
            """,
            *columns([(person.id, person.last, person.first_seen) for person in rest], 3),
        )


async def _write_whole(tx: Tx, people: Sequence[Person], facts: Mapping[UUID, PersonFacts]) -> None:
    new: list[tuple[Person, str | None, bytes]] = []
    known: list[tuple[Any, ...]] = []
    for person in people:
        there = facts.get(person.id)
        state = there.kept() if there is not None else person.state
        zone = there.timezone if there is not None else PersonFacts(person.state).timezone
        if person.stored:
            nodes = "{" + ",".join(map(str, person.nodes)) + "}"
            known.append((person.id, person.component, nodes, person.last, person.first_seen, zone, state))
        else:
            new.append((person, zone, state))
    if new:
        await copying.copy_people(tx, new)
    if known:
        await tx.execute(
            """
            UPDATE profile.profile p SET component = u.component, nodes = u.nodes::uuid[], last_learned_at = u.last,
                first_seen = u.first, timezone = u.zone, state = u.state
            FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::text[], $7::bytea[])
                AS u(id, component, nodes, last, first, zone, state)
            WHERE p.id = u.id
            """,
            *columns(known, 7),
        )


async def write_changes(
    tx: Tx,
    stays: Iterable[Stay],
    aliases: Mapping[UUID, tuple[UUID, datetime]],
    seen_before: Iterable[tuple[UUID, datetime, datetime]],
) -> None:
    """Who belonged to whom from when to when; what vanished profiles became; since when nodes are older than thought."""
    ended = [(stay.node, stay.to_at) for stay in stays if stay.from_at is None]
    begun = [stay for stay in stays if stay.from_at is not None]
    if ended:
        await tx.execute(
            """
            UPDATE profile.membership m SET to_at = u.at FROM unnest($1::uuid[], $2::timestamptz[]) AS u(node, at)
            WHERE m.node = u.node AND m.to_at IS NULL
            """,
            *columns(ended, 2),
        )
    if begun:
        await copying.copy_stays(tx, begun)
    if aliases:
        await tx.execute(
            "INSERT INTO profile.profile_alias (old, new, at) SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[])",
            *columns([(old, new, at) for old, (new, at) in aliases.items()], 3),
        )
        await delete_people(tx, list(aliases))
    if older := list(seen_before):
        await tx.execute(
            """
            INSERT INTO profile.node_seen_before (node, until, first_seen)
            SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[])
            """,
            *columns(older, 3),
        )


async def delete_people(tx: Tx, profiles: Sequence[UUID]) -> None:
    """Profiles that have no node any more."""
    if profiles:
        await tx.execute("DELETE FROM profile.profile WHERE id = ANY($1::uuid[])", profiles)


async def write_cannot(tx: Tx, pairs: Sequence[tuple[UUID, UUID]], at: datetime, principal: str) -> None:
    """Pairs that must stay apart, as a person said."""
    await tx.execute(
        """
        INSERT INTO profile.cannot_link (a, b, learned_at, principal)
        SELECT a, b, $3, $4 FROM unnest($1::uuid[], $2::uuid[]) AS u(a, b) ON CONFLICT (a, b) DO NOTHING
        """,
        [a for a, _ in pairs],
        [b for _, b in pairs],
        at,
        principal,
    )


async def delete_cannot(tx: Tx, one: Sequence[UUID], other: Sequence[UUID]) -> None:
    """What kept these two sets of nodes apart."""
    await tx.execute(
        """
        DELETE FROM profile.cannot_link
        WHERE (a = ANY($1::uuid[]) AND b = ANY($2::uuid[])) OR (a = ANY($2::uuid[]) AND b = ANY($1::uuid[]))
        """,
        one,
        other,
    )


async def cut_links(tx: Tx, one: Sequence[UUID], other: Sequence[UUID], strength: int, at: datetime) -> None:
    """Cuts the links of this strength between these two sets of nodes."""
    await tx.execute(
        """
        UPDATE profile.link SET cut_at = $4 WHERE strength = $3 AND cut_at IS NULL
            AND ((a = ANY($1::uuid[]) AND b = ANY($2::uuid[])) OR (a = ANY($2::uuid[]) AND b = ANY($1::uuid[])))
        """,
        one,
        other,
        strength,
        at,
    )


async def write_links(tx: Tx, links: Sequence[KnownLink]) -> None:
    """New links, and earlier observations of known ones (sorted by pair)."""
    if not links:
        return
    await tx.execute(
        """
        INSERT INTO profile.link AS l (a, b, strength, first_observed, id, source, trust, learned_at)
        SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::timestamptz[], $5::uuid[], $6::uuid[], $7::smallint[],
            $8::timestamptz[])
        ON CONFLICT (a, b, strength) DO UPDATE SET first_observed = excluded.first_observed, id = excluded.id,
            source = excluded.source, trust = excluded.trust, learned_at = least(l.learned_at, excluded.learned_at),
            cut_at = NULL
        """,
        *columns(
            [
                (k.link.a, k.link.b, k.link.strength, k.link.first_observed, k.link.id, k.source, k.trust, k.learned_at)
                for k in links
            ],
            8,
        ),
    )


# ── facts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def write_events(tx: Tx, placed: Sequence[Placed], first: set[UUID]) -> None:
    """The events themselves: the one table that grows with every event, so by COPY."""
    await copying.copy_events(tx, [(one, one.incoming.event.id in first) for one in placed])


async def write_traits(tx: Tx, placed: Iterable[Placed]) -> None:
    rows = [
        (
            trait.node, trait.name, trait.id, trait.trust, trait.at, one.learned_at, text(trait.value),
            folded_of(trait.value), number_of(trait.value),
        )
        for one in placed
        for trait in one.incoming.found.traits
    ]  # fmt: skip
    if rows:
        await tx.execute(
            """
            INSERT INTO profile.trait (node, name, id, trust, at, learned_at, value, folded, number)
            SELECT node, name, id, trust, at, learned_at, value::jsonb, folded, number
            FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::smallint[], $5::timestamptz[], $6::timestamptz[], $7::text[],
                $8::text[], $9::numeric[]) AS u(node, name, id, trust, at, learned_at, value, folded, number)
            """,
            *columns(rows, 9),
        )


async def write_carts(tx: Tx, placed: Iterable[Placed]) -> None:
    rows = [
        (one.incoming.origin, op.at, op.id, op.kind, op.order_key, text(op.items), one.learned_at)
        for one in placed
        if (op := one.incoming.found.cart) is not None
    ]
    if rows:
        await tx.execute(
            """
            INSERT INTO profile.cart_op (node, at, id, kind, order_key, items, learned_at)
            SELECT node, at, id, kind, order_key, items::jsonb, learned_at
            FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::timestamptz[])
                AS u(node, at, id, kind, order_key, items, learned_at)
            """,
            *columns(rows, 7),
        )


async def write_consents(tx: Tx, placed: Iterable[Placed]) -> None:
    rows = [
        (
            row.node, row.channel, row.topic, row.id, row.origin, row.state, row.trust, row.at, one.learned_at, text(row.proof)
        )
        for one in placed
        for row in one.incoming.found.consents
    ]  # fmt: skip
    if rows:
        await tx.execute(
            """
            INSERT INTO profile.consent (node, channel, topic, id, origin, state, trust, at, learned_at, proof)
            SELECT node, channel, topic, id, origin, state, trust, at, learned_at, proof::jsonb
            FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::uuid[], $6::text[], $7::smallint[],
                $8::timestamptz[], $9::timestamptz[], $10::text[])
                AS u(node, channel, topic, id, origin, state, trust, at, learned_at, proof)
            """,
            *columns(rows, 10),
        )


# ── orders ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def write_reports(tx: Tx, placed: Sequence[Placed]) -> None:
    """Reports of orders, their lines, and refunds."""
    reports = [one.incoming.found.report for one in placed if one.incoming.found.report is not None]
    refunds = [one.incoming.found.refund for one in placed if one.incoming.found.refund is not None]
    await _write_order_reports(tx, reports)
    await _write_lines(tx, reports)
    await _write_refunds(tx, refunds)


async def _write_order_reports(tx: Tx, reports: Sequence[OrderReport]) -> None:
    if not reports:
        return
    await tx.execute(
        """
        INSERT INTO profile.order_report
            (order_key, event, node, kind, trust, states_money, at, learned_at, history, total, channel)
        SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::smallint[], $6::boolean[],
            $7::timestamptz[], $8::timestamptz[], $9::boolean[], $10::numeric[], $11::text[])
        """,
        *columns(
            [
                (
                    r.order_key, r.event, r.node, r.kind, r.trust, r.states_money, r.at, r.learned_at, r.history, r.total,
                    r.channel,
                )
                for r in reports
            ],
            11,
        ),
    )  # fmt: skip


async def _write_lines(tx: Tx, reports: Sequence[OrderReport]) -> None:
    lines = [
        (r.event, i, r.order_key, line.product_id, folded_of(line.product.get("category")), line.quantity, line.price,
         text(line.product))
        for r in reports
        for i, line in enumerate(r.lines)
    ]  # fmt: skip
    if lines:
        await tx.execute(
            """
            INSERT INTO profile.order_line (event, line, order_key, product_id, folded_category, quantity, price, product)
            SELECT event, line, order_key, product_id, folded_category, quantity, price, product::jsonb
            FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::text[], $6::numeric[], $7::numeric[], $8::text[])
                AS u(event, line, order_key, product_id, folded_category, quantity, price, product)
            """,
            *columns(lines, 8),
        )


async def _write_refunds(tx: Tx, refunds: Sequence[RefundRow]) -> None:
    if not refunds:
        return
    await tx.execute(
        """
        INSERT INTO profile.refund
            (order_key, event, node, refund_key, trust, at, learned_at, history, amount, lines)
        SELECT order_key, event, node, refund_key, trust, at, learned_at, history, amount, lines::jsonb
        FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::smallint[], $6::timestamptz[], $7::timestamptz[],
            $8::boolean[], $9::numeric[], $10::text[])
            AS u(order_key, event, node, refund_key, trust, at, learned_at, history, amount, lines)
        """,
        *columns(
            [
                (
                    r.order_key, r.event, r.node, r.refund_key, r.trust, r.at, r.learned_at, r.history, r.amount,
                    text(r.lines),
                )
                for r in refunds
            ],
            10,
        ),
    )  # fmt: skip


async def write_orders(tx: Tx, orders: Mapping[str, Folded], first_events: Mapping[str, UUID | None]) -> None:
    """The rows of the orders, which are locked: what all reports and refunds say together."""
    rows: list[tuple[Any, ...]] = []
    for key, folded in sorted(orders.items()):
        order, winner = folded.order, folded.winner
        if order is None or winner is None:
            refunded = sum((refund.amount or 0 for refund in folded.refunds), 0)
            rows.append((key, None, None, None, None, None, None, refunded, False, False, None))
            continue
        rows.append(
            (
                key, order.node, winner.event, order.at, order.learned_at, first_events.get(key), order.total, order.refunded,
                order.cancelled, order.history, order.channel,
            )
        )  # fmt: skip
    if rows:
        await tx.execute(
            """
            UPDATE profile.orders o SET node = u.node, event = u.event, at = u.at, first_learned_at = u.learned_at,
                first_event = u.first_event, total = u.total, refunded = u.refunded, cancelled = u.cancelled,
                history = u.history, channel = u.channel
            FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::timestamptz[], $6::uuid[], $7::numeric[],
                $8::numeric[], $9::boolean[], $10::boolean[], $11::text[])
                AS u(key, node, event, at, learned_at, first_event, total, refunded, cancelled, history, channel)
            WHERE o.key = u.key
            """,
            *columns(rows, 11),
        )
