"""A small base of people as rows below the `cdp` views, made from events by the product's own extraction and folds.

Times are offsets from `T`, the moment the tests ask about, so that examples can lie exactly on the edge of a window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from shared.cdp import state_of
from shared.cdp_rows import read_rows
from shared.conditions.values import folded_of, number_of
from shared.db import Tx
from shared.events import Event
from shared.facts.extract import Extracted, extract
from shared.facts.orders import fold_order
from shared.facts.rows import OrderReport, RefundRow
from shared.facts.state import encode_state, without_lines, zone_of
from shared.identifiers import Identifier

T = datetime(2024, 6, 15, 12, 0, tzinfo=UTC)
LONG_AGO = T - timedelta(days=2000)
SOURCE = UUID(int=99)
TRUSTS = ("public", "signed", "secret", "internal")


@dataclass
class SomeNode:
    """An identifier; `moves`: (when, profile number), the first at its birth; times of its status as an address."""

    kind: str
    moves: list[tuple[datetime, int]]
    asserted_at: datetime | None = None
    confirmed_at: datetime | None = None


@dataclass
class SomeEvent:
    """An event of the node with that number."""

    node: int
    name: str
    occurred_at: datetime
    learned_at: datetime
    properties: dict[str, Any] = field(default_factory=dict)
    traits: dict[str, Any] = field(default_factory=dict)
    trust: int = 2
    history: bool = False


def node_id(number: int) -> UUID:
    return UUID(int=1000 + number)


def profile_id(number: int) -> UUID:
    return UUID(int=2000 + number)


class People:
    """Writes nodes and events as the rows that profile would have written."""

    def __init__(self, nodes: list[SomeNode], events: list[SomeEvent]) -> None:
        self.nodes = nodes
        # One learned-at for each event: profile gives everybody's rows a time of their own.
        self.events = sorted(events, key=lambda event: event.learned_at)
        for i, (before, event) in enumerate(zip(self.events, self.events[1:], strict=False)):
            if event.learned_at <= before.learned_at:
                self.events[i + 1].learned_at = before.learned_at + timedelta(microseconds=1)
        self.extracted = [extract(self._event(i), event.learned_at, "RUB") for i, event in enumerate(self.events)]
        self.last_learned: dict[int, datetime] = {}
        for node in nodes:
            for (at, profile), left in zip(node.moves, [None, *[p for _, p in node.moves]], strict=False):
                self._touch(profile, at)
                if left is not None:
                    self._touch(left, at)

    async def write(self, tx: Tx) -> None:
        """Inserts everything."""
        await self._write_events(tx)
        await self._write_parts(tx)
        await self._write_orders(tx)
        await self._write_nodes(tx)
        await self._write_profiles(tx)

    def _event(self, i: int) -> Event:
        event = self.events[i]
        node = self.nodes[event.node]
        return Event(
            id=self._id(i),
            source=SOURCE,
            trust=TRUSTS[event.trust],  # type: ignore[arg-type]
            type="track",
            name=event.name,
            origin=node_id(event.node),
            ids=[Identifier(kind=node.kind, value=f"v{event.node}", node=node_id(event.node))],
            occurred_at=event.occurred_at,
            received_at=event.learned_at,
            hash="",
            history=event.history,
            properties=event.properties,
            traits=event.traits,
        )

    def _id(self, i: int) -> UUID:
        # Neither in the order of time nor of nodes: ties are broken by it.
        return UUID(int=(i * 7919 % 101) << 64 | i)

    def _touch(self, profile: int, at: datetime) -> None:
        self.last_learned[profile] = max(at, self.last_learned.get(profile, at))

    def _owner(self, node: UUID, at: datetime) -> int:
        return [profile for since, profile in self.nodes[node.int - 1000].moves if since <= at][-1]

    async def _write_events(self, tx: Tx) -> None:
        rows = []
        for i, (event, found) in enumerate(zip(self.events, self.extracted, strict=True)):
            self._touch(self._owner(node_id(event.node), event.learned_at), event.learned_at)
            rows.append(
                (
                    node_id(event.node), event.learned_at, self._id(i), event.name, "track", event.occurred_at,
                    event.learned_at, event.trust, event.history, False, SOURCE, found.order_key, None,
                    event.properties, {},
                )
            )  # fmt: skip
        await _insert(tx, "event", rows)

    async def _write_parts(self, tx: Tx) -> None:
        traits, carts, consents = [], [], []
        for event, found in zip(self.events, self.extracted, strict=True):
            learned_at = event.learned_at
            for t in found.traits:
                prepared = folded_of(t.value), number_of(t.value)
                traits.append((t.node, t.name, t.id, t.trust, t.at, learned_at, t.value, *prepared))
            if (op := found.cart) is not None:
                items = [msgspec.to_builtins(item) | {"product": item.product} for item in op.items]
                carts.append((node_id(event.node), op.at, op.id, op.kind, op.order_key, items, learned_at))
            consents += [
                (c.node, c.channel, c.topic, c.id, c.origin, c.state, c.trust, c.at, learned_at, c.proof)
                for c in found.consents
            ]
        await _insert(tx, "trait", traits)
        await _insert(tx, "cart_op", carts)
        await _insert(tx, "consent", consents)

    async def _write_orders(self, tx: Tx) -> None:
        reports: dict[str, list[OrderReport]] = {}
        refunds: dict[str, list[RefundRow]] = {}
        for event, found in zip(self.events, self.extracted, strict=True):
            key = found.order_key
            if key is None:
                continue
            before = self._order_nodes(reports.get(key, []))
            _collect(found, reports, refunds)
            of_refunds = {refund.node for refund in refunds.get(key, [])}
            for node in before | self._order_nodes(reports.get(key, [])) | of_refunds:
                self._touch(self._owner(node, event.learned_at), event.learned_at)
        await _insert(tx, "orders", [_order_row(key, reports, refunds) for key in sorted({*reports, *refunds})])
        await _insert(tx, "order_report", [_report_row(r) for of in reports.values() for r in of])
        await _insert(tx, "order_line", [row for of in reports.values() for r in of for row in _line_rows(r)])
        await _insert(tx, "refund", [_refund_row(r) for of in refunds.values() for r in of])

    def _order_nodes(self, reports: list[OrderReport]) -> set[UUID]:
        order = fold_order(reports, []).order
        return {order.node} if order else set()

    async def _write_nodes(self, tx: Tx) -> None:
        nodes, members, before = [], [], []
        for number, node in enumerate(self.nodes):
            first = born = node.moves[0][0]
            for event in self.events:
                if event.node == number and event.occurred_at < first:
                    before.append((node_id(number), event.learned_at, first))
                    first = event.occurred_at
            present = profile_id(node.moves[-1][1])
            nodes.append(
                (
                    node_id(number), node.kind, f"v{number}", f"v{number}", present, first, born, node.asserted_at,
                    node.confirmed_at, False,
                )
            )  # fmt: skip
            ends = [at for at, _ in node.moves[1:]] + [None]
            for (since, profile), until in zip(node.moves, ends, strict=True):
                members.append((node_id(number), since, until, profile_id(profile)))
        await _insert(tx, "node", nodes)
        await _insert(tx, "membership", members)
        await _insert(tx, "node_seen_before", before)

    async def _write_profiles(self, tx: Tx) -> None:
        """Only people who exist now have a row: those who were merged away have none."""
        present: dict[int, list[UUID]] = {}
        for number, node in enumerate(self.nodes):
            present.setdefault(node.moves[-1][1], []).append(node_id(number))
        everything = await read_rows(tx, [(sorted(nodes), None) for nodes in present.values()])
        rows = []
        for (number, nodes), known in zip(present.items(), everything, strict=True):
            learned_at = self.last_learned[number]
            state = state_of(known, nodes, learned_at)
            state.orders = [without_lines(order) for order in state.orders]
            zone = zone_of({name: value.value for name, value in state.traits.items()})
            rows.append(
                (
                    profile_id(number), profile_id(number), sorted(nodes), learned_at, known.first_seen, zone,
                    encode_state(state),
                )
            )  # fmt: skip
        await _insert(tx, "profile", rows)


def _collect(found: Extracted, reports: dict[str, list[OrderReport]], refunds: dict[str, list[RefundRow]]) -> None:
    if found.report is not None:
        reports.setdefault(found.report.order_key, []).append(found.report)
    if found.refund is not None:
        refunds.setdefault(found.refund.order_key, []).append(found.refund)


def _order_row(key: str, reports: dict[str, list[OrderReport]], refunds: dict[str, list[RefundRow]]) -> tuple:
    folded = fold_order(reports.get(key, []), refunds.get(key, []))
    if folded.order is None or folded.winner is None:
        return (key, None, None, None, None, None, None, 0, False, False, None)
    o = folded.order
    return (
        key, o.node, folded.winner.event, o.at, o.learned_at, folded.winner.event, o.total, o.refunded, o.cancelled,
        o.history, o.channel,
    )  # fmt: skip


def _report_row(r: OrderReport) -> tuple:
    return (
        r.order_key, r.event, r.node, r.kind, r.trust, r.states_money, r.at, r.learned_at, r.history, r.total, r.channel,
    )  # fmt: skip


def _line_rows(r: OrderReport) -> list[tuple]:
    return [
        (r.event, i, r.order_key, x.product_id, folded_of(x.product.get("category")), x.quantity, x.price, x.product)
        for i, x in enumerate(r.lines)
    ]


def _refund_row(r: RefundRow) -> tuple:
    lines = [msgspec.to_builtins(line) for line in r.lines]
    return (r.order_key, r.event, r.node, r.refund_key, r.trust, r.at, r.learned_at, r.history, r.amount, lines)


async def _insert(tx: Tx, table: str, rows: list[tuple]) -> None:
    if rows:
        places = ", ".join(f"${i}" for i in range(1, len(rows[0]) + 1))
        if table == "trait":  # JSON's null, not SQL's: the trait was taken away
            places = places.replace("$7", "coalesce($7, 'null'::jsonb)")
        await tx.executemany(f"INSERT INTO profile.{table} VALUES ({places})", rows)
