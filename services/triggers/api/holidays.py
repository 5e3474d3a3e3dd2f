"""`/v1/holidays`: the shop's holidays, which the condition `holiday` looks at."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from services.triggers.api.common import Marketer, Reader
from services.triggers.editing import Editor
from shared.holidays import newest_holidays
from shared.service import Context


class HolidaysIn(BaseModel):
    """All dates that are holidays in the shop's country; what is left out is none any more."""

    model_config = ConfigDict(extra="forbid")

    days: Annotated[list[date], Field(max_length=5000)]


class HolidaysOut(BaseModel):
    """The newest version; 0 while none was made. `valid_from`: decisions before it keep the version they took."""

    version: int
    valid_from: datetime | None
    days: list[date]
    author: str | None
    made_at: datetime | None


def router(context: Context, editor: Editor) -> APIRouter:
    """`/v1/holidays`"""
    routes = APIRouter(prefix="/v1/holidays", tags=["holidays"])

    @routes.get("", summary="The shop's holidays")
    async def read(_: Reader) -> HolidaysOut:
        async with context.database.connection() as tx:
            row = await newest_holidays(tx)
        if row is None:
            return HolidaysOut(version=0, valid_from=None, days=[], author=None, made_at=None)
        return HolidaysOut(**dict(row))

    @routes.put("", summary="Set the holidays: a new version, used from now on")
    async def put(body: HolidaysIn, principal: Marketer) -> HolidaysOut:
        return HolidaysOut(**dict(await editor.set_holidays(body.days, principal)))

    return routes
