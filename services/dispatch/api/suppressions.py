"""`/v1/suppressions`: addresses that get nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

import asyncpg
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from services.dispatch.api.common import Limit, Marketing, Read, cursor_of, not_found, read_cursor
from services.dispatch.channels.base import Adapter
from services.dispatch.store import calls, catalogue, claims, ledgers
from services.dispatch.subscriptions import Subscriptions
from shared.auth import Principal, log_change
from shared.errors import Problem, field_error
from shared.identifiers import BadIdentifier, Identifier, identifier
from shared.ids import uuid7
from shared.service import Context


class NewSuppression(BaseModel):
    """`channel` "*": nothing goes to the address on any channel. `kind`: of the address; by default the channel's."""

    model_config = ConfigDict(extra="forbid")

    address: str = Field(min_length=1, max_length=1024)
    channel: str = "*"
    kind: str | None = None
    why: str = Field(default="by hand", min_length=1, max_length=500)


class SuppressionOut(BaseModel):
    id: UUID
    channel: str
    kind: str
    address: str
    why: str
    by: str
    at: datetime


class SuppressionPage(BaseModel):
    items: list[SuppressionOut]
    next: str | None


def router(context: Context, adapters: Mapping[str, type[Adapter]], subscriptions: Subscriptions) -> APIRouter:
    """The routes. `adapters`: all that were found, by name."""
    routes = APIRouter(tags=["suppressions"])
    kinds = {adapter.channel: adapter.address_kind for adapter in adapters.values()}

    @routes.get("/v1/suppressions", summary="Addresses that get nothing, newest first")
    async def listed(
        _: Read, address: str | None = None, channel: str | None = None, cursor: str | None = None, limit: Limit = 50
    ) -> SuppressionPage:
        node = _address(context, kinds, address, channel or "*", None).node if address else None
        async with context.database.transaction() as tx:
            rows = await catalogue.list_suppressions(tx, channel, node, read_cursor(cursor), limit + 1)
        last = rows[limit - 1] if len(rows) > limit else None
        return SuppressionPage(
            items=[_suppression(row) for row in rows[:limit]], next=cursor_of(last["at"], last["id"]) if last else None
        )

    @routes.post("/v1/suppressions", status_code=201, summary="Send nothing to an address any more")
    async def add(body: NewSuppression, principal: Marketing) -> SuppressionOut:
        """Answers when no call to the address is open any more; from then on none starts."""
        found = _address(context, kinds, body.address, body.channel, body.kind)
        row, open_calls, left = await _suppress(context, body, found, principal)
        await subscriptions.wait_for_calls(open_calls, left)
        return _suppression(row)

    @routes.delete("/v1/suppressions/{suppression}", status_code=204, summary="Lift a suppression")
    async def lift(suppression: UUID, principal: Marketing) -> None:
        """Consent is another matter: what was withdrawn stays withdrawn."""
        now = context.clock.now()
        async with context.database.transaction() as tx:
            row = await catalogue.lift_suppression(tx, suppression, now)
            if row is None:
                raise not_found("suppression", str(suppression))
            before = {"channel": row["channel"], "why": row["why"]}
            await log_change(tx, principal, "suppression.lift", f"suppression {suppression}", before, None, now)

    return routes


def _suppression(row: asyncpg.Record) -> SuppressionOut:
    same = {name: row[name] for name in ("id", "channel", "kind", "why", "by", "at")}
    return SuppressionOut(**same, address=row["value"])


def _address(context: Context, kinds: Mapping[str, str], address: str, channel: str, kind: str | None) -> Identifier:
    """The address as an identifier; a 422 where it is none, or nobody can say of what kind it is.

    :param kinds: by channel the kind of its addresses
    :param kind: None: the channel's, or what it looks like
    """
    if channel != "*" and channel not in kinds:
        detail = f"there are {', '.join(sorted(kinds))} and *"
        raise Problem(422, "No such channel", errors=[field_error(["channel"], detail)])
    guessed = kind or kinds.get(channel) or _looks_like(address)
    if guessed is None:
        detail = "say email, phone, device_token or external_id"
        raise Problem(422, "What is it?", errors=[field_error(["kind"], detail)])
    try:
        return identifier(context.node_namespace, guessed, address, context.settings.shop_country)
    except BadIdentifier as problem:
        raise Problem(422, "Not an address", errors=[field_error(["address"], str(problem))]) from None


def _looks_like(address: str) -> str | None:
    """The kind of an address that is written as only this kind is."""
    if "@" in address:
        return "email"
    return "phone" if re.match(r"^\+?[\d ()-]+$", address) else None


async def _suppress(
    context: Context, body: NewSuppression, address: Identifier, principal: Principal
) -> tuple[asyncpg.Record, list[UUID], float]:
    """The row, the calls to the address that are open, and how many seconds they may take at most."""
    now = context.clock.now()
    async with context.database.transaction() as tx:
        await claims.lock(tx, [("address", address.node)])
        identity = await ledgers.suppress(
            tx,
            id=uuid7(now, context.bits),
            node=address.node,
            channel=body.channel,
            kind=address.kind,
            value=address.value,
            why=body.why,
            by=principal.name,
            at=now,
        )
        said = {"channel": body.channel, "why": body.why}
        await log_change(tx, principal, "suppression.add", f"suppression {identity}", None, said, now)
        open_calls, left = await calls.open_calls(tx, address.node, None if body.channel == "*" else body.channel)
        row = await catalogue.read_suppression(tx, identity)
    return row, open_calls, left
