"""`/inbox`: what was sent, for a person to look at: all channels, the mail as it looks, why it was sent, links that work.

Open to this machine as long as no message leaves it; from elsewhere, or once a channel is configured, with an API key
(`Authorization: Bearer`, or the browser's own question: any name, the key as password).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Mapping, Sequence
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from services.dispatch.api.common import cursor_of, read_cursor
from services.dispatch.channels.base import Adapter
from services.dispatch.channels.registry import side_by_side
from services.dispatch.inbox_page import HEADERS, LETTER_HEADERS, letter_page, list_page, message_page
from services.dispatch.links import Signer
from services.dispatch.store import catalogue, reading
from services.dispatch.store.reading import Wanted
from shared.auth import authenticate, refuse_guesser
from shared.channels import KNOWN
from shared.errors import Problem
from shared.service import Context

_PAGE = 50


def router(context: Context, adapters: Mapping[str, type[Adapter]], signer: Signer) -> APIRouter:
    """The routes; not in the API's description, they are for eyes."""
    routes = APIRouter(include_in_schema=False)
    inboxes = [adapter.name for adapter in adapters.values() if not adapter.leaves_machine]
    channels = sorted(KNOWN)
    door = _Door(context, adapters, inboxes)

    @routes.get("/inbox")
    async def listed(
        request: Request, channel: str | None = None, state: str | None = None, cursor: str | None = None
    ) -> Response:
        await door.check(request)
        async with context.database.transaction() as tx:
            wanted = Wanted(channel=channel or None, state=state or None)
            rows = await reading.list_messages(tx, wanted, read_cursor(cursor), _PAGE + 1, newest_first=True)
        more = cursor_of(rows[_PAGE - 1]["updated_at"], rows[_PAGE - 1]["id"]) if len(rows) > _PAGE else None
        page = list_page(context.settings.shop_name, rows[:_PAGE], channels, channel, state, more)
        return HTMLResponse(page, headers=HEADERS)

    @routes.get("/inbox/{message}")
    async def read(message: UUID, request: Request) -> Response:
        await door.check(request)
        async with context.database.transaction() as tx:
            row = await reading.read_message(tx, message)
            if row is None:
                raise Problem(404, "No such message", f"There is no message {message}.")
            alternatives = (await reading.alternatives_of(tx, [message]))[message]
            links = (await reading.links_of(tx, [message]))[message]
            hits = await reading.hits_of(tx, message)
        urls: list[tuple[str, str, str | None]] = [
            (name, url, None) for name, url in (row["urls"] or {}).items() if name != "open"
        ]
        urls += [("click", signer.url("click", message, number), to) for number, to in links]
        return HTMLResponse(message_page(context.settings.shop_name, row, alternatives, urls, hits), headers=HEADERS)

    @routes.get("/inbox/{message}/letter")
    async def letter(message: UUID, request: Request) -> Response:
        """The mail as it looks, for the frame of the page above: no scripts, no pixel, links open in a new tab."""
        await door.check(request)
        async with context.database.transaction() as tx:
            row = await reading.read_message(tx, message)
        if row is None or not row["html"]:
            raise Problem(404, "No such letter", f"The message {message} has no HTML part.")
        return HTMLResponse(letter_page(row["html"], signer.url("open", message)), headers=LETTER_HEADERS)

    return routes


class _Door:
    """Who may look."""

    def __init__(self, context: Context, adapters: Mapping[str, type[Adapter]], inboxes: Sequence[str]) -> None:
        self._context, self._inboxes, self._kinds = context, inboxes, adapters

    async def check(self, request: Request) -> None:
        """Raises a 401 for whoever may not."""
        if self._is_here(request) and not await self._leaving():
            return
        header = request.headers.get("authorization")
        if header and header.lower().startswith("basic "):
            header = f"Bearer {_password(header)}"
        if await authenticate(self._context.database, header) is None:
            refuse_guesser(request)
            raise Problem(
                401,
                "The inbox needs an API key",
                "From another machine, or once a channel is configured, send `Authorization: Bearer <key>`; "
                "a browser asks for it: any name, the key as password.",
                headers={"WWW-Authenticate": 'Basic realm="Dripline inbox", charset="UTF-8"'},
            )

    async def _leaving(self) -> bool:
        """Whether messages of any channel leave the machine, or would if its adapter were ready."""
        async with self._context.database.connection() as connection:
            rows = await catalogue.list_channels(connection)
        for row in rows:
            if row["adapter"] is not None and row["adapter"] not in self._inboxes:
                return True
            serves = side_by_side(self._kinds, row["name"], row["adapter"], self._context.settings, row["told"])
            if any(kind.leaves_machine for kind in serves):
                return True
        return False

    @staticmethod
    def _is_here(request: Request) -> bool:
        """A caller on this machine who asks for this machine: no proxy in between, no name that merely leads here."""
        if any(name in request.headers for name in ("x-forwarded-for", "forwarded", "x-real-ip", "via")):
            return False
        return _is_loopback(request.client.host if request.client else "") and _is_loopback(request.url.hostname or "")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _password(header: str) -> str:
    try:
        return base64.b64decode(header[6:]).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""
