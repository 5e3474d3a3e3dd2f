"""The rows of which facts are made, one kind a struct. Each has its origin node (or, for consent, the address's node).

A node's state is the set of its rows; ⊕ of two nodes' states is the union of the two sets, which is commutative and
associative by itself. Every fold below `shared/facts` is a pure function of such a set: the order of the rows, and how they
are spread over nodes, make no difference. Trust is a rank here: 0 public, 1 signed, 2 secret, 3 internal.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

# The least rank of a source that may state money.
MONEY = 2


class TraitRow(msgspec.Struct, array_like=True):
    """One value of a trait as one event gave it; `value` None: the trait was taken away."""

    node: UUID
    name: str
    value: Any
    trust: int
    at: datetime
    id: UUID


class CartLine(msgspec.Struct, omit_defaults=True):
    """A product in an operation on the cart. `quantity` None: as many as there are."""

    product_id: str
    quantity: Decimal | None = None
    price: Decimal | None = None
    product: dict[str, Any] = {}


class CartOp(msgspec.Struct, array_like=True):
    """One operation on the cart. kind: add | remove | view | order; `order_key`: the order that took the items out."""

    at: datetime
    id: UUID
    kind: str
    order_key: str | None
    items: list[CartLine]


class ReportLine(msgspec.Struct, omit_defaults=True):
    """One line of a report of an order, or of a refund."""

    product_id: str
    quantity: Decimal
    price: Decimal | None = None
    product: dict[str, Any] = {}


class OrderReport(msgspec.Struct, kw_only=True):
    """One source's report of an order. kind: completed | updated | cancelled; `total` None: it states no money."""

    order_key: str
    event: UUID
    node: UUID
    kind: str
    trust: int
    at: datetime
    learned_at: datetime
    history: bool = False
    total: Decimal | None = None
    channel: str | None = None
    lines: list[ReportLine] = []

    @property
    def states_money(self) -> bool:
        return self.trust >= MONEY


class RefundRow(msgspec.Struct, kw_only=True):
    """One report of a refund by a source that may state money. `amount` None: what the order says of
    the goods in `lines`, and where there are none, all of the order."""

    order_key: str
    event: UUID
    node: UUID
    refund_key: str
    trust: int
    at: datetime
    learned_at: datetime
    history: bool = False
    amount: Decimal | None = None
    lines: list[ReportLine] = []


class ConsentRow(msgspec.Struct, kw_only=True):
    """One row of the consent ledger. state: requested | granted | confirmed | withdrawn | complained."""

    node: UUID
    channel: str
    topic: str
    id: UUID
    state: str
    at: datetime
    origin: UUID
    trust: int = 0
    proof: dict[str, Any] = {}
