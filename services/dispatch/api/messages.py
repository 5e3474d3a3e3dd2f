"""`/v1/messages`: what was sent to whom and why, and what was not."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Query
from pydantic import BaseModel

from services.dispatch.api.common import Limit, Read, amount, cursor_of, not_found, read_cursor, share
from services.dispatch.links import Signer
from services.dispatch.store import reading
from services.dispatch.store.reading import Wanted
from shared.service import Context

State = Literal["queued", "claimed", "calling", "sent", "withheld", "failed", "unknown"]


class Why(BaseModel):
    """`code` to count by, `text` to read."""

    code: str
    text: str


class LinkOut(BaseModel):
    """A link of the message: `name` is unsubscribe, preferences, confirm, open or click; `to`: where a click leads."""

    name: str
    url: str
    to: str | None = None


class AlternativeOut(BaseModel):
    """One channel as it was weighed: `effect` = reach · act − base, `net` = effect · value − cost − erosion."""

    channel: str
    chosen: bool
    reach: float | None = None
    act: float | None = None
    base: float | None = None
    effect: float | None = None
    value: float | None = None
    cost: float | None = None
    units: int | None = None
    erosion: float | None = None
    net: float | None = None
    reason: Why | None = None


class MessageOut(BaseModel):
    """A message's life in dispatch. Money is in the shop's currency. `html` is left out of lists. `delivery`: what the
    provider told after it was sent: delivered, failed, bounced."""

    id: UUID
    run: UUID
    rule: str
    rule_id: UUID
    kind: str
    purpose: str | None
    topic: str
    step: str
    template: str
    template_version: int | None
    profile: UUID | None
    ghost: bool
    state: State
    reason: Why | None
    channel: str | None
    adapter: str | None
    address: str | None
    subject: str | None
    text: str | None
    html: str | None = None
    links: list[LinkOut]
    cost: float | None
    units: int | None
    alternatives: list[AlternativeOut]
    attempts: int
    created_at: datetime
    decided_at: datetime
    due_at: datetime
    valid_until: datetime | None
    updated_at: datetime
    sent_at: datetime | None
    delivery: str | None
    delivered_at: datetime | None


class AttemptOut(BaseModel):
    """One try over one channel. `outcome` is null while the provider is being called. `cost`: the price that was expected;
    `charged`: what the provider says, null if it says nothing."""

    number: int
    channel: str
    adapter: str
    at: datetime
    cost: float
    charged: float | None
    outcome: str | None
    detail: str | None
    ended_at: datetime | None


class DecisionOut(BaseModel):
    """One decision with everything it looked at."""

    number: int
    at: datetime
    act: str
    channel: str | None
    reason: Why | None
    until: datetime | None
    probability: float
    inputs: dict[str, Any]


class HitOut(BaseModel):
    """An open or a click. `bot`: no person did it."""

    kind: str
    number: int
    at: datetime
    bot: bool


class WholeMessage(MessageOut):
    """A message with its attempts, its decisions and what came back."""

    tries: list[AttemptOut]
    decisions: list[DecisionOut]
    hits: list[HitOut]


class MessagePage(BaseModel):
    items: list[MessageOut]
    next: str | None


def router(context: Context, signer: Signer) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/messages", tags=["messages"])

    @routes.get("", summary="List messages, by their last change, oldest first")
    async def listed(
        _: Read,
        profile: UUID | None = None,
        rule: str | None = None,
        channel: str | None = None,
        state: State | None = None,
        reason: Annotated[str | None, Query(description="a reason's code, e.g. no-consent")] = None,
        since: Annotated[datetime | None, Query(description="changed at or after this moment")] = None,
        cursor: str | None = None,
        limit: Limit = 50,
    ) -> MessagePage:
        """To follow what is sent, ask again with the last cursor, or with `since` a few seconds before the latest change
        seen: transactions that end later may have begun earlier, so take a message that comes again for the same."""
        async with context.database.transaction() as tx:
            nodes = await reading.nodes_of_profile(tx, profile) if profile else None
            wanted = Wanted(nodes, rule, channel, state, reason, since)
            rows = await reading.list_messages(tx, wanted, read_cursor(cursor), limit + 1)
            items = await messages_out(tx, rows[:limit], signer)
        last = rows[limit - 1] if len(rows) > limit else None
        return MessagePage(items=items, next=cursor_of(last["updated_at"], last["id"]) if last else None)

    @routes.get("/{message}", summary="Read one message with its decisions, attempts and what came back")
    async def read(message: UUID, _: Read) -> WholeMessage:
        async with context.database.transaction() as tx:
            row = await reading.read_message(tx, message)
            if row is None:
                raise not_found("message", str(message))
            [out] = await messages_out(tx, [row], signer, with_html=True)
            return WholeMessage(
                **out.model_dump(),
                tries=[_attempt(one) for one in await reading.attempts_of(tx, message)],
                decisions=[_decision(one) for one in await reading.decisions_of(tx, message)],
                hits=[HitOut(**dict(one)) for one in await reading.hits_of(tx, message)],
            )

    return routes


async def messages_out(
    tx: Any, rows: list[asyncpg.Record], signer: Signer, *, with_html: bool = False
) -> list[MessageOut]:
    """The messages as the API tells of them, with their links and alternatives."""
    ids = [row["id"] for row in rows]
    alternatives = await reading.alternatives_of(tx, ids)
    links = await reading.links_of(tx, ids)
    return [_out(row, alternatives[row["id"]], links[row["id"]], signer, with_html) for row in rows]


def _out(
    row: asyncpg.Record,
    alternatives: list[asyncpg.Record],
    links: list[tuple[int, str]],
    signer: Signer,
    with_html: bool,
) -> MessageOut:
    same = ("id", "run", "kind", "purpose", "topic", "step", "template", "template_version", "profile", "ghost", "state",
            "channel", "adapter", "address", "subject", "units", "attempts", "created_at", "decided_at", "due_at",
            "valid_until", "updated_at", "sent_at", "delivery", "delivered_at")  # fmt: skip
    sent = row["body"] is not None
    return MessageOut(
        **{name: row[name] for name in same},
        rule=row["rule_name"],
        rule_id=row["rule"],
        reason=_why(row),
        text=row["body"],
        html=row["html"] if with_html else None,
        links=_links(row, links, signer) if sent else [],
        cost=amount(row["cost"]),
        alternatives=[_alternative(one, row) for one in alternatives],
    )


def _links(row: asyncpg.Record, links: list[tuple[int, str]], signer: Signer) -> list[LinkOut]:
    named = [LinkOut(name=name, url=url) for name, url in (row["urls"] or {}).items()]
    clicks = [LinkOut(name="click", url=signer.url("click", row["id"], number), to=to) for number, to in links]
    return named + clicks


def _alternative(one: asyncpg.Record, message: asyncpg.Record) -> AlternativeOut:
    shares = {name: share(one[name]) for name in ("reach", "act", "base", "effect")}
    money = {name: amount(one[name]) for name in ("value", "cost", "erosion", "net")}
    chosen = one["channel"] == message["channel"]
    return AlternativeOut(
        channel=one["channel"], chosen=chosen, units=one["units"], reason=_why(one), **shares, **money
    )


def _attempt(one: asyncpg.Record) -> AttemptOut:
    return AttemptOut(**{**dict(one), "cost": amount(one["cost"]), "charged": amount(one["charged"])})


def _decision(one: asyncpg.Record) -> DecisionOut:
    same = ("number", "at", "act", "channel", "until", "inputs")
    return DecisionOut(**{name: one[name] for name in same}, reason=_why(one), probability=float(one["probability"]))


def _why(row: asyncpg.Record) -> Why | None:
    return Why(code=row["reason_code"], text=row["reason"] or "") if row["reason_code"] else None
