"""Dispatch on a real database, with people that the profile service made: for tests that look at one act at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec

from services.dispatch.documents import read_offers, read_templates
from services.dispatch.handlers import handle
from services.dispatch.service import Dispatch
from services.dispatch.store import catalogue
from services.profile.handlers import Handler as ProfileHandler
from shared.bus.base import Record
from shared.clock import VirtualClock
from shared.consumer import Applied, Batch
from shared.db import Database
from shared.durations import parse_duration
from shared.events import (
    EVENTS,
    MESSAGES,
    Addressed,
    Cancelled,
    Erased,
    Event,
    Guard,
    Intended,
    MessageRecord,
    body_hash,
    encode,
)
from shared.identifiers import Identifier, identifier
from shared.ids import event_id, message_id
from shared.service import Context
from tests.support.contexts import context_for
from tests.support.wait import until

NOON = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)  # 12:00 in Moscow
RULES = Path(__file__).parents[2] / "rules"
SHOP, SITE = uuid4(), uuid4()
RULE = uuid4()


@dataclass
class Stage:
    """One process's dispatch, driven step by step, and the rest of the house as far as it needs it."""

    context: Context
    dispatch: Dispatch
    clock: VirtualClock
    owner: asyncpg.Connection
    profile: Database
    profile_handler: ProfileHandler
    inbox: Path
    numbers: list[int] = field(default_factory=lambda: [0])

    def id(self, kind: str, value: str, *, strong: bool = True) -> Identifier:
        return identifier(self.context.node_namespace, kind, value, "RU", strong=strong)

    def event(self, name: str, *ids: Identifier, trust: str = "secret", type: str = "track", **more: Any) -> Event:
        """An accepted event of now, whose origin is its first id. `more`: properties, traits, context, occurred_at …"""
        given = {
            "properties": {},
            "traits": {},
            "occurred_at": self.clock.now(),
            "received_at": self.clock.now(),
            **more,
        }
        message = str(uuid4())
        source = SHOP if trust == "secret" else SITE
        return Event(
            id=event_id(source, message),
            source=source,
            trust=trust,  # type: ignore[arg-type]
            type=type,
            name=name,
            origin=ids[0].node,
            ids=list(ids),
            hash=body_hash(type, name, list(ids), given["properties"], given["traits"], None),
            message_id=message,
            **given,
        )

    async def learn(self, *events: Event) -> None:
        """Profile applies the events; the watermark comes to the clock."""
        self.numbers[0] += len(events)
        records = [
            Record(EVENTS, 0, self.numbers[0] + n, str(e.origin).encode(), encode(e), {}) for n, e in enumerate(events)
        ]
        async with self.profile.transaction() as tx:
            await self.profile_handler(tx, Batch("profile", EVENTS, "test", self.clock.now(), records))
        await self.watermark()

    async def watermark(self, behind: timedelta = timedelta(0)) -> None:
        await self.owner.execute(
            "INSERT INTO platform.watermark (value) VALUES ($1) ON CONFLICT (one) DO UPDATE SET value = $1",
            self.clock.now() - behind,
        )

    async def customer(self, name: str, *channels: str, traits: dict[str, Any] | None = None) -> Identifier:
        """A person with an e-mail (and a phone, for sms or call), and granted consent on `channels`. Gives their user id."""
        user, mail = self.id("user_id", name), self.id("email", f"{name}@example.com")
        ids = [user, mail]
        addresses = {"email": mail.value}
        if {"sms", "call", "pager"} & set(channels):
            ids.append(self.id("phone", f"+7916{abs(hash(name)) % 10**7:07d}"))
            addresses |= dict.fromkeys(("sms", "call", "pager"), ids[-1].value)
        events = [self.event("Identify", *ids, type="identify", traits=traits or {"first_name": name.capitalize()})]
        for channel in channels:
            events.append(self.granted(user, channel, addresses[channel], *ids))
        await self.learn(*events)
        return user

    def granted(self, user: Identifier, channel: str, address: str, *ids: Identifier) -> Event:
        said = {"channel": channel, "address": address, "at": self.clock.now().isoformat(), "ip": "192.0.2.1"}
        return self.event("Consent Granted", user, *(i for i in ids if i != user), properties=said)

    def product(
        self, what: str = "Product Added", user: Identifier | None = None, price: float = 1500, **more: Any
    ) -> Event:
        said = {"product_id": "p-1", "name": "Kind of Blue", "price": price, "quantity": 1, **more}
        assert user is not None
        return self.event(what, user, properties=said)

    def intent(self, user: Identifier, **changes: Any) -> Intended:
        """The cart letter of a run that was entered now; changes by name."""
        run = changes.pop("run", None) or uuid4()
        step = changes.get("step", "send-cart-reminder")
        now = self.clock.now()
        given = {
            "run_version": 2,
            "rule": RULE,
            "rule_name": "abandoned-cart",
            "rule_version": 1,
            "kind": "marketing",
            "topic": "marketing",
            "step": step,
            "template": "cart-reminder",
            "profile": uuid4(),
            "origin": user.node,
            "entered_at": now,
            "decided_at": now,
            "valid_until": now + timedelta(days=1),
            "guard": Guard(since=now, until=[{"event": "Order Completed"}], conditions=[{"cart": {"not_empty": True}}]),
            "value": {"cart_total": "0.3"},
            **changes,
        }
        return Intended(message=message_id(run, step), run=run, **given)

    def receipt(self, user: Identifier, **changes: Any) -> Intended:
        """A transactional message, which needs neither consent nor watermark."""
        return self.intent(
            user,
            **{
                "kind": "transactional",
                "rule_name": "receipt",
                "template": "receipt",
                "step": "send-receipt",
                "guard": Guard(since=self.clock.now()),
                "value": None,
                **changes,
            },
        )

    async def handle(self, *records: MessageRecord) -> Applied:
        keys = [r.profile if isinstance(r, Erased) else r.run for r in records]
        rows = [Record(MESSAGES, 0, n, str(keys[n]).encode(), encode(r), {}) for n, r in enumerate(records)]
        async with self.context.database.transaction() as tx:
            return await handle(tx, Batch("dispatch", MESSAGES, "test", self.clock.now(), rows))

    async def decide(self) -> int:
        """Claims until nothing is due; returns how many decisions there were."""
        made = 0
        for kind in ("transactional", "marketing"):
            while count := await self.dispatch.claimer.claim(kind):
                made += count
        return made

    async def send(self) -> None:
        """Runs the sender until nothing is chosen or in calling any more."""
        sender = asyncio.create_task(self.dispatch.sender.loop())
        try:
            await until(self._all_sent, what="nothing is claimed or in calling", limit=20)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def die_in_the_call(self, intent: MessageRecord) -> None:
        """The step to *calling* is made, and the process dies before anybody is called."""
        await self.handle(intent)
        await self.decide()

        async def die() -> None:
            raise ConnectionError("the process dies here")

        self.context.hooks.arm("dispatch.calling", die)
        try:
            await self.dispatch.sender.start_calls()
        except ConnectionError:
            return
        raise AssertionError("the process lived: nothing was about to be called")

    async def call_ends_in(self, milliseconds: int) -> None:
        """The time of all open calls is over then; a negative number: it is over."""
        await self.owner.execute(
            "UPDATE dispatch.message SET call_until = clock_timestamp() + make_interval(secs => $1 / 1000.0) "
            "WHERE state = 'calling'",
            milliseconds,
        )

    async def _all_sent(self) -> bool:
        return not await self.owner.fetchval(
            "SELECT EXISTS (SELECT 1 FROM dispatch.message WHERE state IN ('claimed', 'calling'))"
        )

    async def deliver(self, *records: MessageRecord) -> list[asyncpg.Record]:
        """From the intent to the end; the messages' rows in the order of the records."""
        await self.handle(*records)
        await self.decide()
        await self.send()
        return [await self.message(record.message) for record in records if not isinstance(record, type(None))]

    async def message(self, message: UUID) -> asyncpg.Record:
        return await self.owner.fetchrow("SELECT * FROM dispatch.message WHERE id = $1", message)

    async def events(self, name: str | None = None) -> list[Event]:
        """What dispatch has in its outbox to be published, in order."""
        from shared.outbox import unpack

        rows = await self.owner.fetch("SELECT records FROM dispatch.outbox ORDER BY created_at, shard, number")
        found = [msgspec.json.decode(record.value, type=Event) for row in rows for record in unpack(row["records"])]
        return [event for event in found if name is None or event.name == name]

    def addressed(
        self, address: Identifier, request: Event, topics: Sequence[str] = ("marketing",), form: str | None = None
    ) -> Addressed:
        return Addressed(
            channel="email",
            address=address.value,
            topics=list(topics),
            form=form,
            node=address.node,
            request=request.id,
        )


