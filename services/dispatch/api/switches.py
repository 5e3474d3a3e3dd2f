"""`/v1/switches`: kill switches, and the hold of everything after a restore."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from services.dispatch.api.common import Admin, Marketing, Read
from services.dispatch.store import catalogue
from services.dispatch.store.looking import is_held
from services.dispatch.store.restored import read_gap, reconcile
from shared.auth import Principal, log_change
from shared.db import Tx
from shared.errors import Problem, field_error
from shared.service import Context
from shared.wake import DISPATCH_DUE


class SwitchChange(BaseModel):
    """A kill switch. `name`: of the channel or the rule; empty for all."""

    model_config = ConfigDict(extra="forbid")

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


def router(context: Context) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["channels"])
    _switches(routes, context)
    _hold(routes, context)
    return routes


def _switches(routes: APIRouter, context: Context) -> None:
    @routes.get("/v1/switches", summary="The kill switches that are on")
    async def read(_: Read) -> Switches:
        return await _state(context)

    @routes.put("/v1/switches", summary="Switch everything, a channel or a rule off, or on again")
    async def change(body: SwitchChange, principal: Marketing) -> Switches:
        """Messages that come up while a switch is on are withheld. It counts for whatever was not being called yet."""
        if (body.scope == "all") != (body.name == ""):
            detail = "names the channel or the rule; it is empty for all"
            raise Problem(422, "Which?", errors=[field_error(["name"], detail)])
        now, action = context.clock.now(), "switch.on" if body.on else "switch.off"
        async with context.database.transaction() as tx:
            await catalogue.set_switch(tx, body.scope, body.name, body.on, body.reason, principal.name, now)
            subject = f"switch {body.scope} {body.name}".strip()
            await log_change(tx, principal, action, subject, None, body.model_dump(), now)
        return await _state(context)


def _hold(routes: APIRouter, context: Context) -> None:
    @routes.post("/v1/switches/hold", summary="Hold everything, as after a restore")
    async def hold(principal: Admin) -> Switches:
        """Nothing is decided and nothing sent; messages stay in the queue."""
        return await _set_held(context, True, principal)

    @routes.post("/v1/switches/release", summary="Go on after a hold")
    async def release(principal: Admin) -> Switches:
        """After a restore: marketing that may have been sent since the backup is withheld with the reason *restored*, what
        the bus proves to have been sent counts as sent; the change log says how many. Answers 409 as long as what the bus
        still holds of that time is not applied."""
        return await _set_held(context, False, principal)


async def _state(context: Context) -> Switches:
    async with context.database.transaction() as tx:
        rows = await catalogue.list_switches(tx)
        return Switches(items=[SwitchOut(**dict(row)) for row in rows], held=await is_held(tx))


async def _set_held(context: Context, held: bool, principal: Principal) -> Switches:
    now, action = context.clock.now(), "dispatch.hold" if held else "dispatch.release"
    async with context.database.transaction() as tx:
        settled = None if held else await _settle(tx, now)
        await catalogue.set_held(tx, held)
        await log_change(tx, principal, action, "dispatch", None, settled, now)
    context.wake.signal(DISPATCH_DUE)
    return await _state(context)


async def _settle(tx: Tx, now: datetime) -> dict[str, Any] | None:
    """What became of the messages of the time since the backup; None where nothing was restored. Raises a 409 as long as
    what the bus still holds of that time is not applied."""
    gap = await read_gap(tx)
    if gap is None or not gap.held:
        return None
    if not gap.applied:
        raise Problem(
            409,
            "Not yet",
            "What the bus holds of the time since the backup is still being applied; try again in some seconds.",
            headers={"Retry-After": "5"},
        )
    settled: dict[str, Any] = msgspec.to_builtins(await reconcile(tx, gap, None, now))
    return settled
