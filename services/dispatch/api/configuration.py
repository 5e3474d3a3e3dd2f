"""`/v1/channels`, `/v1/caps`, `/v1/switches`, `/v1/suppressions`, and the hold after a restore."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import asyncpg
import msgspec
import pydantic
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from services.dispatch.api.common import (
    Admin,
    Limit,
    Marketing,
    Read,
    amount,
    cursor_of,
    not_found,
    plain,
    read_cursor,
    share,
)
from services.dispatch.channels.base import Adapter
from services.dispatch.channels.registry import ready, serving
from services.dispatch.policy import LONGEST_WINDOW, REQUESTS_WINDOW
from services.dispatch.store import calls, catalogue, claims, ledgers
from services.dispatch.store.looking import is_held
from services.dispatch.store.restored import read_gap, reconcile
from services.dispatch.subscriptions import Subscriptions
from shared.auth import log_change
from shared.durations import parse_duration
from shared.errors import Problem, field_error
from shared.identifiers import BadIdentifier, Identifier, identifier
from shared.ids import uuid7
from shared.service import Context
from shared.wake import DISPATCH_DUE

_HOURS = r"^$|^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"
Country = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
Probability = Annotated[Decimal, Field(ge=0, le=1)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CapDocument(_Body):
    """At most `limit` messages `per` "day" (a calendar day where the person lives) or a duration such as "7d". `purpose`
    null: of any; `channel` null: over all channels (of a channel's own caps: that channel). Of the scopes network and source
    only confirmation mails are counted, those of the last hour: `per` is "1h", `purpose` confirmation, `channel` null."""

    scope: Literal["person", "address", "network", "source"] = "person"
    limit: int = Field(ge=0, le=1_000_000)
    per: str
    purpose: Literal["marketing", "transactional", "confirmation"] | None = "marketing"
    channel: str | None = None

    @pydantic.field_validator("per")
    @classmethod
    def _window(cls, value: str) -> str:
        if value != "day" and not parse_duration(value) <= LONGEST_WINDOW:
            raise ValueError(f"is longer than {LONGEST_WINDOW.days} days")
        return value

    @pydantic.model_validator(mode="after")
    def _as_it_is_counted(self) -> Self:
        if self.scope not in ("network", "source"):
            return self
        hourly = self.per != "day" and parse_duration(self.per) == REQUESTS_WINDOW
        if not hourly or self.purpose != "confirmation" or self.channel is not None:
            raise ValueError(
                f"the scope {self.scope} counts the confirmation mails of an hour: "
                'per must be "1h", purpose "confirmation", channel null'
            )
        return self


class BudgetDocument(_Body):
    """The most that the channel may spend in a `day` or a `month` of the shop's, in its currency: a message that costs
    more than is left is not sent by it (reason *spend-ceiling*). Null: no ceiling."""

    day: Annotated[Decimal, Field(ge=0, le=1_000_000_000, decimal_places=4)] | None = None
    month: Annotated[Decimal, Field(ge=0, le=1_000_000_000, decimal_places=4)] | None = None

    @pydantic.field_serializer("day", "month")
    def _as_number(self, value: Decimal | None) -> float | None:
        return None if value is None else float(value)


class ChannelOut(BaseModel):
    """A channel as configured. `serves`: the adapter that messages take now; `quiet` null: the deployment's hours;
    `countries` empty: all."""

    name: str
    adapter: str | None
    serves: str | None
    enabled: bool
    unit_cost: float
    reach: float
    act: float
    lost: float
    quiet: str | None
    caps: list[CapDocument]
    budget: BudgetDocument
    countries: list[str]
    settings: dict[str, Any]
    version: int
    updated_at: datetime


class ChannelChange(_Body):
    """Only what is named changes. `adapter` null: the usable one that is preferred most. `countries`: ISO 3166 codes, the
    only ones whose phone numbers the channel may write to; empty: all."""

    adapter: str | None = None
    enabled: bool | None = None
    unit_cost: Annotated[Decimal, Field(ge=0, le=1_000_000)] | None = None
    reach: Probability | None = None
    act: Probability | None = None
    lost: Probability | None = None
    quiet: Annotated[str, Field(pattern=_HOURS)] | None = None
    caps: Annotated[list[CapDocument], Field(max_length=20)] | None = None
    budget: BudgetDocument | None = None
    countries: Annotated[list[Country], Field(max_length=250)] | None = None
    settings: dict[str, Any] | None = None


class PolicyDocument(_Body):
    """What holds over all channels. `mean_order`: what an order is taken to be worth before the first one; `explore`:
    share of marketing choices left to chance."""

    caps: list[CapDocument] = Field(max_length=50)
    mean_order: Decimal = Field(gt=0, le=1_000_000_000)
    explore: Decimal = Field(ge=0, le=Decimal("0.2"))


class SwitchChange(_Body):
    """A kill switch. `name`: of the channel or the rule; empty for all."""

    scope: Literal["all", "channel", "rule"]
    name: str = Field(default="", max_length=100)
    on: bool
    reason: str = Field(default="", max_length=500)


class SwitchOut(BaseModel):
    scope: str
    name: str
    reason: str
    by: str
    at: datetime


class Switches(BaseModel):
    """The switches that are on; `held`: nothing is sent at all after a restore, until it is released."""

    items: list[SwitchOut]
    held: bool
    next: None = None


class NewSuppression(_Body):
    """`channel` "*": nothing goes to the address on any channel. `kind`: of the address; by default the channel's."""

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
    """The routes. `adapters`: all that were found."""
    routes = APIRouter()
    _channels(routes, context, adapters)
    _policy(routes, context)
    _switches(routes, context)
    _suppressions(routes, context, adapters, subscriptions)
    return routes


def _channels(routes: APIRouter, context: Context, adapters: Mapping[str, type[Adapter]]) -> None:
    def out(row: asyncpg.Record) -> ChannelOut:
        found = serving(adapters, row["name"], row["adapter"], context.settings, row["told"])
        figures: dict[str, Any] = {name: share(row[name]) for name in ("reach", "act", "lost")}
        names = ("name", "adapter", "enabled", "quiet", "caps", "budget", "countries", "settings")
        same = {name: row[name] for name in names}
        same |= {"version": row["version"], "updated_at": row["updated_at"], "unit_cost": amount(row["unit_cost"])}
        return ChannelOut(**same, **figures, serves=found.name if found else None)

    @routes.get("/v1/channels", tags=["channels"], summary="List channels")
    async def listed(_: Read) -> dict[str, Any]:
        async with context.database.transaction() as tx:
            return {"items": [out(row) for row in await catalogue.list_channels(tx)], "next": None}

    @routes.get("/v1/channels/{channel}", tags=["channels"], summary="Read a channel")
    async def read(channel: str, _: Read) -> ChannelOut:
        async with context.database.transaction() as tx:
            row = await catalogue.read_channel(tx, channel)
        if row is None:
            raise not_found("channel", channel)
        return out(row)

    @routes.patch(
        "/v1/channels/{channel}", tags=["channels"], summary="Change cost, reach, caps, quiet hours, adapter …"
    )
    async def change(channel: str, body: ChannelChange, principal: Marketing) -> ChannelOut:
        """Decisions from now on are made by it; those that were made keep the figures they saw."""
        now = context.clock.now()
        changes = {name: getattr(body, name) for name in body.model_fields_set}
        if body.budget is not None:
            changes["budget"] = body.budget.model_dump(mode="json", exclude_none=True)
        if body.countries is not None:
            changes["countries"] = sorted(set(body.countries))
        if body.caps is not None:
            changes["caps"] = [{**cap.model_dump(), "channel": channel} for cap in body.caps]
        nullable = {"adapter", "quiet"}
        changes = {name: value for name, value in changes.items() if value is not None or name in nullable}
        async with context.database.transaction() as tx:
            before = await catalogue.read_channel(tx, channel, lock=True)
            if before is None:
                raise not_found("channel", channel)
            known = ready(adapters, channel, context.settings, before["told"])
            if body.adapter and body.adapter not in (one.name for one in known):
                names = ", ".join(sorted(one.name for one in known))
                detail = f"is no adapter that can serve {channel} now; there are {names}"
                raise Problem(422, "No such adapter", errors=[field_error(["adapter"], detail)])
            await catalogue.write_channel(tx, channel, {**dict(before), **changes}, now)
            after = await catalogue.read_channel(tx, channel)
            assert after is not None
            await log_change(tx, principal, "channel.change", f"channel {channel}", plain(before), plain(after), now)
        return out(after)


def _policy(routes: APIRouter, context: Context) -> None:
    @routes.get("/v1/caps", tags=["channels"], summary="What holds over all channels")
    async def read(_: Read) -> PolicyDocument:
        async with context.database.transaction() as tx:
            row = await catalogue.read_policy_row(tx)
        return PolicyDocument(caps=row["caps"], mean_order=row["mean_order"], explore=row["explore"])

    @routes.put("/v1/caps", tags=["channels"], summary="Change what holds over all channels")
    async def change(body: PolicyDocument, principal: Marketing) -> PolicyDocument:
        now = context.clock.now()
        async with context.database.transaction() as tx:
            before = await catalogue.read_policy_row(tx, lock=True)
            await catalogue.write_policy(tx, [cap.model_dump() for cap in body.caps], body.mean_order, body.explore)
            await log_change(tx, principal, "caps.change", "caps", plain(before), body.model_dump(mode="json"), now)
        return body


def _switches(routes: APIRouter, context: Context) -> None:
    async def state() -> Switches:
        async with context.database.transaction() as tx:
            rows = await catalogue.list_switches(tx)
            return Switches(items=[SwitchOut(**dict(row)) for row in rows], held=await is_held(tx))

    @routes.get("/v1/switches", tags=["channels"], summary="The kill switches that are on")
    async def read(_: Read) -> Switches:
        return await state()

    @routes.put("/v1/switches", tags=["channels"], summary="Switch everything, a channel or a rule off, or on again")
    async def change(body: SwitchChange, principal: Marketing) -> Switches:
        """Messages that come up while a switch is on are withheld. It counts for whatever was not being called yet."""
        if (body.scope == "all") != (body.name == ""):
            raise Problem(
                422, "Which?", errors=[field_error(["name"], "names the channel or the rule; it is empty for all")]
            )
        now = context.clock.now()
        async with context.database.transaction() as tx:
            await catalogue.set_switch(tx, body.scope, body.name, body.on, body.reason, principal.name, now)
            subject = f"switch {body.scope} {body.name}".strip()
            await log_change(
                tx, principal, "switch.on" if body.on else "switch.off", subject, None, body.model_dump(), now
            )
        return await state()

    @routes.post("/v1/switches/hold", tags=["channels"], summary="Hold everything, as after a restore")
    async def hold(principal: Admin) -> Switches:
        """Nothing is decided and nothing sent; messages stay in the queue."""
        return await _held(True, principal)

    @routes.post("/v1/switches/release", tags=["channels"], summary="Go on after a hold")
    async def release(principal: Admin) -> Switches:
        """After a restore: marketing that may have been sent since the backup is withheld with the reason *restored*, what
        the bus proves to have been sent counts as sent; the change log says how many. Answers 409 as long as what the bus
        still holds of that time is not applied."""
        return await _held(False, principal)

    async def _held(held: bool, principal: Any) -> Switches:
        now = context.clock.now()
        async with context.database.transaction() as tx:
            settled = None
            if not held and (gap := await read_gap(tx)) is not None and gap.held:
                if not gap.applied:
                    raise Problem(
                        409,
                        "Not yet",
                        "What the bus holds of the time since the backup is still being applied; try again in some seconds.",
                        headers={"Retry-After": "5"},
                    )
                settled = msgspec.to_builtins(await reconcile(tx, gap, None, now))
            await catalogue.set_held(tx, held)
            action = "dispatch.hold" if held else "dispatch.release"
            await log_change(tx, principal, action, "dispatch", None, settled, now)
        context.wake.signal(DISPATCH_DUE)
        return await state()


def _suppressions(
    routes: APIRouter, context: Context, adapters: Mapping[str, type[Adapter]], subscriptions: Subscriptions
) -> None:
    def named(address: str, channel: str, kind: str | None) -> Identifier:
        """The address's node."""
        kinds = {a.channel: a.address_kind for a in adapters.values()}
        if channel != "*" and channel not in kinds:
            raise Problem(
                422, "No such channel", errors=[field_error(["channel"], f"there are {', '.join(sorted(kinds))} and *")]
            )
        guessed = (
            kind
            or kinds.get(channel)
            or ("email" if "@" in address else "phone" if re.match(r"^\+?[\d ()-]+$", address) else None)
        )
        if guessed is None:
            raise Problem(
                422, "What is it?", errors=[field_error(["kind"], "say email, phone, device_token or external_id")]
            )
        try:
            return identifier(context.node_namespace, guessed, address, context.settings.shop_country)
        except BadIdentifier as problem:
            raise Problem(422, "Not an address", errors=[field_error(["address"], str(problem))]) from None

    def out(row: asyncpg.Record) -> SuppressionOut:
        same = {name: row[name] for name in ("id", "channel", "kind", "why", "by", "at")}
        return SuppressionOut(**same, address=row["value"])

    @routes.get("/v1/suppressions", tags=["suppressions"], summary="Addresses that get nothing, newest first")
    async def listed(
        _: Read, address: str | None = None, channel: str | None = None, cursor: str | None = None, limit: Limit = 50
    ) -> SuppressionPage:
        node = named(address, channel or "*", None).node if address else None
        async with context.database.transaction() as tx:
            rows = await catalogue.list_suppressions(tx, channel, node, read_cursor(cursor), limit + 1)
        last = rows[limit - 1] if len(rows) > limit else None
        return SuppressionPage(
            items=[out(row) for row in rows[:limit]], next=cursor_of(last["at"], last["id"]) if last else None
        )

    @routes.post(
        "/v1/suppressions", status_code=201, tags=["suppressions"], summary="Send nothing to an address any more"
    )
    async def add(body: NewSuppression, principal: Marketing) -> SuppressionOut:
        """Answers when no call to the address is open any more; from then on none starts."""
        found = named(body.address, body.channel, body.kind)
        now = context.clock.now()
        async with context.database.transaction() as tx:
            await claims.lock(tx, [("address", found.node)])
            identity = await ledgers.suppress(
                tx,
                id=uuid7(now, context.bits),
                node=found.node,
                channel=body.channel,
                kind=found.kind,
                value=found.value,
                why=body.why,
                by=principal.name,
                at=now,
            )
            await log_change(
                tx,
                principal,
                "suppression.add",
                f"suppression {identity}",
                None,
                {"channel": body.channel, "why": body.why},
                now,
            )
            open_calls, left = await calls.open_calls(tx, found.node, None if body.channel == "*" else body.channel)
            row = await catalogue.read_suppression(tx, identity)
        await subscriptions.wait_for_calls(open_calls, left)
        return out(row)

    @routes.delete(
        "/v1/suppressions/{suppression}", status_code=204, tags=["suppressions"], summary="Lift a suppression"
    )
    async def lift(suppression: UUID, principal: Marketing) -> None:
        """Consent is another matter: what was withdrawn stays withdrawn."""
        now = context.clock.now()
        async with context.database.transaction() as tx:
            row = await catalogue.lift_suppression(tx, suppression, now)
            if row is None:
                raise not_found("suppression", str(suppression))
            before = {"channel": row["channel"], "why": row["why"]}
            await log_change(tx, principal, "suppression.lift", f"suppression {suppression}", before, None, now)
