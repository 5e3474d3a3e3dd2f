"""The records that a batch is about: nodes, links and people as the store has them, and what became of them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from services.profile.identity import Link, Node
from services.profile.intake import Incoming


class KnownNode(Node):
    """A node with all its columns. `profile` None: nobody's yet."""

    value: str = ""
    profile: UUID | None = None
    learned_at: datetime | None = None
    asserted_at: datetime | None = None
    confirmed_at: datetime | None = None


class Person(msgspec.Struct, eq=False):
    """A profile's row, without what is in its state. `stored`: the row is in the table already."""

    id: UUID
    component: UUID
    nodes: list[UUID]
    last: datetime
    first_seen: datetime
    state: bytes = b""
    stored: bool = True
    regrouped: bool = False


class KnownLink(msgspec.Struct, eq=False):
    """A link with all its columns. `learned_at` None: the row is in the table already."""

    link: Link
    source: UUID | None = None
    trust: int = 0
    learned_at: datetime | None = None


class Stay(msgspec.Struct, eq=False):
    """A node began to belong to a profile (`to_at` None: it still does), or, with `from_at` None, ceased to."""

    node: UUID
    profile: UUID
    from_at: datetime | None
    to_at: datetime | None = None


class Regrouping(msgspec.Struct, eq=False):
    """People changed at `at`: the nodes of each profile concerned before and after; `aliases`: what the vanished became."""

    at: datetime
    before: dict[UUID, list[UUID]]
    after: dict[UUID, list[UUID]]
    aliases: dict[UUID, UUID]


class Placed(msgspec.Struct, eq=False):
    """An event in its place: whose it is and when it was learned. `touched`: profiles whose facts it changes, its own first;
    `renewed`: nodes that it vouched for or confirmed for the first time."""

    incoming: Incoming
    learned_at: datetime
    profile: UUID
    nodes: list[UUID]
    first_seen: datetime
    touched: list[UUID]
    renewed: list[UUID]
    regrouping: Regrouping | None
