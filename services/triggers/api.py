"""The management API of triggers: rules, runs, decisions. Nothing is decided here."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request

from services.triggers import views
from services.triggers.documents import LONGEST, DocumentError, parse_document, parse_documents
from services.triggers.editing import Editor, no_such_rule
from services.triggers.schema import schema
from services.triggers.steps.base import World
from services.triggers.store import decisions as decision_store
from services.triggers.store import rules as rule_store
from services.triggers.store.rules import RuleBook
from services.triggers.why import Question, why_not
from shared import cdp
from shared.auth import Principal, scope
from shared.db import Tx
from shared.errors import Problem
from shared.service import Context

Reader = Annotated[Principal, Depends(scope("read"))]
Marketer = Annotated[Principal, Depends(scope("marketing"))]
Limit = Annotated[int, Query(ge=1, le=200)]
BODY = {"requestBody": {"required": True, "content": {"application/json": {}, "application/yaml": {}}}}


def router(context: Context, book: RuleBook, world: World) -> APIRouter:
    """All routes of triggers."""
    routes = APIRouter()
    routes.include_router(_rules(context, Editor(context, world)))
    routes.include_router(_decisions(context, book, world))
    return routes


def _rules(context: Context, editor: Editor) -> APIRouter:
    routes = APIRouter(prefix="/v1/rules", tags=["rules"])

    @routes.get("/schema", summary="The JSON schema of rule documents")
    async def read_schema(_: Reader) -> dict[str, Any]:
        return schema()

    @routes.post(
        "", status_code=201, summary="Make a rule from YAML or JSON; a draft unless `activate`", openapi_extra=BODY
    )
    async def create(request: Request, principal: Marketer, activate: bool = False) -> dict[str, Any]:
        saved = await editor.create(await _document(request), principal, activate=activate)
        return views.saved(saved)

    @routes.post("/apply", summary="Make or edit rules by their names", openapi_extra=BODY)
    async def apply(request: Request, principal: Marketer, activate: bool = False) -> dict[str, Any]:
        """The body is `{"rules": [document, …]}`, or YAML documents one after the other. All are understood before the
        first is saved. Steps without id keep the ids they have."""
        saved = await editor.apply(await _documents(request), principal, activate=activate)
        return {"items": [views.saved(one) for one in saved]}

    @routes.get("", summary="List rules by name")
    async def listed(_: Reader, state: str | None = None, limit: Limit = 50, cursor: str = "") -> dict[str, Any]:
        async with context.database.connection() as tx:
            rows = await rule_store.list_rules(tx, state=state, after=cursor, limit=limit + 1)
        return views.page(rows, limit, views.rule, lambda row: row["name"])

    @routes.get("/{rule}", summary="Read a rule, by id or name")
    async def read(rule: str, _: Reader) -> dict[str, Any]:
        async with context.database.connection() as tx:
            return views.rule(await _found(tx, rule))

    @routes.api_route("/{rule}", methods=["PUT", "POST"], summary="Edit a rule: a new version", openapi_extra=BODY)
    async def edit(rule: str, request: Request, principal: Marketer) -> dict[str, Any]:
        return views.saved(await editor.edit(rule, await _document(request), principal))

    @routes.post("/{rule}/activate", summary="Activate: people enter from now on")
    async def activate(rule: str, principal: Marketer) -> dict[str, Any]:
        return views.saved(await editor.set_state(rule, "active", principal))

    @routes.post("/{rule}/pause", summary="Pause: nobody enters, and people inside stand still")
    async def pause(rule: str, principal: Marketer) -> dict[str, Any]:
        return views.saved(await editor.set_state(rule, "paused", principal))

    @routes.post("/{rule}/archive", summary="Archive: nobody enters, and the runs end")
    async def archive(rule: str, principal: Marketer) -> dict[str, Any]:
        return views.saved(await editor.set_state(rule, "archived", principal))

    @routes.get("/{rule}/versions", summary="The versions with author and differences, newest first")
    async def versions(rule: str, _: Reader, limit: Limit = 50, cursor: int | None = None) -> dict[str, Any]:
        async with context.database.connection() as tx:
            row = await _found(tx, rule)
            found = await rule_store.versions_of(tx, row["id"], below=cursor, limit=limit + 1)
            changes = await rule_store.changes_of(tx, row["id"])
        return views.versions(found, changes, limit)

    @routes.get("/{rule}/report", summary="Who entered, what was treated and held out, goals and revenue")
    async def report(
        rule: str, _: Reader, since: datetime | None = None, until: datetime | None = None
    ) -> dict[str, Any]:
        async with context.database.connection() as tx:
            row = await _found(tx, rule)
            figures = await rule_store.report(tx, row["id"], since, until)
            failed = await rule_store.failures(tx, row["id"], since, until)
        return views.report(row, figures, failed)

    return routes


def _decisions(context: Context, book: RuleBook, world: World) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["decisions"])

    @routes.get("/decisions", summary="Why: the decisions about a person, of a rule or of a run, newest first")
    async def decisions(
        _: Reader,
        profile: UUID | None = None,
        rule: str | None = None,
        run: UUID | None = None,
        limit: Limit = 50,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        async with context.database.connection() as tx:
            rows = await decision_store.list_decisions(
                tx,
                nodes=await _nodes(tx, profile) if profile else None,
                rule=(await _found(tx, rule))["id"] if rule else None,
                run=run,
                before=_after_cursor(cursor, int),
                limit=limit + 1,
            )
        return views.page(rows, limit, views.decision, lambda row: _cursor(row["at"], row["seq"]))

    @routes.get("/decisions/why-not", summary="Why a person did not enter a rule by a moment")
    async def why(_: Reader, rule: str, profile: UUID, at: datetime | None = None) -> dict[str, Any]:
        moment = at or context.clock.now()
        if moment.tzinfo is None:
            raise Problem(
                422, "The request is not valid", errors=[{"parameter": "at", "in": "query", "detail": "needs a zone"}]
            )
        async with context.database.transaction("repeatable_read") as tx:
            row = await _found(tx, rule)
            nodes = await _nodes(tx, profile)
            if not nodes:
                raise Problem(404, "No such profile", f"There is nobody with the profile id {profile}.")
            question = Question(rule=row["id"], node=await _strongest(tx, nodes), at=moment)
            answer = await why_not(tx, question, await book.read(tx), world)
        return views.answer(answer)

    @routes.get("/runs", summary="Runs of a person or of a rule, the last entered first")
    async def runs(
        _: Reader, profile: UUID | None = None, rule: str | None = None, limit: Limit = 50, cursor: str | None = None
    ) -> dict[str, Any]:
        async with context.database.connection() as tx:
            rows = await decision_store.list_runs(
                tx,
                nodes=await _nodes(tx, profile) if profile else None,
                rule=(await _found(tx, rule))["id"] if rule else None,
                before=_after_cursor(cursor, UUID),
                limit=limit + 1,
            )
        return views.page(rows, limit, views.run, lambda row: _cursor(row["entered_at"], row["id"]))

    @routes.get("/runs/{run}", summary="Read a run")
    async def read_run(run: UUID, _: Reader) -> dict[str, Any]:
        async with context.database.connection() as tx:
            row = await decision_store.find_run(tx, run)
        if row is None:
            raise Problem(404, "No such run", f"There is no run {run}.")
        return views.run(row)

    return routes


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def _document(request: Request) -> Any:
    return _readable(parse_document, await _body(request))


async def _documents(request: Request) -> list[Any]:
    found = _readable(parse_documents, await _body(request))
    if len(found) == 1 and isinstance(found[0], dict) and isinstance(found[0].get("rules"), list):
        found = found[0]["rules"]
    for index, one in enumerate(found):
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            detail = "a rule is a mapping with a name"
            raise Problem(422, "The rules are not valid", errors=[{"pointer": f"#/{index}", "detail": detail}])
    return found


async def _body(request: Request) -> bytes:
    body = await request.body()
    if len(body) > 4 * LONGEST:
        raise Problem(413, "The body is too large", f"A rule's document has at most {LONGEST} characters.")
    return body


def _readable(parse: Any, body: bytes) -> Any:
    try:
        return parse(body)
    except DocumentError as error:
        raise Problem(400, "The body is neither YAML nor JSON", str(error)) from error


async def _found(tx: Tx, reference: str) -> Any:
    row = await rule_store.find_rule(tx, reference)
    if row is None:
        raise no_such_rule(reference)
    return row


async def _nodes(tx: Tx, profile: UUID) -> list[UUID]:
    """The present nodes of a person, by a profile id of any time."""
    current = (await cdp.current_profiles(tx, [profile])).get(profile, profile)
    return await decision_store.nodes_of_profile(tx, current)


async def _strongest(tx: Tx, nodes: list[UUID]) -> UUID:
    return await decision_store.strongest_of(tx, nodes)


def _cursor(moment: datetime, last: object) -> str:
    return base64.urlsafe_b64encode(f"{moment.isoformat()} {last}".encode()).decode()


def _after_cursor(cursor: str | None, kind: Any) -> Any:
    if cursor is None:
        return None
    try:
        moment, last = base64.urlsafe_b64decode(cursor).decode().split(" ")
        return datetime.fromisoformat(moment), kind(last)
    except ValueError:
        raise Problem(422, "The request is not valid", "The cursor is not one that a list gave.") from None
