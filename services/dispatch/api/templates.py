"""`/v1/templates`: what messages say."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

import asyncpg
import pydantic
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from services.dispatch.api.common import Limit, Marketing, Read, not_found, refused
from services.dispatch.documents import TemplateDocument
from services.dispatch.links import Signer
from services.dispatch.segments import segments
from services.dispatch.store import catalogue
from services.dispatch.templates import PARTS, Template, TemplateFault, as_variable, render
from services.dispatch.view import Shop, example
from shared.auth import log_change
from shared.db import Tx
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


def router(context: Context, signer: Signer, shop: Shop) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    _templates(routes, context)
    _changes(routes, context)
    _preview(routes, context, signer, shop)
    return routes


def _templates(routes: APIRouter, context: Context) -> None:
    @routes.post("/v1/templates", status_code=201, tags=["templates"], summary="Make a template")
    async def create(body: TemplateDocument, principal: Marketing) -> TemplateOut:
        """It must be fit to be sent: unknown variables, a missing way out or broken Liquid are refused with a pointer."""
        await _check(body)
        now = context.clock.now()
        async with context.database.transaction() as tx:
            made = await catalogue.add_template(
                tx, body.name, body.title, body.purpose, body.parts(), principal.name, now, context.bits
            )
            if made is None:
                detail = f"There is a template {body.name}: PUT /v1/templates/{body.name} changes it."
                raise Problem(409, "The name is taken", detail, [field_error(["name"], "is taken")])
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


def _changes(routes: APIRouter, context: Context) -> None:
    @routes.put("/v1/templates/{template}", tags=["templates"], summary="A new version, used from now on")
    async def change(template: str, body: TemplateDocument, principal: Marketing) -> TemplateOut:
        """A message that is claimed already keeps the version it was rendered with. The same document makes no version."""
        await _check(body)
        now = context.clock.now()
        async with context.database.transaction() as tx:
            row = await _find(tx, template, lock=True)
            if row["name"] != body.name:
                wrong = field_error(["name"], f"must be {row['name']}")
                raise Problem(422, "A template keeps its name", errors=[wrong])
            before = _document(row)
            if before != body or row["archived"]:
                await catalogue.change_template(
                    tx, body.name, row["version"] + 1, body.title, body.purpose, body.parts(), principal.name, now
                )
                was, subject = before.model_dump(), f"template {body.name}"
                await log_change(tx, principal, "template.change", subject, was, body.model_dump(), now)
            return await _read_template(tx, body.name)

    @routes.delete("/v1/templates/{template}", status_code=204, tags=["templates"], summary="Archive a template")
    async def archive(template: str, principal: Marketing) -> None:
        """Messages that name it are withheld from now on."""
        now = context.clock.now()
        async with context.database.transaction() as tx:
            row = await _find(tx, template, lock=True)
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
        parts = [part for part in PARTS if made.serves(part)]
        # In a thread: nobody knows yet how heavy a draft is.
        return await asyncio.to_thread(lambda: [_previewed(made, part, variables, signer, shop) for part in parts])


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


async def _check(body: TemplateDocument) -> None:
    if faults := await asyncio.to_thread(body.faults):
        raise refused("The template cannot be used", faults)


def _draft(name: str, document: dict[str, Any]) -> TemplateDocument:
    try:
        return TemplateDocument.model_validate({"name": name, **document})
    except pydantic.ValidationError as problem:
        raise Problem.of_validation(problem, ["template"], "The draft is not valid") from None


async def _find(tx: Tx, template: str, *, lock: bool = False) -> asyncpg.Record:
    row = await catalogue.find_template(tx, template, lock=lock)
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
