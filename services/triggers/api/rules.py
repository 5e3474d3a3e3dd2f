"""`/v1/rules…`: make, edit, activate, preview, and what became of the people in them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request

from services.triggers import views
from services.triggers.api.common import (
    BODY,
    OPTIONAL_BODY,
    Limit,
    Marketer,
    Reader,
    document_of,
    documents_of,
    found_rule,
    zoned,
)
from services.triggers.api.presets import preset_document
from services.triggers.catalogue import Catalogue
from services.triggers.editing import Editor, newest_document, understood
from services.triggers.jobs import PEOPLE, Backtests
from services.triggers.preview import preview
from services.triggers.rule import Rule
from services.triggers.schema import schema
from services.triggers.steps.base import World
from services.triggers.store import preview as preview_store
from services.triggers.store import rules as rule_store
from services.triggers.store.rules import RuleBook
from shared.errors import Problem
from shared.ids import derived_id
from shared.service import Context

DEFAULT_PERIOD = timedelta(days=30)
LONGEST_PERIOD = timedelta(days=3660)


@dataclass(frozen=True)
class Within:
    """The period of a backtest, by default the last 30 days, and how many people to begin with at most."""

    since: datetime | None = None
    until: datetime | None = None
    people: Annotated[int, Query(ge=1, le=100_000)] = PEOPLE

    def of(self, context: Context) -> tuple[datetime, datetime]:
        """The two moments; a 422 for what is no period."""
        until = zoned(context, self.until, "until")
        since = zoned(context, self.since, "since") if self.since is not None else until - DEFAULT_PERIOD
        if not since < until <= since + LONGEST_PERIOD:
            detail = f"must lie before until, and at most {LONGEST_PERIOD.days} days"
            raise Problem(
                422, "The request is not valid", errors=[{"parameter": "since", "in": "query", "detail": detail}]
            )
        return since, until


Period = Annotated[Within, Depends()]


def router(context: Context, editor: Editor, book: RuleBook, world: World) -> APIRouter:
    """`/v1/rules…`"""
    routes = APIRouter(prefix="/v1/rules", tags=["rules"])
    backtests = Backtests(context, world)

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

    @routes.post("/preview", summary="Whom a rule that is not saved would mean now", openapi_extra=BODY)
    async def preview_document(request: Request, _: Reader) -> dict[str, Any]:
        return await previewed(context, book, world, understood(await document_of(request)), None)

    @routes.post("/apply", summary="Make or edit rules by their names", openapi_extra=BODY)
    async def apply(request: Request, principal: Marketer, activate: bool = False) -> dict[str, Any]:
        """The body is `{"rules": [document, …]}`, or YAML documents one after the other. All are understood before the
        first is saved. Steps without id keep the ids they have."""
        saved = await editor.apply(await documents_of(request), principal, activate=activate)
        return {"items": [views.saved(one) for one in saved]}

    @routes.post("/backtest", summary="What a rule that is not saved would have done in a period", openapi_extra=BODY)
    async def backtest_document(request: Request, _: Reader, period: Period) -> dict[str, Any]:
        rule = understood(await document_of(request))
        async with context.database.connection() as tx:
            row = await rule_store.find_rule(tx, rule.name)
        id = row["id"] if row is not None else derived_id("backtest", rule.name)
        since, until = period.of(context)
        found = await backtests.run(rule, id, row["newest"] + 1 if row is not None else 1, since, until, period.people)
        return views.backtest(rule, None, since, until, found)

    @routes.get("", summary="List rules by name")
    async def listed(_: Reader, state: str | None = None, limit: Limit = 50, cursor: str = "") -> dict[str, Any]:
        async with context.database.connection() as tx:
            rows = await rule_store.list_rules(tx, state=state, after=cursor, limit=limit + 1)
        return views.page(rows, limit, views.rule, lambda row: row["name"])

    @routes.get("/{rule}", summary="Read a rule, by id or name")
    async def read(rule: str, _: Reader) -> dict[str, Any]:
        async with context.database.connection() as tx:
            return views.rule(await found_rule(tx, rule))

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

    @routes.post("/{rule}/backtest", summary="What the rule's newest version would have done in a period")
    async def backtest_rule(rule: str, _: Reader, period: Period) -> dict[str, Any]:
        async with context.database.connection() as tx:
            row = await found_rule(tx, rule)
            newest = Rule(await newest_document(tx, row))
        since, until = period.of(context)
        found = await backtests.run(newest, row["id"], row["newest"], since, until, period.people)
        return views.backtest(newest, row["newest"], since, until, found)

    @routes.post(
        "/{rule}/diff", summary="What an edit would change, and what becomes of the people inside", openapi_extra=BODY
    )
    async def diff(rule: str, request: Request, _: Reader) -> dict[str, Any]:
        document = await document_of(request)
        async with context.database.transaction("repeatable_read") as tx:
            row = await found_rule(tx, rule)
            stored = await newest_document(tx, row)
            wanted = understood(document, stored=stored)
            inside = await preview_store.inside(tx, row["id"])
        return views.differences_of(stored, wanted, inside)

    @routes.post("/{rule}/preview", summary="Whom the rule's newest version would mean now")
    async def preview_rule(rule: str, _: Reader) -> dict[str, Any]:
        async with context.database.connection() as tx:
            row = await found_rule(tx, rule)
            newest = Rule(await newest_document(tx, row))
        return await previewed(context, book, world, newest, row["id"])

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

    return routes


async def previewed(context: Context, book: RuleBook, world: World, rule: Rule, stored: UUID | None) -> dict[str, Any]:
    """How many people the rule means now, how many are inside, and what it names that is not there."""
    at = context.clock.now()
    try:
        async with preview_store.bounded(context.database) as tx:
            rules = await book.read(tx)
            found = await preview(tx, rule, stored, at, rules.world(world))
            inside = await preview_store.inside(tx, stored) if stored else []
            catalogue = Catalogue.of(await rule_store.read_catalogue(tx))
    except preview_store.TooLong as error:
        detail = f"Counting took longer than {preview_store.LONGEST} s and was stopped; ask for fewer people at once."
        raise Problem(503, "The count takes too long", detail, headers={"Retry-After": "60"}) from error
    return views.preview(rule, found, inside, catalogue.missing(rule))
