"""`/v1/offers`: the codes that go with messages."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
from fastapi import APIRouter
from pydantic import BaseModel

from services.dispatch.api.common import Limit, Marketing, Read, not_found
from services.dispatch.documents import OfferDocument
from services.dispatch.store import catalogue
from shared.auth import log_change
from shared.db import Tx
from shared.durations import format_duration, parse_duration
from shared.service import Context


class OfferOut(OfferDocument):
    id: UUID
    version: int
    updated_at: datetime


class OfferPage(BaseModel):
    items: list[OfferOut]
    next: str | None


def router(context: Context) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["offers"])

    @routes.post("/v1/offers", status_code=201, summary="Make or change an offer")
    async def put(body: OfferDocument, principal: Marketing) -> OfferOut:
        """Codes that were given out already stay what they are."""
        now = context.clock.now()
        seconds = parse_duration(body.valid).total_seconds() if body.valid else None
        forms = {form: one.model_dump(exclude_none=True) for form, one in body.forms.items()}
        guard = body.unless_bought.model_dump() if body.unless_bought else None
        async with context.database.transaction() as tx:
            row = await catalogue.find_offer(tx, body.name)
            before = _offer(row) if row is not None else None
            if before is not None and before.model_dump(exclude={"id", "version", "updated_at"}) == body.model_dump():
                return before
            await catalogue.put_offer(tx, body.name, body.title, body.code, seconds, forms, now, context.bits, guard)
            was = before.model_dump(mode="json") if before is not None else None
            await log_change(tx, principal, "offer.put", f"offer {body.name}", was, body.model_dump(), now)
            return await _read(tx, body.name)

    @routes.get("/v1/offers", summary="List offers")
    async def listed(_: Read, limit: Limit = 50, cursor: str | None = None) -> OfferPage:
        async with context.database.transaction() as tx:
            rows = await catalogue.list_offers(tx, cursor or "", limit + 1)
        items = [_offer(row) for row in rows[:limit]]
        return OfferPage(items=items, next=items[-1].name if len(rows) > limit else None)

    @routes.get("/v1/offers/{offer}", summary="Read an offer, by name or id")
    async def read(offer: str, _: Read) -> OfferOut:
        async with context.database.transaction() as tx:
            return await _read(tx, offer)

    @routes.delete("/v1/offers/{offer}", status_code=204, summary="Delete an offer")
    async def delete(offer: str, principal: Marketing) -> None:
        """Messages that name it are withheld from now on."""
        now = context.clock.now()
        async with context.database.transaction() as tx:
            was = await _read(tx, offer)
            await catalogue.delete_offer(tx, was.name)
            await log_change(tx, principal, "offer.delete", f"offer {was.name}", was.model_dump(mode="json"), None, now)

    return routes


async def _read(tx: Tx, offer: str) -> OfferOut:
    row = await catalogue.find_offer(tx, offer)
    if row is None:
        raise not_found("offer", offer)
    return _offer(row)


def _offer(row: asyncpg.Record) -> OfferOut:
    valid = format_duration(timedelta(seconds=row["valid_seconds"])) if row["valid_seconds"] is not None else None
    same = ("id", "name", "title", "code", "forms", "unless_bought", "version", "updated_at")
    return OfferOut(**{name: row[name] for name in same}, valid=valid)
