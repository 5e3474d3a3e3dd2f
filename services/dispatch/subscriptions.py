"""What people do with the links they got: confirm, withdraw, open, click.

An opt-out is written under its address's lock and committed; then, holding nothing, it waits until no call that began
before is open. When it has answered, no provider call for that address starts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import msgspec

from services.dispatch.bots import is_bot
from services.dispatch.consents import is_out, standing, topics_of
from services.dispatch.feedback import feedback, publish
from services.dispatch.measures import OPT_OUT_SECONDS
from services.dispatch.store import calls, claims, ledgers
from services.dispatch.store.ledgers import Sent
from services.dispatch.store.looking import read_consents
from shared import wake as signals
from shared.events import Event, internal_event
from shared.facts.consent import ALL
from shared.identifiers import Identifier
from shared.ids import derived_id, uuid7
from shared.service import Context

# How long a confirmation link is good after its mail was made.
CONFIRM_WITHIN = timedelta(days=14)
DEFAULT_TOPIC = "marketing"

Pressed = Literal["confirmed", "already", "expired", "complained"]


class Subscription(msgspec.Struct, frozen=True):
    """An address as its preference page shows it. `topics`: what it gets now; `out`: it gets nothing any more."""

    message: Sent
    topics: list[str]
    out: bool


class Subscriptions:
    """Acts of people on their own subscriptions. By channel: `kinds` of address, `prefixes` of events, and its name in the
    consent ledgers (`consents`)."""

    def __init__(
        self, context: Context, kinds: Mapping[str, str], prefixes: Mapping[str, str], consents: Mapping[str, str]
    ) -> None:
        self._context, self._kinds, self._prefixes, self._consents = context, kinds, prefixes, consents

    async def look(self, message: UUID) -> Subscription | None:
        """The state behind a link; None if nobody knows the message any more."""
        async with self._context.database.transaction() as tx:
            sent = await ledgers.read_sent(tx, message)
            if sent is None:
                return None
            rows = (await read_consents(tx, [sent.address_node])).get(sent.address_node, [])
        channel = self._consents.get(sent.channel, sent.channel)
        topics = [topic for topic in topics_of(rows, channel) if standing(rows, channel, topic).may_write]
        if not topics and standing(rows, channel, sent.topic).may_write:
            topics = [sent.topic]
        return Subscription(sent, topics, not topics)

    async def withdraw(
        self, message: UUID, topics: Sequence[str] | None, by: str, proof: Mapping[str, Any]
    ) -> Sent | None:
        """Takes consent back: for `topics`, or for all. `by`: how it was said (page, one-click). None: unknown message.

        Returns when no call to the address that began before is open any more.
        """
        now = self._context.clock.now()
        wanted = sorted(set(topics)) if topics is not None else [ALL]
        async with self._context.database.transaction() as tx:
            sent = await ledgers.read_sent(tx, message)
            if sent is None:
                return None
            await claims.lock(tx, [("address", sent.address_node)])
            rows = (await read_consents(tx, [sent.address_node])).get(sent.address_node, [])
            channel = self._consents.get(sent.channel, sent.channel)
            new = [topic for topic in wanted if not is_out(rows, channel, topic)]
            published = False
            if new:
                key = f"{sent.address_node}/{channel}/unsubscribed/{uuid7(now, self._context.bits)}"
                event = self._event("Unsubscribed", key, sent, now, topics=new, by=by, message_id=str(sent.id))
                await ledgers.add_consents(
                    tx,
                    id=event.id,
                    node=sent.address_node,
                    channel=channel,
                    topics=new,
                    state="withdrawn",
                    origin=event.origin,
                    at=now,
                    message=sent.id,
                    request=None,
                    proof={**proof, "by": by},
                )
                published = await publish(tx, [event])
            open_calls, left = await calls.open_calls(tx, sent.address_node)
        if published:
            self._context.wake.signal(signals.outbox("dispatch"))
        await self.wait_for_calls(open_calls, left)
        return sent

    async def wait_for_calls(self, messages: Sequence[UUID], seconds: float) -> None:
        """Until none of these is being called, or `seconds` are over: by then every call has ended or may not start."""
        if not messages:
            return
        begun = time.monotonic()
        listener = self._context.wake.listen([signals.ANSWERED])
        try:
            while time.monotonic() < begun + seconds:
                async with self._context.database.connection() as connection:
                    if not await calls.any_calling(connection, messages):
                        break
                await listener.wait(0.1)
        finally:
            listener.close()
            OPT_OUT_SECONDS.observe(time.monotonic() - begun)

    async def confirm(self, message: UUID, proof: Mapping[str, Any]) -> tuple[Pressed, Sent] | None:
        """The button of a confirmation mail was pressed. None: nobody knows the message. A second press changes nothing."""
        now = self._context.clock.now()
        async with self._context.database.transaction() as tx:
            sent = await ledgers.read_sent(tx, message)
            if sent is None or sent.purpose != "confirmation" or sent.addressed is None:
                return None
            await claims.lock(tx, [("address", sent.address_node)])
            rows = (await read_consents(tx, [sent.address_node])).get(sent.address_node, [])
            asked, channel = sent.addressed, self._consents.get(sent.channel, sent.channel)
            topics = list(asked.get("topics") or [DEFAULT_TOPIC])
            if any(standing(rows, channel, topic).complained for topic in topics):
                return "complained", sent
            # One request is confirmed once: the mail, its reminder, and whoever presses again.
            request = UUID(asked["request"]) if asked.get("request") else derived_id("request", sent.run)
            said = {name: asked[name] for name in ("form", "text_version", "page") if asked.get(name)}
            event = self._event(
                "Subscription Confirmed",
                f"{request}/confirmed",
                sent,
                now,
                topics=topics,
                request=str(request),
                message_id=str(sent.id),
                **said,
            )
            if now > sent.created_at + CONFIRM_WITHIN:
                known = any(row.id == event.id for row in rows)
                return ("already" if known else "expired"), sent
            new = await ledgers.add_consents(
                tx,
                id=event.id,
                node=sent.address_node,
                channel=channel,
                topics=topics,
                state="confirmed",
                origin=event.origin,
                at=now,
                message=sent.id,
                request=request,
                proof={**proof, **said},
            )
            if not new:
                return "already", sent
            await publish(tx, [event])
        self._context.wake.signal(signals.outbox("dispatch"))
        return "confirmed", sent

    def _event(self, name: str, key: str, sent: Sent, at: datetime, **properties: Any) -> Event:
        """An event about the address itself: its origin is the address's node, which it names."""
        kind = self._kinds.get(sent.channel, "email")
        identifier = Identifier(kind=kind, value=sent.address, node=sent.address_node, strong=True)
        said = {"channel": self._consents.get(sent.channel, sent.channel), "address": sent.address, **properties}
        return internal_event(
            name, key=key, origin=sent.address_node, at=at, ids=[identifier], properties=said, hops=sent.hops + 1
        )

    async def clicked(self, message: UUID, number: int, user_agent: str, *, record: bool) -> str | None:
        """Where a link leads; None if there is none such. With `record` a person's first hit is told as an
        event."""
        async with self._context.database.connection() as connection:
            url = await ledgers.read_link(connection, message, number)
        if url is not None and record:
            await self._hit(message, "click", number, user_agent, url=url)
        return url

    async def opened(self, message: UUID, user_agent: str) -> None:
        """The pixel was loaded: the first time that a person did it is told as an event."""
        await self._hit(message, "open", 0, user_agent)

    async def _hit(
        self, message: UUID, kind: Literal["open", "click"], number: int, user_agent: str, **more: Any
    ) -> None:
        now = self._context.clock.now()
        published = False
        async with self._context.database.transaction() as tx:
            sent = await ledgers.read_sent(tx, message)
            if sent is None:
                return
            bot = is_bot(user_agent, now - sent.sent_at if sent.sent_at else None)
            if await ledgers.add_hit(tx, message, kind, number, now, bot):
                what, key = ("Opened", "opened") if kind == "open" else ("Clicked", f"clicked/{number}")
                prefix = self._prefixes.get(sent.channel, sent.channel.capitalize())
                published = await publish(tx, [feedback(sent, prefix, what, key, now, **more)])
        if published:
            self._context.wake.signal(signals.outbox("dispatch"))
