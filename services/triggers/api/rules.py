"""`/v1/rules…`: make, read, edit, activate, and what became of the people in them. What a rule would do: previews.py."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request

from services.triggers import views
from services.triggers.api import previews
from services.triggers.api.common import (
    BODY,
    OPTIONAL_BODY,
    Limit,
    Marketer,
    Reader,
    document_of,
    documents_of,
    found_rule,
)
from services.triggers.api.presets import preset_document
from services.triggers.editing import Editor
from services.triggers.schema import schema
from services.triggers.steps.base import World
from services.triggers.store import rules as rule_store
from services.triggers.store.rules import RuleBook
from shared.service import Context


def router(context: Context, editor: Editor, book: RuleBook, world: World) -> APIRouter:
    """`/v1/rules…`"""
    routes = APIRouter(prefix="/v1/rules", tags=["rules"])
    # Fixed paths come before those that begin with a rule's name.
    _making(routes, editor)
    previews.add(routes, context, book, world)
    _reading(routes, context)
    _editing(routes, editor)
    return routes


def _making(routes: APIRouter, editor: Editor) -> None:
    @routes.get("/schema", summary="The JSON schema of rule documents")
    async def read_schema(_: Reader) -> dict[str, Any]:
        return schema()

    @routes.post(
        "",
        status_code=201,
        summary="Make a rule from YAML or JSON, or from a preset; a draft unless `activate`",
        openapi_extra=OPTIONAL_BODY,
    )
    async def create(
        request: Request, principal: Marketer, activate: bool = False, preset: str | None = None
    ) -> dict[str, Any]:
        """With `preset` the body is `{"name", "title", "parameters": {…}}`, each of them optional (see `/v1/presets`)."""
        document = await document_of(request) if preset is None else await preset_document(request, preset)
        return views.saved(await editor.create(document, principal, activate=activate))

    @routes.post("/apply", summary="Make or edit rules by their names", openapi_extra=BODY)
    async def apply(request: Request, principal: Marketer, activate: bool = False) -> dict[str, Any]:
        """The body is `{"rules": [document, …]}`, or YAML documents one after the other. All are understood before the
        first is saved. Steps without id keep the ids they have."""
        saved = await editor.apply(await documents_of(request), principal, activate=activate)
        return {"items": [views.saved(one) for one in saved]}


def _reading(routes: APIRouter, context: Context) -> None:
    @routes.get("", summary="List rules by name")
    async def listed(_: Reader, state: str | None = None, limit: Limit = 50, cursor: str = "") -> dict[str, Any]:
        async with context.database.connection() as tx:
            rows = await rule_store.list_rules(tx, state=state, after=cursor, limit=limit + 1)
        return views.page(rows, limit, views.rule, lambda row: row["name"])

    @routes.get("/{rule}", summary="Read a rule, by id or name")
    async def read(rule: str, _: Reader) -> dict[str, Any]:
        async with context.database.connection() as tx:
            return views.rule(await found_rule(tx, rule))

    @routes.get("/{rule}/versions", summary="The versions with author and differences, newest first")
    async def versions(rule: str, _: Reader, limit: Limit = 50, cursor: int | None = None) -> dict[str, Any]:
        async with context.database.connection() as tx:
            row = await found_rule(tx, rule)
            found = await rule_store.versions_of(tx, row["id"], below=cursor, limit=limit + 1)
            changes = await rule_store.changes_of(tx, row["id"])
        return views.versions(found, changes, limit)

    @routes.get("/{rule}/report", summary="Who entered, what was treated and held out, goals and revenue")
    async def report(
        rule: str, _: Reader, since: datetime | None = None, until: datetime | None = None
    ) -> dict[str, Any]:
        async with context.database.connection() as tx:
            row = await found_rule(tx, rule)
            figures = await rule_store.report(tx, row["id"], since, until)
            failed = await rule_store.failures(tx, row["id"], since, until)
        return views.report(row, figures, failed)


def _editing(routes: APIRouter, editor: Editor) -> None:
    @routes.put("/{rule}", summary="Edit a rule: a new version", openapi_extra=BODY)
    @routes.post("/{rule}", summary="Edit a rule: a new version", openapi_extra=BODY)
    async def edit(rule: str, request: Request, principal: Marketer) -> dict[str, Any]:
        return views.saved(await editor.edit(rule, await document_of(request), principal))

    @routes.post("/{rule}/activate", summary="Activate: people enter from now on")
    async def activate(rule: str, principal: Marketer) -> dict[str, Any]:
        return views.saved(await editor.set_state(rule, "active", principal))

    @routes.post("/{rule}/pause", summary="Pause: nobody enters, and people inside stand still")
    async def pause(rule: str, principal: Marketer) -> dict[str, Any]:
        return views.saved(await editor.set_state(rule, "paused", principal))

    @routes.post("/{rule}/archive", summary="Archive: nobody enters, and the runs end")
    async def archive(rule: str, principal: Marketer) -> dict[str, Any]:
        return views.saved(await editor.set_state(rule, "archived", principal))
