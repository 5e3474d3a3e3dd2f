"""`/v1/presets…`: the shipped rules, and a rule's document made of one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, ValidationError

from services.triggers import views
from services.triggers.api.common import Reader, body_of, document_of
from services.triggers.catalogue import Catalogue
from services.triggers.presets import Preset, presets
from services.triggers.store import rules as rule_store
from shared.conditions import ConditionError
from shared.errors import Problem
from shared.service import Context


class Wanted(BaseModel):
    """What is set in a preset; `name`: of the rule to be made, by default the preset's own."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    title: str | None = None
    parameters: dict[str, Any] = {}


def router(context: Context) -> APIRouter:
    """`/v1/presets…`"""
    routes = APIRouter(prefix="/v1/presets", tags=["presets"])

    async def names() -> Catalogue:
        async with context.database.connection() as tx:
            return Catalogue.of(await rule_store.read_catalogue(tx))

    @routes.get("", summary="The shipped rules, with the values that may be set")
    async def listed(_: Reader) -> dict[str, Any]:
        known = await names()
        return {"items": [views.preset(preset, known) for preset in presets().values()], "next": None}

    @routes.get("/{preset}", summary="Read a preset with its rule's document")
    async def read(preset: str, _: Reader) -> dict[str, Any]:
        found = found_preset(preset)
        return views.preset(found, await names()) | {"document": found.document}

    return routes


def found_preset(name: str) -> Preset:
    """A 404 if there is none."""
    if name not in presets():
        detail = f"There is no preset {name!r}; there are {', '.join(presets())}."
        raise Problem(404, "No such preset", detail)
    return presets()[name]


async def preset_document(request: Request, name: str) -> dict[str, Any]:
    """The document that a preset and the body's values make; a 422 with the place in the body for what is wrong."""
    preset = found_preset(name)
    said = await document_of(request) if (await body_of(request)).strip() else {}
    try:
        wanted = Wanted.model_validate(said)
        return preset.filled(wanted.parameters, name=wanted.name, title=wanted.title)
    except ValidationError as error:
        raise Problem.of_validation(error) from error
    except ConditionError as error:
        fault = {"pointer": f"#{error.pointer}", "detail": error.message}
        raise Problem(422, "The preset cannot be used so", errors=[fault]) from error
