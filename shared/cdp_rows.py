"""Reads the rows of many people at once, as of a moment each, through the `cdp.*` views (see `shared.cdp`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from shared.db import Tx
from shared.facts.cart import LIFETIME, LIMIT
from shared.facts.orders import Folded, fold_order
from shared.facts.rows import CartLine, CartOp, ConsentRow, OrderReport, RefundRow, ReportLine, TraitRow
from shared.facts.state import NodeRow

Asked = Sequence[tuple[Sequence[UUID], datetime | None]]


class RowsOfPeople(msgspec.Struct):
    """All rows of one person as of one moment. `keys`: orders and refunds that concern the person; `last_learned_at`: of the
    last event of its nodes."""

    traits: list[TraitRow] = []
    nodes: list[NodeRow] = []
    cart: list[CartOp] = []
    consents: list[ConsentRow] = []
    reports: dict[str, list[OrderReport]] = {}
    refunds: dict[str, list[RefundRow]] = {}
    keys: set[str] = set()
    first_seen: datetime | None = None
    last_learned_at: datetime | None = None

    def order(self, key: str) -> Folded:
        """What all reports and refunds of this order say together."""
        return fold_order(self.reports.get(key, []), self.refunds.get(key, []))


async def read_rows(
    tx: Tx,
    asked: Asked,
    *,
    keys: Sequence[Iterable[str]] | None = None,
    only_orders: bool = False,
    cart_since: datetime | None = None,
) -> list[RowsOfPeople]:
    """The rows of each (nodes, moment; None: all there are).

    :param keys: further orders wanted, whoever reported them
    :param cart_since: operations on the cart from here on, where no moment says it
    """
    people = [RowsOfPeople() for _ in asked]
    own = _Own(asked)
    if not only_orders:
        await _read_traits(tx, people, own)
        await _read_nodes(tx, people, own)
        await _read_cart(tx, people, own, cart_since)
        await _read_consents(tx, people, own)
        await _find_keys(tx, people, own)
    for person, wanted in zip(people, keys or [], strict=False):
        person.keys.update(wanted)
    await _read_orders(tx, people, asked)
    return people


class _Own:
    """The nodes of all questions as parallel arrays: number of the question, node, moment."""

    def __init__(self, asked: Asked) -> None:
        rows = [(i, node, at) for i, (nodes, at) in enumerate(asked) for node in nodes]
        self.numbers = [row[0] for row in rows]
        self.nodes = [row[1] for row in rows]
        self.moments = [row[2] for row in rows]

    SQL = """own AS (
        SELECT i, node, coalesce(at, 'infinity') AS at FROM unnest($1::int[], $2::uuid[], $3::timestamptz[]) AS o(i, node, at)
    )"""

    @property
    def arguments(self) -> tuple[list[int], list[UUID], list[datetime | None]]:
        return self.numbers, self.nodes, self.moments


async def _read_traits(tx: Tx, people: list[RowsOfPeople], own: _Own) -> None:
    rows = await tx.fetch(
        f"""
        WITH {own.SQL}
        SELECT DISTINCT ON (own.i, t.name) own.i, t.node, t.name, t.value, t.trust, t.at, t.id
        FROM own JOIN cdp.trait t ON t.node = own.node AND t.learned_at <= own.at
        ORDER BY own.i, t.name, t.trust DESC, t.at DESC, t.id DESC
        """,
        *own.arguments,
    )
    for i, *row in rows:
        people[i].traits.append(TraitRow(*row))


async def _read_nodes(tx: Tx, people: list[RowsOfPeople], own: _Own) -> None:
    rows = await tx.fetch(
        f"""
        WITH {own.SQL}
        SELECT own.i, n.id, n.kind, n.value, coalesce(b.first_seen, n.first_seen), n.asserted_at, n.confirmed_at, e.learned_at
        FROM own JOIN cdp.node n ON n.id = own.node
        LEFT JOIN LATERAL (
            SELECT x.learned_at FROM cdp.event x WHERE x.node = own.node AND x.learned_at <= own.at
            ORDER BY x.learned_at DESC LIMIT 1
        ) e ON true
        LEFT JOIN LATERAL (
            SELECT s.first_seen FROM cdp.node_seen_before s WHERE s.node = own.node AND s.until > own.at
            ORDER BY s.until LIMIT 1
        ) b ON true
        """,
        *own.arguments,
    )
    for i, node, kind, value, first_seen, asserted_at, confirmed_at, learned_at in rows:
        person = people[i]
        if learned_at is not None:
            person.last_learned_at = max(learned_at, person.last_learned_at or learned_at)
        person.nodes.append(
            NodeRow(
                id=node,
                kind=kind,
                value=value,
                first_seen=first_seen,
                asserted_at=asserted_at,
                confirmed_at=confirmed_at,
            )
        )
        person.first_seen = first_seen if person.first_seen is None else min(person.first_seen, first_seen)


async def _read_cart(tx: Tx, people: list[RowsOfPeople], own: _Own, since: datetime | None) -> None:
    rows = await tx.fetch(
        f"""
        WITH {own.SQL}
        SELECT own.i, o.at, o.id, o.kind, o.order_key, o.items
        FROM own CROSS JOIN LATERAL (
            SELECT * FROM cdp.cart_operation o WHERE o.node = own.node AND o.learned_at <= own.at AND o.at > CASE
                WHEN own.at = 'infinity' THEN coalesce($5::timestamptz, '-infinity') ELSE own.at - $4::interval END
            ORDER BY o.at DESC, o.id DESC LIMIT $6
        ) o
        """,
        *own.arguments,
        LIFETIME,
        since,
        LIMIT,
    )
    for i, at, event, kind, order_key, items in rows:
        people[i].cart.append(CartOp(at, event, kind, order_key, cart_lines(items)))


async def read_carts(tx: Tx, nodes: Sequence[UUID], since: datetime) -> dict[UUID, RowsOfPeople]:
    """Only the operations on the cart of each node, from `since` on."""
    people = [RowsOfPeople() for _ in nodes]
    await _read_cart(tx, people, _Own([([node], None) for node in nodes]), since)
    return dict(zip(nodes, people, strict=True))


def cart_lines(items: list[dict[str, Any]]) -> list[CartLine]:
    """Items as they stand in the table."""
    return msgspec.convert(items, list[CartLine], strict=False)


async def _read_consents(tx: Tx, people: list[RowsOfPeople], own: _Own) -> None:
    rows = await tx.fetch(
        f"""
        WITH {own.SQL}
        SELECT own.i, c.node, c.channel, c.topic, c.id, c.state, c.at, c.origin, c.trust, c.proof
        FROM own JOIN cdp.consent c ON c.node = own.node AND c.learned_at <= own.at
        """,
        *own.arguments,
    )
    for i, node, channel, topic, event, state, at, origin, trust, proof in rows:
        people[i].consents.append(
            ConsentRow(
                node=node,
                channel=channel,
                topic=topic,
                id=event,
                state=state,
                at=at,
                origin=origin,
                trust=trust,
                proof=proof,
            )
        )


async def _find_keys(tx: Tx, people: list[RowsOfPeople], own: _Own) -> None:
    rows = await tx.fetch(
        f"""
        WITH {own.SQL}
        SELECT own.i, r.order_key FROM own JOIN cdp.order_report r ON r.node = own.node AND r.learned_at <= own.at
        UNION
        SELECT own.i, r.order_key FROM own JOIN cdp.refund r ON r.node = own.node AND r.learned_at <= own.at
        """,
        *own.arguments,
    )
    for i, key in rows:
        people[i].keys.add(key)


class _Keys:
    """The order keys of all questions as parallel arrays: number of the question, key, moment."""

    def __init__(self, people: list[RowsOfPeople], asked: Asked) -> None:
        rows = [(i, key) for i, person in enumerate(people) for key in sorted(person.keys)]
        self.arguments = [i for i, _ in rows], [key for _, key in rows], [asked[i][1] for i, _ in rows]

    SQL = """wanted AS (
        SELECT i, key, coalesce(at, 'infinity') AS at FROM unnest($1::int[], $2::text[], $3::timestamptz[]) AS w(i, key, at)
    )"""


async def _read_orders(tx: Tx, people: list[RowsOfPeople], asked: Asked) -> None:
    """All reports, lines and refunds of the keys, whoever they came from."""
    if any(person.keys for person in people):
        keys = _Keys(people, asked)
        await _read_reports(tx, people, keys)
        await _read_refunds(tx, people, keys)


async def _read_reports(tx: Tx, people: list[RowsOfPeople], keys: _Keys) -> None:
    reports = await tx.fetch(
        f"""
        WITH {keys.SQL}
        SELECT w.i, r.order_key, r.event, r.node, r.kind, r.trust, r.at, r.learned_at, r.history, r.total, r.channel
        FROM wanted w JOIN cdp.order_report r ON r.order_key = w.key COLLATE "C" AND r.learned_at <= w.at
        """,
        *keys.arguments,
    )
    lines = await read_lines(tx, {row["event"] for row in reports})
    for i, key, event, node, kind, trust, at, learned_at, history, total, channel in reports:
        people[i].reports.setdefault(key, []).append(
            OrderReport(
                order_key=key,
                event=event,
                node=node,
                kind=kind,
                trust=trust,
                at=at,
                learned_at=learned_at,
                history=history,
                total=total,
                channel=channel,
                lines=lines.get(event, []),
            )
        )


async def _read_refunds(tx: Tx, people: list[RowsOfPeople], keys: _Keys) -> None:
    refunds = await tx.fetch(
        f"""
        WITH {keys.SQL}
        SELECT w.i, r.order_key, r.event, r.node, r.refund_key, r.trust, r.at, r.learned_at, r.history, r.amount, r.lines
        FROM wanted w JOIN cdp.refund r ON r.order_key = w.key COLLATE "C" AND r.learned_at <= w.at
        """,
        *keys.arguments,
    )
    for i, key, event, node, refund_key, trust, at, learned_at, history, amount, returned in refunds:
        people[i].refunds.setdefault(key, []).append(
            RefundRow(
                order_key=key,
                event=event,
                node=node,
                refund_key=refund_key,
                trust=trust,
                at=at,
                learned_at=learned_at,
                history=history,
                amount=amount,
                lines=report_lines(returned),
            )
        )


def report_lines(lines: list[dict[str, Any]]) -> list[ReportLine]:
    """Lines as they stand in a jsonb column."""
    return msgspec.convert(lines, list[ReportLine], strict=False)


async def read_lines(tx: Tx, events: Iterable[UUID]) -> dict[UUID, list[ReportLine]]:
    """The lines of these reports, in their order."""
    rows = await tx.fetch(
        """
        SELECT event, product_id, quantity, price, product FROM cdp.order_line
        WHERE event = ANY($1::uuid[]) ORDER BY event, line
        """,
        list(events),
    )
    lines: dict[UUID, list[ReportLine]] = {}
    for event, product_id, quantity, price, product in rows:
        lines.setdefault(event, []).append(ReportLine(product_id, quantity, price, product))
    return lines
