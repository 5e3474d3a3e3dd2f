"""Public links: `/c/…` click, `/o/…` open, `/u/…` unsubscribe and preferences, `/confirm/…`.

No GET changes consent, a subscription or a run: link scanners follow links. GET of `/c` and `/o` records at most one
event a message and link, HEAD none.

Only what `limits` says is refused to whoever has a valid link: opening many, from one network; never opting out.
"""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from services.dispatch import pages
from services.dispatch.limits import PublicLimits, TooMuch
from services.dispatch.links import Signer, Token
from services.dispatch.subscriptions import Subscriptions
from shared.errors import Problem
from shared.service import Context

_PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
_NO_STORE = {"Cache-Control": "no-store, private", "Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex"}
_LONGEST_FORM = 10_000


def router(context: Context, signer: Signer, subscriptions: Subscriptions, limits: PublicLimits) -> APIRouter:
    """The routes; none of them needs a key, the token is one."""
    routes = APIRouter(tags=["public links"], include_in_schema=False)
    shop = context.settings.shop_name
    _tracking(routes, signer, subscriptions, limits, shop)
    _preferences(routes, signer, subscriptions, limits, shop)
    _confirmation(routes, signer, subscriptions, limits, shop)
    return routes


def _tracking(routes: APIRouter, signer: Signer, subscriptions: Subscriptions, limits: PublicLimits, shop: str) -> None:
    @routes.api_route("/c/{token}", methods=["GET", "HEAD"])
    async def click(token: str, request: Request) -> Response:
        """Leads to the link that was stored with the message, and nowhere else."""
        read = signer.read("click", token)
        if read is None:
            limits.guess(request)
            return pages.gone(shop)
        async with limits.visit("hit", request):
            url = await subscriptions.clicked(
                read.message, read.number, _agent(request), record=request.method == "GET"
            )
        return RedirectResponse(url, 302, _NO_STORE) if url else pages.gone(shop)

    @routes.api_route("/o/{token}", methods=["GET", "HEAD"])
    async def opened(token: str, request: Request) -> Response:
        """A pixel, whatever the token says: a letter must not look broken."""
        read = signer.read("open", token)
        if read is not None and request.method == "GET":
            try:
                async with limits.visit("hit", request):
                    await subscriptions.opened(read.message, _agent(request))
            except TooMuch:
                pass  # it is counted among the limits passed, and not as an open
        return Response(_PIXEL, media_type="image/gif", headers=_NO_STORE)


def _preferences(
    routes: APIRouter, signer: Signer, subscriptions: Subscriptions, limits: PublicLimits, shop: str
) -> None:
    @routes.api_route("/u/{token}", methods=["GET", "HEAD"])
    async def preferences(token: str, request: Request) -> Response:
        read = signer.read("unsubscribe", token)
        if read is None:
            limits.guess(request)
            return pages.gone(shop)
        async with limits.visit("page", request):
            found = await subscriptions.look(read.message)
        if found is None:
            return pages.gone(shop)
        if found.out:
            return pages.out_already(shop)
        return pages.preferences(shop, found.message.address, found.topics)

    @routes.post("/u/{token}")
    async def unsubscribe(token: str, request: Request) -> Response:
        """RFC 8058's one click, and the page's own buttons. Whatever is posted here ends letters; only *keep only these*
        keeps some."""
        read = signer.read("unsubscribe", token)
        if read is None:
            limits.guess(request)
            return pages.gone(shop)
        limits.press(read.message)
        body = await _body(request)
        one_click = b"List-Unsubscribe" in body
        form = {} if one_click else parse_qs(body.decode("utf-8", "replace"))
        topics, kept = await _choice(subscriptions, read, form)
        by = "one-click" if one_click else "page"
        sent = await subscriptions.withdraw(read.message, topics, by, _proof(request)) if topics != [] else True
        if sent is None:
            return pages.gone(shop)
        return PlainTextResponse("unsubscribed", headers=_NO_STORE) if one_click else pages.withdrawn(shop, kept)


def _confirmation(
    routes: APIRouter, signer: Signer, subscriptions: Subscriptions, limits: PublicLimits, shop: str
) -> None:
    @routes.api_route("/confirm/{token}", methods=["GET", "HEAD"])
    async def ask(token: str, request: Request) -> Response:
        read = signer.read("confirm", token)
        if read is None:
            limits.guess(request)
            return pages.gone(shop)
        async with limits.visit("page", request):
            found = await subscriptions.look(read.message)
        return pages.confirm(shop, found.message.address) if found else pages.gone(shop)

    @routes.post("/confirm/{token}")
    async def confirm(token: str, request: Request) -> Response:
        read = signer.read("confirm", token)
        if read is None:
            limits.guess(request)
            return pages.gone(shop)
        limits.press(read.message)
        pressed = await subscriptions.confirm(read.message, _proof(request))
        match pressed[0] if pressed else None:
            case "confirmed" | "already" as state:
                return pages.confirmed(shop, again=state == "already")
            case "expired":
                return pages.gone(shop, expired=True)
            case "complained":
                return pages.complained(shop)
        return pages.gone(shop)


async def _choice(
    subscriptions: Subscriptions, token: Token, form: dict[str, list[str]]
) -> tuple[list[str] | None, list[str]]:
    """(topics to end, None for all; topics that are kept)."""
    if form.get("action") != ["save"]:
        return None, []
    found = await subscriptions.look(token.message)
    now = found.topics if found else []
    kept = [topic for topic in now if topic in form.get("keep", [])]
    return ([topic for topic in now if topic not in kept], kept) if kept else (None, [])


async def _body(request: Request) -> bytes:
    """The form, as far as it may be of use."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST_FORM:
                break
    except ClientDisconnect:
        raise Problem(400, "Not whole", "The connection ended before the form did.") from None
    return body[:_LONGEST_FORM]


def _agent(request: Request) -> str:
    return request.headers.get("user-agent", "")[:500]


def _proof(request: Request) -> dict[str, Any]:
    """What is kept of a pressed button besides its time."""
    return {"ip": request.client.host if request.client else None, "user_agent": _agent(request)}
