"""Profile and triggers on a real database, step by step and without loops: what is posted is handled at once by the real
handlers, the watermark stands where the test puts it, and what is published is kept for the test to look at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from services.profile.handlers import Handler as ProfileHandler
from services.triggers.editing import Editor, Saved
from services.triggers.handlers import Handler
from services.triggers.service import world_of
from services.triggers.store.rules import RuleBook
from services.triggers.working import Worker
from shared.auth import Principal
from shared.bus.base import Outgoing, Record
from shared.clock import VirtualClock
from shared.consumer import Applied, Batch
from shared.events import (
    EVENTS,
    MESSAGES,
    PROFILE_EVENTS,
    Cancelled,
    Event,
    Intended,
    MessageRecord,
    Outcome,
    body_hash,
    decode_event,
    decode_message_record,
    encode,
)
from shared.identifiers import identifier
from shared.ids import derived_id, event_id, node_id
from shared.outbox import unpack
from shared.service import Context
from tests.support.contexts import context_for
from tests.support.engine import T0

SOURCES = {trust: derived_id("test source", trust) for trust in ("public", "signed", "secret")}
MARKETER = Principal(key=UUID(int=1), name="a marketer", scope="marketing")


class Shop:
    """A shop whose events are handled the moment it posts them."""

    def __init__(self, profile: Context, triggers: Context, clock: VirtualClock) -> None:
        self.profile, self.triggers, self.clock = profile, triggers, clock
        self.book, self.world = RuleBook(), world_of(triggers)
        self.worker = Worker(triggers, self.book, self.world, 1)
        self.editor = Editor(triggers, self.world)
        self._profile = ProfileHandler(secret=profile.secret, currency="RUB", country="RU")
        self._triggers = Handler(self.book, self.world, triggers.secret)
        self._number = 0
        self.messages: list[MessageRecord] = []
        self.emitted: list[Event] = []
        # Called with every event that a rule publishes, instead of applying it.
        self.on_emit: Callable[[Event], None] | None = None

    # ── rules ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def rule(self, **fields: Any) -> Saved:
        """Makes and activates a rule; entered by *Product Viewed* with one letter (a receipt, if it is transactional)
        unless said otherwise."""
        letter = "receipt" if fields.get("kind") == "transactional" else "letter"
        document = {"name": "a-rule", "enter": {"on": "Product Viewed"}, "steps": [{"send": letter}]} | fields
        return await self.editor.create(document, MARKETER, activate=True)

    # ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def event(self, name: str, at: datetime, user: str = "anna", **fields: Any) -> Event:
        """An event of one person, received as it occurred, from the shop's server unless said otherwise.

        `ids`: identifiers as (kind, value) besides the user id; `user=""`: only these.
        """
        trust, message = fields.pop("trust", "secret"), fields.pop("message", None)
        named = [("user_id", user)] if user else []
        ids = [
            identifier(self.profile.node_namespace, kind, value, "RU", strong=trust == "secret")
            for kind, value in [*named, *fields.pop("ids", [])]
        ]
        source, properties, traits = SOURCES[trust], fields.pop("properties", {}), fields.pop("traits", {})
        type = "identify" if name == "Identify" else "track"
        key = message or f"{name}/{user}/{at.isoformat()}/{sorted(properties.items(), key=str)}/{len(ids)}"
        return Event(
            **{
                "id": event_id(source, key),
                "source": source,
                "trust": trust,
                "type": type,
                "name": name,
                "origin": ids[0].node,
                "ids": ids,
                "occurred_at": at,
                "received_at": at,
                "hash": body_hash(type, name, ids, properties, traits, at.isoformat()),
                "message_id": key,
                "properties": properties,
                "traits": traits,
            }
            | fields
        )

    async def post(self, *events: Event) -> None:
        """Applied by profile and read by triggers, in this order, a batch each."""
        self.clock.set(max(event.received_at for event in events))
        topic = "history" if events[0].history else EVENTS
        outgoing = [Outgoing(topic, str(e.origin).encode(), encode(e)) for e in events]
        await self.read(await self.apply(outgoing, topic))

    async def apply(self, outgoing: list[Outgoing], topic: str = EVENTS) -> list[Outgoing]:
        """Profile's part: returns the profile events."""
        async with self.profile.database.transaction() as tx:
            applied = await self._profile(tx, self._batch("profile", topic, outgoing))
        return [record for record in applied.publish if record.topic == PROFILE_EVENTS]

    async def apply_one(self, event: Event) -> list[Outgoing]:
        return await self.apply([Outgoing(EVENTS, str(event.origin).encode(), encode(event))])

    def node(self, kind: str, value: str) -> UUID:
        return node_id(self.profile.node_namespace, kind, value)

    async def read(self, outgoing: list[Outgoing]) -> Applied:
        """The part of triggers' consumer."""
        async with self.triggers.database.transaction() as tx:
            applied = await self._triggers(tx, self._batch("triggers", PROFILE_EVENTS, outgoing))
        await self._keep(applied.publish)
        return applied

    def _batch(self, group: str, topic: str, outgoing: list[Outgoing]) -> Batch:
        records = []
        for record in outgoing:
            self._number += 1
            records.append(Record(topic, 0, self._number, record.key, record.value, record.headers))
        return Batch(group, topic, "test", self.clock.now(), records)

    async def buys(self, at: datetime, key: str = "o-1", user: str = "anna", **fields: Any) -> None:
        properties = {
            "order_id": key,
            "total": "1500",
            "products": [{"product_id": "p-1", "quantity": 1, "price": "1500"}],
        }
        await self.post(self.event("Order Completed", at, user, properties=properties, **fields))

    async def adds(self, at: datetime, user: str = "anna", product: str = "p-1", **fields: Any) -> None:
        properties = {"product_id": product, "quantity": 1, "price": "1500", "name": "A record"}
        await self.post(self.event("Product Added", at, user, properties=properties, **fields))

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def watermark(self, moment: datetime, *, work: bool = True) -> list[MessageRecord]:
        """Everything received up to `moment` has been handled: does what is due; returns what was published for it."""
        self.clock.set(moment)
        async with self.triggers.database.connection() as connection:
            await connection.execute(
                "INSERT INTO platform.watermark (value) VALUES ($1) ON CONFLICT (one) DO UPDATE SET value = $1", moment
            )
        return await self.work() if work else []

    async def work(self) -> list[MessageRecord]:
        """What the loops do until nothing is left, and what was published for it."""
        before = len(self.messages)
        while await self.worker.keep_calendar() or await self.worker.claim():
            pass
        async with self.triggers.database.connection() as connection:
            rows = await connection.fetch("DELETE FROM triggers.outbox RETURNING shard, number, records")
        for row in sorted(rows, key=lambda row: (row["shard"], row["number"])):
            await self._keep(unpack(row["records"]))
        return self.messages[before:]

    async def _keep(self, outgoing: list[Outgoing]) -> None:
        self.messages += [decode_message_record(record.value) for record in outgoing if record.topic == MESSAGES]
        own = [record for record in outgoing if record.topic == EVENTS]
        self.emitted += [decode_event(record.value) for record in own]
        if own and self.on_emit is not None:
            for record in own:
                self.on_emit(decode_event(record.value))
        elif own:
            await self.read(await self.apply(own))

    # ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def intents(self) -> list[Intended]:
        return [message for message in self.messages if isinstance(message, Intended)]

    @property
    def cancelled(self) -> list[Cancelled]:
        return [message for message in self.messages if isinstance(message, Cancelled)]

    @property
    def outcomes(self) -> list[Outcome]:
        return [message for message in self.messages if isinstance(message, Outcome)]

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        async with self.triggers.database.connection() as connection:
            return await connection.fetch(sql, *arguments)

    async def runs(self) -> list[Any]:
        return await self.fetch("SELECT * FROM triggers.run ORDER BY entered_at, id")

    async def items(self, kind: int | None = None) -> list[Any]:
        return await self.fetch(
            "SELECT * FROM triggers.item WHERE $1::int IS NULL OR kind = $1 ORDER BY due, node, id", kind
        )


