"""`/webhooks/{adapter}`: providers' calls. Whoever calls proves to the adapter that it is the provider; without a proof
nothing is believed, kept or told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from services.dispatch.adapter_settings import SettingsReader, Unusable
from services.dispatch.channels.base import Adapter, AdapterSettings, Call, Forged, Received, Unreadable
from services.dispatch.limits import Held, PublicLimits
from services.dispatch.measures import CALLBACKS
from services.dispatch.reports import Reports
from services.dispatch.store import adapters as store
from shared.errors import Problem, is_transient
from shared.service import Context

log = structlog.get_logger(__name__)

LARGEST_CALL = 1 << 20
SLOWEST_CALL = 30.0  # seconds that its body may take
READING_SECONDS = 10.0
MOST_REPORTS = 1_000


def router(
    context: Context,
    adapters: Mapping[str, Adapter],
    settings: SettingsReader,
    reports: Reports,
    limits: PublicLimits,
) -> APIRouter:
    """The routes; none of them needs an API key: the adapter asks the provider for a proof of its own."""
    routes = APIRouter(tags=["webhooks"], include_in_schema=False)

    @routes.api_route("/webhooks/{adapter}", methods=["GET", "POST"])
    async def called(adapter: str, request: Request) -> Response:
        with limits.unproven(request) as held:
            kind = adapters.get(adapter)
            if kind is None or type(kind).receive is Adapter.receive:
                raise _nobody(adapter)
            async with limits.lookups.take():
                told = await _told(context, settings, kind)
            received = await _read(kind, await _call(request, held, told, context))
        if len(received.reports) > MOST_REPORTS:
            raise Problem(413, "Too many reports", f"One call may tell of {MOST_REPORTS} messages.")
        await reports.receive(adapter, received.reports)
        CALLBACKS.labels(adapter, "taken").inc()
        return Response(received.body, received.status, {"Cache-Control": "no-store"}, received.content_type)

    return routes


async def _call(request: Request, held: Held, told: AdapterSettings | None, context: Context) -> Call:
    return Call(
        method=request.method,
        headers={name.lower(): value for name, value in request.headers.items()},
        query=dict(request.query_params),
        body=await _body(request, held),
        at=context.clock.now(),
        settings=told,
    )


async def _told(context: Context, settings: SettingsReader, adapter: Adapter) -> AdapterSettings | None:
    """What the adapter was told; a 404 if it was not told anything and needs to be: nobody can prove anything then."""
    async with context.database.connection() as connection:
        row = (await store.read_told(connection, [adapter.name])).get(adapter.name)
    if row is not None and adapter.settings_type is not None:
        try:
            return settings.read(row)
        except Unusable as problem:
            log.error("adapter.unusable", adapter=adapter.name, problem=str(problem))
            raise Problem(503, "The adapter cannot be used", "Its settings must be told again.") from None
    if not adapter.serves_untold(context.settings):
        raise _nobody(adapter.name)
    return None


async def _read(adapter: Adapter, call: Call) -> Received:
    """What the adapter makes of the call; a Problem for one that proves nothing or cannot be read."""
    try:
        async with asyncio.timeout(READING_SECONDS):
            return await adapter.receive(call)
    except Forged as problem:
        CALLBACKS.labels(adapter.name, "forged").inc()
        log.warning("webhook.forged", adapter=adapter.name, problem=str(problem))
        raise Problem(403, "Not proven", "The call does not prove that it comes from the provider.") from None
    except Unreadable as problem:
        CALLBACKS.labels(adapter.name, "unreadable").inc()
        raise Problem(400, "Not readable", str(problem)) from None
    except TimeoutError:
        CALLBACKS.labels(adapter.name, "failed").inc()
        raise Problem(503, "Not available at the moment", "Call again.", headers={"Retry-After": "10"}) from None
    except Exception as problem:
        if not is_transient(problem):
            CALLBACKS.labels(adapter.name, "failed").inc()
            log.error("webhook.failed", adapter=adapter.name, exc_info=problem)
        raise


async def _body(request: Request, held: Held) -> bytes:
    """Raises a Problem for what is too large, too slow or not whole."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(SLOWEST_CALL):
            async for part in request.stream():
                size += len(part)
                if size > LARGEST_CALL:
                    raise Problem(413, "Too large", f"A call may have {LARGEST_CALL} bytes.")
                held.reach(size)
                parts.append(part)
    except TimeoutError:
        raise Problem(408, "Too slow", f"A call's body may take {SLOWEST_CALL:g} seconds.") from None
    except ClientDisconnect:
        raise Problem(400, "Not whole", "The connection ended before the body did.") from None
    return b"".join(parts)


def _nobody(adapter: str) -> Problem:
    return Problem(404, "Nobody listens here", f"There is no adapter {adapter[:50]!r} that takes calls here.")
