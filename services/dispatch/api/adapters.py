"""`/v1/channels/{channel}/adapters` and `/v1/channels/{channel}/test`: what adapters are told, and whether it works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import pydantic
from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, Field

from services.dispatch.adapter_settings import SettingsReader, Unusable, merged, secret_fields, split
from services.dispatch.api.common import Admin, amount, not_found
from services.dispatch.channels.base import Adapter, AdapterSettings
from services.dispatch.channels.registry import side_by_side
from services.dispatch.secrets import Sealer, Unsealable
from services.dispatch.store import adapters as store
from services.dispatch.store import catalogue, tests
from services.dispatch.store.adapters import Pause, Told
from services.dispatch.trying import Trials
from shared.auth import Principal, log_change
from shared.db import Tx
from shared.errors import Problem, field_error
from shared.identifiers import BadIdentifier, Identifier, identifier
from shared.service import Context
from shared.wake import DISPATCH_DUE, SENDER_DUE

TEST_TEXT = "This is a test message. If you can read it, the channel works."


class PauseOut(BaseModel):
    """Why the adapter is left alone, and until when; from a number of `failures` in a row on, one exchange at a time looks
    whether the provider is back."""

    failures: int
    until: datetime | None
    why: str


class AdapterOut(BaseModel):
    """One provider's way of serving the channel. `serves`: it takes messages now. `told`: it has settings of its own and
    was told them. `settings`: as told, without secrets; `secrets`: which of them are set. `settings_schema`: JSON schema of
    what `PUT` takes, null if it takes nothing. `problem`: why what it was told cannot be used. `webhook`: where its provider
    calls."""

    name: str
    channel: str
    serves: bool
    told: bool
    leaves_machine: bool
    preference: int
    settings: dict[str, Any]
    secrets: dict[str, bool]
    settings_schema: dict[str, Any] | None
    problem: str | None
    webhook: str | None
    pause: PauseOut | None
    version: int | None
    updated_at: datetime | None


class AdapterList(BaseModel):
    items: list[AdapterOut]
    next: None = None


class TestRequest(BaseModel):
    """`adapter`: by default the one that serves the channel."""

    model_config = ConfigDict(extra="forbid")

    address: str = Field(min_length=1, max_length=4_096)
    adapter: str | None = Field(default=None, max_length=100)
    text: str = Field(default=TEST_TEXT, min_length=1, max_length=2_000)


class TestAnswer(BaseModel):
    """What came of it. `outcome`: sent, retry (it was not taken now), bounced (no such address), failed (refused for good),
    unknown. `cost`: what stands in the cost ledger."""

    id: UUID
    adapter: str
    outcome: str
    detail: str
    provider_id: str
    units: int
    cost: float


class TestOut(BaseModel):
    """A test message. `outcome` null: it is being called; `delivery`: what the provider told later."""

    id: UUID
    channel: str
    adapter: str
    at: datetime
    outcome: str | None
    detail: str | None
    units: int
    cost: float
    delivery: str | None
    ended_at: datetime | None


class TestList(BaseModel):
    items: list[TestOut]
    next: None = None


@dataclass(frozen=True)
class Desk:
    """What the routes need."""

    context: Context
    kinds: Mapping[str, type[Adapter]]
    sealer: Sealer
    settings: SettingsReader
    trials: Trials


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/channels/{channel}", tags=["channels"])
    _adapters(routes, desk)
    _tests(routes, desk)
    return routes


def _adapters(routes: APIRouter, desk: Desk) -> None:
    context = desk.context

    @routes.get("/adapters", summary="Which providers can serve the channel, and what they were told")
    async def listed(channel: str, _: Admin) -> AdapterList:
        async with context.database.transaction() as tx:
            return AdapterList(items=await _out(tx, desk, channel))

    @routes.get("/adapters/{name}", summary="Read one adapter")
    async def read(channel: str, name: str, _: Admin) -> AdapterOut:
        _kind(desk, channel, name)
        async with context.database.transaction() as tx:
            return await _one(tx, desk, channel, name)

    @routes.put("/adapters/{name}", summary="Tell an adapter its settings")
    async def tell(channel: str, name: str, principal: Admin, body: Annotated[dict[str, Any], Body()]) -> AdapterOut:
        """The document is the adapter's own (`settings_schema` of `GET`). Secrets that it leaves out keep their value, null takes
        one away; they are never shown again. Every process uses it from its next call on."""
        kind = _kind(desk, channel, name)
        if kind.settings_type is None:
            raise Problem(409, "Nothing to tell", f"The adapter {name} takes no settings.")
        now = context.clock.now()
        async with context.database.transaction() as tx:
            before = await store.lock_told(tx, name)
            settings = _parse(kind.settings_type, body, _kept(desk, before, body))
            public, secrets = split(settings)
            await store.write_told(tx, name, channel, public, desk.sealer.seal(name, secrets), list(secrets), now)
            changed = sorted(set(body) & secret_fields(kind.settings_type))
            after = {"settings": public, "secrets": sorted(secrets), "secrets_given": changed}
            await _log(tx, principal, "adapter.tell", name, before, after, now)
            out = await _one(tx, desk, channel, name)
        _wake(context)
        return out

    @routes.delete("/adapters/{name}", status_code=204, summary="Take an adapter's settings away")
    async def forget(channel: str, name: str, principal: Admin) -> None:
        """It serves no longer; what was chosen for it and not called yet is decided anew."""
        _kind(desk, channel, name)
        async with context.database.transaction() as tx:
            before = await store.lock_told(tx, name)
            if before is None:
                raise Problem(404, "Nothing to forget", f"The adapter {name} was told nothing.")
            await store.delete_told(tx, name)
            await _log(tx, principal, "adapter.forget", name, before, None, context.clock.now())
        _wake(context)


def _tests(routes: APIRouter, desk: Desk) -> None:
    context = desk.context

    @routes.post("/test", summary="Send a test message")
    async def send(channel: str, body: TestRequest, principal: Admin) -> TestAnswer:
        """It goes to the provider for real, costs what it costs, and belongs to no rule, person or cap. Answers when the
        provider has."""
        if body.adapter is not None:
            _kind(desk, channel, body.adapter, field="adapter")
        address = _address(desk, channel, body.address)
        tried = await desk.trials.send(channel, address, body.adapter, body.text, principal.name)
        async with context.database.transaction() as tx:
            row = next(r for r in await tests.latest(tx, channel, 200) if r["id"] == tried.id)
        return TestAnswer(
            id=tried.id,
            adapter=tried.adapter,
            outcome=tried.result.outcome,
            detail=tried.result.detail,
            provider_id=tried.result.provider_id,
            units=tried.units,
            cost=_cost(row),
        )

    @routes.get("/test", summary="The latest test messages, newest first")
    async def latest(channel: str, _: Admin, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> TestList:
        async with context.database.transaction() as tx:
            if await catalogue.read_channel(tx, channel) is None:
                raise not_found("channel", channel)
            rows = await tests.latest(tx, channel, limit)
        same = ("id", "channel", "adapter", "at", "outcome", "detail", "units", "delivery", "ended_at")
        return TestList(items=[TestOut(**{name: row[name] for name in same}, cost=_cost(row)) for row in rows])


def _kind(desk: Desk, channel: str, name: str, field: str | None = None) -> type[Adapter]:
    """Raises a 404 for what is no adapter of the channel; with `field` a 422 that points there."""
    kind = desk.kinds.get(name)
    if kind is not None and kind.channel == channel and kind.usable(desk.context.settings):
        return kind
    usable = [k.name for k in desk.kinds.values() if k.channel == channel and k.usable(desk.context.settings)]
    if field is not None:
        detail = f"is no adapter of {channel}; there are {', '.join(sorted(usable)) or 'none'}"
        raise Problem(422, "No such adapter", errors=[field_error([field], detail)])
    raise not_found(f"adapter of {channel}", name)


def _parse(kind: type[AdapterSettings], body: Mapping[str, Any], kept: Mapping[str, str]) -> AdapterSettings:
    """Raises a 422 with a pointer for each field at fault; a secret is never repeated in it."""
    try:
        return kind.model_validate(merged(kind, body, kept))
    except pydantic.ValidationError as problem:
        raise Problem.of_validation(problem, title="The settings are not valid") from None


def _kept(desk: Desk, before: Told | None, body: Mapping[str, Any]) -> dict[str, str]:
    """The secrets that stay unless the document says otherwise."""
    if before is None:
        return {}
    try:
        return desk.sealer.open(before.name, before.secrets)
    except Unsealable as problem:
        if missing := sorted(set(before.secret_names) - set(body)):
            errors = [field_error([name], str(problem)) for name in missing]
            raise Problem(422, "The secrets are needed again", errors=errors) from None
        return {}


async def _log(
    tx: Tx,
    principal: Principal,
    action: str,
    name: str,
    before: Told | None,
    after: dict[str, Any] | None,
    now: datetime,
) -> None:
    """The change log has the names of secrets and never their values."""
    was = {"settings": before.settings, "secrets": before.secret_names} if before is not None else None
    await log_change(tx, principal, action, f"adapter {name}", was, after, now)


def _wake(context: Context) -> None:
    context.wake.signal(DISPATCH_DUE)
    context.wake.signal(SENDER_DUE)


async def _one(tx: Tx, desk: Desk, channel: str, name: str) -> AdapterOut:
    return next(one for one in await _out(tx, desk, channel) if one.name == name)


async def _out(tx: Tx, desk: Desk, channel: str) -> list[AdapterOut]:
    row = await catalogue.read_channel(tx, channel)
    if row is None:
        raise not_found("channel", channel)
    told, pauses = await store.read_told(tx), await store.read_pauses(tx)
    settings = desk.context.settings
    serving = {kind.name for kind in side_by_side(desk.kinds, channel, row["adapter"], settings, told)}
    kinds = [k for _, k in sorted(desk.kinds.items()) if k.channel == channel and k.usable(settings)]
    return [_adapter_out(desk, kind, told.get(kind.name), pauses.get(kind.name), serving) for kind in kinds]


def _adapter_out(
    desk: Desk, kind: type[Adapter], told: Told | None, pause: Pause | None, serving: set[str]
) -> AdapterOut:
    problem = None
    if told is not None:
        try:
            desk.settings.read(told)
        except Unusable as reason:
            problem = str(reason)
    takes = kind.settings_type
    return AdapterOut(
        name=kind.name,
        channel=kind.channel,
        serves=kind.name in serving and problem is None,
        told=told is not None,
        leaves_machine=kind.leaves_machine,
        preference=kind.preference,
        settings=told.settings if told else {},
        secrets={name: bool(told and name in told.secret_names) for name in sorted(secret_fields(takes))}
        if takes
        else {},
        settings_schema=takes.model_json_schema() if takes else None,
        problem=problem,
        webhook=f"{desk.context.settings.origin}/webhooks/{kind.name}" if kind.receive is not Adapter.receive else None,
        pause=PauseOut(failures=pause.failures, until=pause.until, why=pause.why) if pause else None,
        version=told.version if told else None,
        updated_at=told.updated_at if told else None,
    )


def _address(desk: Desk, channel: str, address: str) -> Identifier:
    kind = next((k.address_kind for k in desk.kinds.values() if k.channel == channel), None)
    if kind is None:
        raise not_found("channel", channel)
    try:
        return identifier(desk.context.node_namespace, kind, address, desk.context.settings.shop_country)
    except BadIdentifier as problem:
        raise Problem(422, "Not an address", errors=[field_error(["address"], str(problem))]) from None


def _cost(row: asyncpg.Record) -> float:
    """What it costs as far as is known: nothing, unless it was taken or may have been."""
    taken = row["outcome"] in (None, "sent", "unknown")
    return (amount(row["charged"] if row["charged"] is not None else row["cost"]) or 0.0) if taken else 0.0
