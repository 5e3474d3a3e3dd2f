"""`/v1/channels` and `/v1/caps`: what each channel costs, brings and may do, and what holds over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

import asyncpg
import pydantic
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from services.dispatch.api.common import Marketing, Read, amount, not_found, plain, share
from services.dispatch.channels.base import Adapter
from services.dispatch.channels.registry import ready, serving
from services.dispatch.inputs import Cap
from services.dispatch.policy import LONGEST_WINDOW, REQUESTS_WINDOW
from services.dispatch.store import catalogue
from shared.auth import log_change
from shared.channels import Channel
from shared.durations import parse_duration
from shared.errors import ConfigurationError, Problem, field_error
from shared.service import Context
from shared.settings import Settings

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


def declared_caps(channels: Mapping[str, Channel]) -> dict[str, list[Cap]]:
    """The caps that the files of the channels declare, by channel.

    :raises ConfigurationError: naming the channel and the field
    """
    return {name: [_declared_cap(name, cap) for cap in one.caps] for name, one in channels.items()}


def _declared_cap(channel: str, document: dict[str, Any]) -> Cap:
    try:
        return Cap(**CapDocument.model_validate(document | {"channel": channel}).model_dump())
    except pydantic.ValidationError as problem:
        wrong = problem.errors()[0]
        field = "/".join(map(str, ("caps", *wrong["loc"])))
        raise ConfigurationError(f"The file of the channel {channel} is wrong at {field}: {wrong['msg']}.") from None


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


def router(context: Context, adapters: Mapping[str, type[Adapter]]) -> APIRouter:
    """The routes. `adapters`: all that were found, by name."""
    routes = APIRouter(tags=["channels"])
    _channels(routes, context, adapters)
    _policy(routes, context)
    return routes


def _channels(routes: APIRouter, context: Context, adapters: Mapping[str, type[Adapter]]) -> None:
    settings = context.settings

    @routes.get("/v1/channels", summary="List channels")
    async def listed(_: Read) -> dict[str, Any]:
        async with context.database.transaction() as tx:
            rows = await catalogue.list_channels(tx)
        return {"items": [_channel(row, adapters, settings) for row in rows], "next": None}

    @routes.get("/v1/channels/{channel}", summary="Read a channel")
    async def read(channel: str, _: Read) -> ChannelOut:
        async with context.database.transaction() as tx:
            row = await catalogue.read_channel(tx, channel)
        if row is None:
            raise not_found("channel", channel)
        return _channel(row, adapters, settings)

    @routes.patch("/v1/channels/{channel}", summary="Change cost, reach, caps, quiet hours, adapter …")
    async def change(channel: str, body: ChannelChange, principal: Marketing) -> ChannelOut:
        """Decisions from now on are made by it; those that were made keep the figures they saw."""
        now, changes = context.clock.now(), _changes(channel, body)
        async with context.database.transaction() as tx:
            before = await catalogue.read_channel(tx, channel, lock=True)
            if before is None:
                raise not_found("channel", channel)
            if body.adapter:
                _check_adapter(body.adapter, before, adapters, settings)
            await catalogue.write_channel(tx, channel, {**dict(before), **changes}, now)
            after = await catalogue.read_channel(tx, channel)
            assert after is not None
            await log_change(tx, principal, "channel.change", f"channel {channel}", plain(before), plain(after), now)
        return _channel(after, adapters, settings)


def _channel(row: asyncpg.Record, adapters: Mapping[str, type[Adapter]], settings: Settings) -> ChannelOut:
    found = serving(adapters, row["name"], row["adapter"], settings, row["told"])
    figures: dict[str, Any] = {name: share(row[name]) for name in ("reach", "act", "lost")}
    names = ("name", "adapter", "enabled", "quiet", "caps", "budget", "countries", "settings")
    same = {name: row[name] for name in names}
    same |= {"version": row["version"], "updated_at": row["updated_at"], "unit_cost": amount(row["unit_cost"])}
    return ChannelOut(**same, **figures, serves=found.name if found else None)


def _changes(channel: str, body: ChannelChange) -> dict[str, Any]:
    """What the body names, as columns of the channel."""
    changes = {name: getattr(body, name) for name in body.model_fields_set}
    if body.budget is not None:
        changes["budget"] = body.budget.model_dump(mode="json", exclude_none=True)
    if body.countries is not None:
        changes["countries"] = sorted(set(body.countries))
    if body.caps is not None:
        changes["caps"] = [{**cap.model_dump(), "channel": channel} for cap in body.caps]
    nullable = {"adapter", "quiet"}
    return {name: value for name, value in changes.items() if value is not None or name in nullable}


def _check_adapter(
    name: str, channel: asyncpg.Record, adapters: Mapping[str, type[Adapter]], settings: Settings
) -> None:
    """Raises a 422 for an adapter that cannot serve the channel now."""
    known = sorted(one.name for one in ready(adapters, channel["name"], settings, channel["told"]))
    if name not in known:
        detail = f"is no adapter that can serve {channel['name']} now; there are {', '.join(known)}"
        raise Problem(422, "No such adapter", errors=[field_error(["adapter"], detail)])


def _policy(routes: APIRouter, context: Context) -> None:
    @routes.get("/v1/caps", summary="What holds over all channels")
    async def read(_: Read) -> PolicyDocument:
        async with context.database.transaction() as tx:
            row = await catalogue.read_policy_row(tx)
        return PolicyDocument(caps=row["caps"], mean_order=row["mean_order"], explore=row["explore"])

    @routes.put("/v1/caps", summary="Change what holds over all channels")
    async def change(body: PolicyDocument, principal: Marketing) -> PolicyDocument:
        now = context.clock.now()
        async with context.database.transaction() as tx:
            before = await catalogue.read_policy_row(tx, lock=True)
            await catalogue.write_policy(tx, [cap.model_dump() for cap in body.caps], body.mean_order, body.explore)
            await log_change(tx, principal, "caps.change", "caps", plain(before), body.model_dump(mode="json"), now)
        return body
