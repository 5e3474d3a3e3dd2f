"""`/v1/templates` and `/v1/offers`: what messages say, and the codes that go with them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import asyncpg
import pydantic
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from services.dispatch.api.common import Limit, Marketing, Read, not_found, refused
from services.dispatch.documents import OfferDocument, TemplateDocument
from services.dispatch.links import Signer
from services.dispatch.segments import segments
from services.dispatch.store import catalogue
from services.dispatch.templates import PARTS, Template, TemplateFault, as_variable, render
from services.dispatch.view import Shop, example
from shared.auth import log_change
from shared.db import Tx
from shared.durations import format_duration, parse_duration
from shared.errors import Problem, field_error
from shared.service import Context

_PREVIEW = UUID("00000000-0000-5000-8000-000000000000")


class TemplateOut(TemplateDocument):
    """A template with its newest version."""

    id: UUID
    version: int
    archived: bool
    updated_at: datetime
    by: str


class TemplatePage(BaseModel):
    items: list[TemplateOut]
    next: str | None


class PreviewBody(BaseModel):
    """Variables that replace the example's (`{"person": {"first_name": "Ada"}}`); `template`: a draft instead of what is
    stored."""

    model_config = ConfigDict(extra="forbid")

    variables: dict[str, dict[str, Any]] = {}
    template: dict[str, Any] | None = None


class PreviewOut(BaseModel):
    """What each channel would send, or the reason why it cannot. `segments`: of an SMS."""

    channel: str
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    segments: int | None = None
    reason: str | None = None


class OfferOut(OfferDocument):
    id: UUID
    version: int
    updated_at: datetime


class OfferPage(BaseModel):
    items: list[OfferOut]
    next: str | None


def router(context: Context, signer: Signer, shop: Shop) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    _templates(routes, context)
    _preview(routes, context, signer, shop)
    _offers(routes, context)
    return routes


def _templates(routes: APIRouter, context: Context) -> None:
    @routes.post("/v1/templates", status_code=201, tags=["templates"], summary="Make a template")
    async def create(body: TemplateDocument, principal: Marketing) -> TemplateOut:
        """It must be fit to be sent: unknown variables, a missing way out or broken Liquid are refused with a pointer."""
        _check(body)
        now = context.clock.now()
        async with context.database.transaction() as tx:
            made = await catalogue.add_template(
                tx, body.name, body.title, body.purpose, body.parts(), principal.name, now, context.bits
            )
            if made is None:
                raise Problem(
                    409, "The name is taken", f"There is a template {body.name}: PUT /v1/templates/{body.name} changes it.",
                    [field_error(["name"], "is taken")],
                )  # fmt: skip
            await log_change(tx, principal, "template.create", f"template {body.name}", None, body.model_dump(), now)
            return await _read_template(tx, body.name)

    @routes.get("/v1/templates", tags=["templates"], summary="List templates")
    async def listed(_: Read, limit: Limit = 50, cursor: str | None = None) -> TemplatePage:
        async with context.database.transaction() as tx:
            rows = await catalogue.list_templates(tx, cursor or "", limit + 1)
        items = [_template(row) for row in rows[:limit]]
        return TemplatePage(items=items, next=items[-1].name if len(rows) > limit else None)

    @routes.get("/v1/templates/{template}", tags=["templates"], summary="Read a template, by name or id")
    async def read(template: str, _: Read) -> TemplateOut:
        async with context.database.transaction() as tx:
            return await _read_template(tx, template)

    @routes.put("/v1/templates/{template}", tags=["templates"], summary="A new version, used from now on")
    async def change(template: str, body: TemplateDocument, principal: Marketing) -> TemplateOut:
        """A message that is claimed already keeps the version it was rendered with. The same document makes no version."""
        _check(body)
        now = context.clock.now()
        async with context.database.transaction() as tx:
            row = await catalogue.find_template(tx, template, lock=True)
            if row is None:
                raise not_found("template", template)
            if row["name"] != body.name:
                raise Problem(
                    422, "A template keeps its name", errors=[field_error(["name"], f"must be {row['name']}")]
                )
            before = _document(row)
            if before != body or row["archived"]:
                await catalogue.change_template(
                    tx, body.name, row["version"] + 1, body.title, body.purpose, body.parts(), principal.name, now
                )
                await log_change(
                    tx,
                    principal,
                    "template.change",
                    f"template {body.name}",
                    before.model_dump(),
                    body.model_dump(),
                    now,
                )
            return await _read_template(tx, body.name)

    @routes.delete("/v1/templates/{template}", status_code=204, tags=["templates"], summary="Archive a template")
    async def archive(template: str, principal: Marketing) -> None:
        """Messages that name it are withheld from now on."""
        now = context.clock.now()
        async with context.database.transaction() as tx:
            row = await catalogue.find_template(tx, template, lock=True)
            if row is None:
                raise not_found("template", template)
            await catalogue.archive_template(tx, row["name"], now)
            await log_change(tx, principal, "template.archive", f"template {row['name']}", None, None, now)


def _preview(routes: APIRouter, context: Context, signer: Signer, shop: Shop) -> None:
    @routes.post("/v1/templates/{template}/preview", tags=["templates"], summary="What each channel would send")
    async def preview(template: str, body: PreviewBody, _: Read) -> list[PreviewOut]:
        if body.template is not None:
            document = _draft(template, body.template)
        else:
            async with context.database.transaction() as tx:
                document = _document(await _find(tx, template))
        preview_id = _preview_id(document.name)
        links = {"unsubscribe": signer.url("unsubscribe", preview_id), "confirm": signer.url("confirm", preview_id)}
        variables = example(shop, {**links, "preferences": links["unsubscribe"]})
        for root, values in body.variables.items():
            variables[root] = {**variables.get(root, {}), **as_variable(values)}
        made = Template(document.name, 0, document.purpose, document.parts())
        return [_previewed(made, part, variables, signer, shop) for part in PARTS if made.serves(part)]


def _preview_id(name: str) -> UUID:
    return uuid5(_PREVIEW, name)


def _previewed(made: Template, part: str, variables: dict[str, Any], signer: Signer, shop: Shop) -> PreviewOut:
    try:
        text = render(made, part, variables, signer, _preview_id(made.name), shop.hosts)
    except TemplateFault as fault:
        return PreviewOut(channel=part, reason=fault.reason.text)
    count = segments(text.text).count if part == "sms" else None
    return PreviewOut(
        channel=part, subject=text.subject or None, text=text.text, html=text.html or None, segments=count
    )


def _offers(routes: APIRouter, context: Context) -> None:
    @routes.post("/v1/offers", status_code=201, tags=["offers"], summary="Make or change an offer")
    async def put(body: OfferDocument, principal: Marketing) -> OfferOut:
        """Codes that were given out already stay what they are."""
        now = context.clock.now()
        seconds = parse_duration(body.valid).total_seconds() if body.valid else None
        forms = {form: one.model_dump(exclude_none=True) for form, one in body.forms.items()}
        guard = body.unless_bought.model_dump() if body.unless_bought else None
        async with context.database.transaction() as tx:
            before = await catalogue.find_offer(tx, body.name)
            if (
                before is None
                or _offer(before).model_dump(exclude={"id", "version", "updated_at"}) != body.model_dump()
            ):
                await catalogue.put_offer(
                    tx, body.name, body.title, body.code, seconds, forms, now, context.bits, guard
                )
                was = _offer(before).model_dump(mode="json") if before else None
                await log_change(tx, principal, "offer.put", f"offer {body.name}", was, body.model_dump(), now)
            row = await catalogue.find_offer(tx, body.name)
            assert row is not None
            return _offer(row)

    @routes.get("/v1/offers", tags=["offers"], summary="List offers")
    async def listed(_: Read, limit: Limit = 50, cursor: str | None = None) -> OfferPage:
        async with context.database.transaction() as tx:
            rows = await catalogue.list_offers(tx, cursor or "", limit + 1)
        items = [_offer(row) for row in rows[:limit]]
        return OfferPage(items=items, next=items[-1].name if len(rows) > limit else None)

    @routes.get("/v1/offers/{offer}", tags=["offers"], summary="Read an offer, by name or id")
    async def read(offer: str, _: Read) -> OfferOut:
        async with context.database.transaction() as tx:
            row = await catalogue.find_offer(tx, offer)
        if row is None:
            raise not_found("offer", offer)
        return _offer(row)

    @routes.delete("/v1/offers/{offer}", status_code=204, tags=["offers"], summary="Delete an offer")
    async def delete(offer: str, principal: Marketing) -> None:
        """Messages that name it are withheld from now on."""
        now = context.clock.now()
        async with context.database.transaction() as tx:
            row = await catalogue.find_offer(tx, offer)
            if row is None:
                raise not_found("offer", offer)
            await catalogue.delete_offer(tx, row["name"])
            await log_change(
                tx, principal, "offer.delete", f"offer {row['name']}", _offer(row).model_dump(mode="json"), None, now
            )


def _check(body: TemplateDocument) -> None:
    if faults := body.faults():
        raise refused("The template cannot be used", faults)


def _draft(name: str, document: dict[str, Any]) -> TemplateDocument:
    try:
        return TemplateDocument.model_validate({"name": name, **document})
    except pydantic.ValidationError as problem:
        raise Problem.of_validation(problem, ["template"], "The draft is not valid") from None


async def _find(tx: Tx, template: str) -> asyncpg.Record:
    row = await catalogue.find_template(tx, template)
    if row is None:
        raise not_found("template", template)
    return row


async def _read_template(tx: Tx, template: str) -> TemplateOut:
    return _template(await _find(tx, template))


def _document(row: asyncpg.Record) -> TemplateDocument:
    return TemplateDocument(name=row["name"], title=row["title"], purpose=row["purpose"], **row["parts"])


def _template(row: asyncpg.Record) -> TemplateOut:
    more = {name: row[name] for name in ("id", "version", "archived", "updated_at", "by")}
    return TemplateOut(**_document(row).model_dump(), **more)


def _offer(row: asyncpg.Record) -> OfferOut:
    valid = format_duration(timedelta(seconds=row["valid_seconds"])) if row["valid_seconds"] is not None else None
    same = ("id", "name", "title", "code", "forms", "unless_bought", "version", "updated_at")
    return OfferOut(**{name: row[name] for name in same}, valid=valid)