# What the rules of these tests name. Templates are dispatch's: they are put in before any service looks.
TEMPLATES = """
    a b c cart cart-last-call cart-reminder come-back cool first hurry keen letter new one second thanks third two x
""".split()
CONFIRMATIONS = ("confirm", "confirm-again")
OFFERS = ("cart5", "comeback")


async def add_templates(database_url: str, *names: str, purpose: str = "marketing") -> None:
    """Templates of these names, as dispatch keeps them; their texts do not matter here."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            """
            INSERT INTO dispatch.template (name, id, version, title, updated_at)
            SELECT name, gen_random_uuid(), 1, '', now() FROM unnest($1::text[]) AS name
            """,
            list(names),
        )
        await connection.execute(
            """
            INSERT INTO dispatch.template_version (name, version, purpose, parts, "by", at)
            SELECT name, 1, $2, '{}', 'test', now() FROM unnest($1::text[]) AS name
            """,
            list(names),
            purpose,
        )
    finally:
        await connection.close()


async def add_offers(database_url: str, *names: str) -> None:
    """Offers of these names, as dispatch keeps them."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            """
            INSERT INTO dispatch.offer (name, id, title, code, forms, version, updated_at)
            SELECT name, gen_random_uuid(), '', 'CODE', '{}', 1, now() FROM unnest($1::text[]) AS name
            """,
            list(names),
        )
    finally:
        await connection.close()


async def suppress(database_url: str, node: UUID, since: datetime, until: datetime | None = None) -> None:
    """An address that dispatch keeps on its suppression list; `until`: when it was lifted."""
    connection = await asyncpg.connect(database_url)
    try:
        if until is None:
            await connection.execute(
                """
                INSERT INTO dispatch.suppression (node, channel, id, kind, value, why, "by", at)
                VALUES ($1, '*', gen_random_uuid(), 'email', '', 'bounced', 'bounce', $2)
                """,
                node,
                since,
            )
        else:
            await connection.execute(
                "INSERT INTO dispatch.lifted (id, node, channel, at, lifted_at) VALUES (gen_random_uuid(), $1, '*', $2, $3)",
                node,
                since,
                until,
            )
    finally:
        await connection.close()


@asynccontextmanager
async def open_shop(database_url: str, start: datetime = T0) -> AsyncIterator[Shop]:
    """A shop at 10:00 UTC of a Monday in March; its clock goes where the test sets it."""
    clock = VirtualClock(start)
    await add_templates(database_url, *TEMPLATES)
    await add_templates(database_url, *CONFIRMATIONS, purpose="confirmation")
    await add_templates(database_url, "receipt", "shipped", purpose="transactional")
    await add_offers(database_url, *OFFERS)
    async with (
        context_for(database_url, role="dripline_profile", clock=clock, leases=False) as profile,
        context_for(database_url, role="dripline_triggers", clock=clock, leases=False) as triggers,
    ):
        yield Shop(profile, triggers, clock)
