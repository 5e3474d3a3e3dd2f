"""The management API of triggers: rules, presets, runs, decisions, holidays. Nothing is decided here."""

from __future__ import annotations

from fastapi import APIRouter

from services.triggers.api import aside, decisions, holidays, presets, rules
from services.triggers.aside import Aside
from services.triggers.editing import Editor
from services.triggers.steps.base import World
from services.triggers.store.rules import RuleBook
from shared.service import Context


def router(context: Context, book: RuleBook, world: World) -> APIRouter:
    """All routes of triggers."""
    routes = APIRouter()
    routes.include_router(presets.router(context))
    editor = Editor(context, world)
    routes.include_router(rules.router(context, editor, book, world))
    routes.include_router(decisions.router(context, book, world))
    routes.include_router(aside.router(context, Aside(context, book, world)))
    routes.include_router(holidays.router(context, editor))
    return routes