def cancelled(intent: Intended, version: int = 3, reason: str = "stopped: order 1001") -> Cancelled:
    return Cancelled(
        message=intent.message,
        run=intent.run,
        run_version=version,
        rule=intent.rule,
        reason=reason,
        decided_at=intent.decided_at,
    )


RECEIPT = {
    "subject": "Your order",
    "text": "Thank you, {{ person.first_name | default: 'friend' }}.\n",
    "sms": "Thank you.",
}


@asynccontextmanager
async def stage(database_url: str, inbox: Path, **settings: Any) -> AsyncIterator[Stage]:
    """Dispatch with the shipped templates and offers, a receipt besides, and a clock at noon."""
    clock = VirtualClock(NOON)
    owner = await asyncpg.connect(database_url)
    await owner.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=lambda v: msgspec.json.encode(v).decode(), decoder=msgspec.json.decode
    )
    profile = await Database.open(database_url, member="test-profile", role="dripline_profile", size=4)
    try:
        async with context_for(
            database_url, role="dripline_dispatch", clock=clock, leases=False, data_dir=inbox, **settings
        ) as context:
            dispatch = Dispatch(context)
            await dispatch.prepare()
            await _load(context, clock.now())
            handler = ProfileHandler(secret=context.secret, currency="RUB", country="RU")
            made = Stage(context, dispatch, clock, owner, profile, handler, inbox / "inbox")
            await made.watermark()
            yield made
            await dispatch.close()
    finally:
        await profile.close()
        await owner.close()


async def _load(context: Context, now: datetime) -> None:
    async with context.database.transaction() as tx:
        for template in read_templates(RULES / "templates"):
            await catalogue.add_template(
                tx, template.name, template.title, template.purpose, template.parts(), "test", now, context.bits
            )
        await catalogue.add_template(tx, "receipt", "Receipt", "transactional", RECEIPT, "test", now, context.bits)
        for offer in read_offers(RULES / "offers.yml"):
            seconds = parse_duration(offer.valid).total_seconds() if offer.valid else None
            forms = {form: one.model_dump(exclude_none=True) for form, one in offer.forms.items()}
            await catalogue.put_offer(tx, offer.name, offer.title, offer.code, seconds, forms, now, context.bits)
