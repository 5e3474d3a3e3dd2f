"""What a batch needs to know beyond who is concerned: orders, consents, rows to fold anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from services.profile.books import ConsentBook, OrderBook
from shared.cdp_rows import RowsOfPeople, read_carts, read_rows
from shared.db import Tx
from shared.facts.rows import ConsentRow


async def read_orders(tx: Tx, keys: Iterable[str]) -> OrderBook:
    """All reports and refunds of these orders."""
    rows = (await read_rows(tx, [([], None)], keys=[keys], only_orders=True))[0]
    return OrderBook(
        (report for reports in rows.reports.values() for report in reports),
        (refund for refunds in rows.refunds.values() for refund in refunds),
    )


async def read_consents(tx: Tx, addresses: Iterable[UUID]) -> ConsentBook:
    """The whole ledger of these addresses."""
    rows = await tx.fetch(
        """
        SELECT node, channel, topic, id, state, at, origin, trust, proof FROM profile.consent WHERE node = ANY($1::uuid[])
        """,
        list(addresses),
    )
    names = ("node", "channel", "topic", "id", "state", "at", "origin", "trust", "proof")
    return ConsentBook(ConsentRow(**dict(zip(names, row, strict=True))) for row in rows)


async def read_to_fold(
    tx: Tx, everything: Iterable[UUID], carts: Iterable[UUID], cart_since: datetime
) -> dict[UUID, RowsOfPeople]:
    """The rows of nodes that are folded anew: all of them, or only those of the cart (from `cart_since` on)."""
    found: dict[UUID, RowsOfPeople] = {}
    if nodes := sorted(everything):
        asked: Sequence[tuple[list[UUID], None]] = [([node], None) for node in nodes]
        found.update(zip(nodes, await read_rows(tx, asked, cart_since=cart_since), strict=True))
    if nodes := sorted(carts):
        found.update(await read_carts(tx, nodes, cart_since))
    return found
