"""`/v1/put-aside…`: what could not be handled, with the reason; retried or dropped by a person."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response

from services.triggers import views
from services.triggers.api.common import Limit, Marketer, Person, Reader
from services.triggers.aside import Aside
from services.triggers.store import aside as store
from shared.errors import Problem
from shared.service import Context


def router(context: Context, aside: Aside) -> APIRouter:
    """`/v1/put-aside…`"""
    routes = APIRouter(prefix="/v1/put-aside", tags=["decisions"])

    @routes.get("", summary="Items held because handling them failed for a reason outside their rule")
    async def listed(_: Reader, who: Person, limit: Limit = 50, cursor: str | None = None) -> dict[str, Any]:
        async with context.database.connection() as tx:
            nodes = await who.nodes(context, tx) if who.asked else None
            rows = await store.list_aside(tx, nodes=nodes, after=_after(cursor), limit=limit + 1)
        return views.page(rows, limit, views.aside, _cursor)

    @routes.post("/retry", summary="Try all of them again")
    async def retry_all(principal: Marketer) -> dict[str, int]:
        return {"retried": await aside.retry(principal)}

    @routes.post("/{node}/{item}/retry", summary="Try one again, as of its own moment")
    async def retry(node: UUID, item: UUID, principal: Marketer) -> dict[str, int]:
        return {"retried": await aside.retry(principal, node, item)}

    @routes.delete("/{node}/{item}", status_code=204, summary="Drop one: a run that waited for it ends")
    async def drop(node: UUID, item: UUID, principal: Marketer) -> Response:
        await aside.drop(principal, node, item)
        return Response(status_code=204)

    return routes


def _cursor(row: Any) -> str:
    return base64.urlsafe_b64encode(f"{row['due'].isoformat()} {row['node']} {row['id']}".encode()).decode()


def _after(cursor: str | None) -> tuple[datetime, UUID, UUID] | None:
    if cursor is None:
        return None
    try:
        due, node, id = base64.urlsafe_b64decode(cursor).decode().split(" ")
        return datetime.fromisoformat(due), UUID(node), UUID(id)
    except ValueError:
        raise Problem(422, "The request is not valid", "The cursor is not one that a list gave.") from None
