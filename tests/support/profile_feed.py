"""Feeds events to the profile service's handler as its consumer would, without a bus: for tests of what profile stores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from services.profile.handlers import Handler
from shared.bus.base import Record
from shared.consumer import Applied, Batch
from shared.db import Database
from shared.events import EVENTS, Event, body_hash, encode
from shared.identifiers import STRENGTH, identifier
from shared.ids import event_id

NAMESPACE = UUID("11111111-1111-4111-8111-111111111111")
SECRET = b"a secret of the tests"
SOURCE = UUID("22222222-2222-4222-8222-222222222222")
START = datetime(2025, 3, 3, 10, 0, tzinfo=UTC)


def node(kind: str, value: str) -> UUID:
    """The id of a node of the test's deployment."""
    return identifier(NAMESPACE, kind, value, "RU").node


def event(
    name: str,
    message: str,
    *,
    at: float = 0,
    received: float | None = None,
    trust: str = "secret",
    ids: dict[str, str] | Sequence[tuple[str, str]],
    origin: UUID | None = None,
    traits: dict[str, Any] | None = None,
    properties: dict[str, Any] | None = None,
    history: bool = False,
    type: str | None = None,
    source: UUID = SOURCE,
) -> Event:
    """An event as ingest accepts it. `at`, `received`: seconds after START. A public source vouches for its anonymous id,
    a signed one for its user id as well."""
    pairs = list(ids.items()) if isinstance(ids, dict) else list(ids)
    own = {"secret": set(STRENGTH), "signed": {"user_id", "anonymous_id"}, "public": {"anonymous_id", "claimed"}}
    strong = own.get(trust, set())
    found = sorted(
        (identifier(NAMESPACE, kind, value, "RU", strong=kind in strong) for kind, value in pairs),
        key=lambda one: (not one.strong, -STRENGTH[one.kind]),
    )
    if trust == "public" and found and not found[0].strong:
        found.insert(0, identifier(NAMESPACE, "claimed", f"{source}/{found[0].node}", "RU", strong=True))
    properties, traits = properties or {}, traits or {}
    kind = type or ("identify" if traits and name == "Identify" else "track")
    return Event(
        id=event_id(source, message),
        source=source,
        trust=trust,  # type: ignore[arg-type]
        type=kind,
        name=name,
        origin=origin or found[0].node,
        ids=found,
        occurred_at=START + timedelta(seconds=at),
        received_at=START + timedelta(seconds=at if received is None else received),
        hash=body_hash(kind, name, found, properties, traits, None),
        message_id=message,
        history=history,
        properties=properties,
        traits=traits,
    )


class Feed:
    """One member that handles batches of one partition, each in a transaction of its own."""

    def __init__(self, database: Database, *, partition: int = 0, topic: str = EVENTS, currency: str = "RUB") -> None:
        self.database = database
        self.handler = Handler(secret=SECRET, currency=currency, country="RU")
        self.partition, self.topic = partition, topic
        self.now = START + timedelta(days=400)
        self._number = 0

    def batch(self, events: Iterable[Event | bytes]) -> Batch:
        """The events as records of the partition."""
        records = []
        for one in events:
            value = one if isinstance(one, bytes) else encode(one)
            records.append(Record(self.topic, self.partition, self._number, b"key", value, {}))
            self._number += 1
        return Batch("profile", self.topic, "epoch", self.now, records)

    async def __call__(self, *events: Event | bytes) -> Applied:
        """Handles the events as one batch and commits."""
        async with self.database.transaction() as tx:
            return await self.handler(tx, self.batch(events))
