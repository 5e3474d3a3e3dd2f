"""`/v1/rules…/preview`, `…/backtest`, `…/diff`: whom a rule would mean, what it would have done, what an edit would change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request

from services.triggers import views
from services.triggers.api.common import BODY, Reader, document_of, found_rule, zoned
from services.triggers.catalogue import Catalogue
from services.triggers.editing import newest_document, understood
from services.triggers.jobs import PEOPLE, Backtests
from services.triggers.preview import preview
from services.triggers.rule import Rule
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


def add(routes: APIRouter, context: Context, book: RuleBook, world: World) -> None:
    """Adds them to the routes of `/v1/rules`, before those that begin with a rule's name."""
    _previews(routes, context, book, world)
    _backtests(routes, context, Backtests(context, world))
    _diff(routes, context)


def _previews(routes: APIRouter, context: Context, book: RuleBook, world: World) -> None:
    @routes.post("/preview", summary="Whom a rule that is not saved would mean now", openapi_extra=BODY)
    async def preview_document(request: Request, _: Reader) -> dict[str, Any]:
        return await _previewed(context, book, world, understood(await document_of(request)), None)

    @routes.post("/{rule}/preview", summary="Whom the rule's newest version would mean now")
    async def preview_rule(rule: str, _: Reader) -> dict[str, Any]:
        async with context.database.connection() as tx:
            row = await found_rule(tx, rule)
            newest = Rule(await newest_document(tx, row))
        return await _previewed(context, book, world, newest, row["id"])


async def _previewed(context: Context, book: RuleBook, world: World, rule: Rule, stored: UUID | None) -> dict[str, Any]:
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


def _backtests(routes: APIRouter, context: Context, backtests: Backtests) -> None:
    @routes.post("/backtest", summary="What a rule that is not saved would have done in a period", openapi_extra=BODY)
    async def backtest_document(request: Request, _: Reader, period: Period) -> dict[str, Any]:
        rule = understood(await document_of(request))
        async with context.database.connection() as tx:
            row = await rule_store.find_rule(tx, rule.name)
        id = row["id"] if row is not None else derived_id("backtest", rule.name)
        since, until = period.of(context)
        found = await backtests.run(rule, id, row["newest"] + 1 if row is not None else 1, since, until, period.people)
        return views.backtest(rule, None, since, until, found)

    @routes.post("/{rule}/backtest", summary="What the rule's newest version would have done in a period")
    async def backtest_rule(rule: str, _: Reader, period: Period) -> dict[str, Any]:
        async with context.database.connection() as tx:
            row = await found_rule(tx, rule)
            newest = Rule(await newest_document(tx, row))
        since, until = period.of(context)
        found = await backtests.run(newest, row["id"], row["newest"], since, until, period.people)
        return views.backtest(newest, row["newest"], since, until, found)


def _diff(routes: APIRouter, context: Context) -> None:
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
