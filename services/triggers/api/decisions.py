"""`/v1/decisions…` and `/v1/runs…`: why, and why not."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from fastapi import APIRouter

from services.triggers import views
from services.triggers.api.common import Limit, Person, Reader, after_cursor, cursor_of, found_rule, zoned
from services.triggers.steps.base import World
from services.triggers.store import decisions as decision_store
from services.triggers.store.rules import RuleBook
from services.triggers.why import Question, why_not
from shared.errors import Problem
from shared.service import Context

MICROSECOND = timedelta(microseconds=1)


def router(context: Context, book: RuleBook, world: World) -> APIRouter:
    """`/v1/decisions…` and `/v1/runs…`"""
    routes = APIRouter(prefix="/v1", tags=["decisions"])
    _decisions(routes, context, book, world)
    _runs(routes, context)
    return routes


def _decisions(routes: APIRouter, context: Context, book: RuleBook, world: World) -> None:
    @routes.get("/decisions", summary="Why: the decisions about a person, of a rule or of a run, newest first")
    async def decisions(
        _: Reader,
        who: Person,
        rule: str | None = None,
        run: UUID | None = None,
        limit: Limit = 50,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        async with context.database.connection() as tx:
            rows = await decision_store.list_decisions(
                tx,
                nodes=await who.nodes(context, tx) if who.asked else None,
                rule=(await found_rule(tx, rule))["id"] if rule else None,
                run=run,
                before=after_cursor(cursor, int),
                limit=limit + 1,
            )
        return views.page(rows, limit, views.decision, lambda row: cursor_of(row["at"], row["seq"]))

    @routes.get(
        "/decisions/why", summary="Why a person is or was in a rule: the last run by a moment, decision by decision"
    )
    async def why(_: Reader, who: Person, rule: str, at: datetime | None = None) -> dict[str, Any]:
        until = (zoned(context, at) + MICROSECOND, UUID(int=0))
        async with context.database.transaction("repeatable_read") as tx:
            row = await found_rule(tx, rule)
            nodes = await who.known(context, tx)
            runs = await decision_store.list_runs(tx, nodes=nodes, rule=row["id"], before=until, limit=1)
            if not runs:
                detail = f"The person had not entered {row['name']} by then; GET /v1/decisions/why-not says why."
                raise Problem(404, "No such run", detail)
            decided = await decision_store.list_decisions(
                tx, nodes=None, rule=None, run=runs[0]["id"], before=(until[0], 0), limit=200
            )
        return views.why(runs[0], decided)

    @routes.get("/decisions/why-not", summary="Why a person did not enter a rule by a moment")
    async def why_not_entered(_: Reader, who: Person, rule: str, at: datetime | None = None) -> dict[str, Any]:
        moment = zoned(context, at)
        async with context.database.transaction("repeatable_read") as tx:
            row = await found_rule(tx, rule)
            nodes = await who.known(context, tx)
            question = Question(rule=row["id"], node=await decision_store.strongest_of(tx, nodes), at=moment)
            answer = await why_not(tx, question, await book.read(tx), world)
        return views.answer(answer)


def _runs(routes: APIRouter, context: Context) -> None:
    @routes.get("/runs", summary="Runs of a person or of a rule, the last entered first")
    async def runs(
        _: Reader, who: Person, rule: str | None = None, limit: Limit = 50, cursor: str | None = None
    ) -> dict[str, Any]:
        async with context.database.connection() as tx:
            rows = await decision_store.list_runs(
                tx,
                nodes=await who.nodes(context, tx) if who.asked else None,
                rule=(await found_rule(tx, rule))["id"] if rule else None,
                before=after_cursor(cursor, UUID),
                limit=limit + 1,
            )
        return views.page(rows, limit, views.run, lambda row: cursor_of(row["entered_at"], row["id"]))

    @routes.get("/runs/{run}", summary="Read a run")
    async def read_run(run: UUID, _: Reader) -> dict[str, Any]:
        async with context.database.connection() as tx:
            row = await decision_store.find_run(tx, run)
        if row is None:
            raise Problem(404, "No such run", f"There is no run {run}.")
        return views.run(row)
