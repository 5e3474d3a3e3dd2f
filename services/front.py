"""What stands before everything that answers HTTP: whose path it is, and what a request hears that the process's end cuts off."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.draining import Drain
from shared.errors import RETRY_AFTER_SECONDS, Problem


class Front:
    """Raw ASGI apps by path prefix before FastAPI: collecting events is the hot path. `api`: FastAPI itself, to be looked at.

    A request that is cancelled because the process ends is answered with 503 and not, as uvicorn would, with 500. While
    `drain` runs each answer is the last one of its connection: a proxy that keeps connections opens none anew to a process that
    leaves, but would go on with those it has until they are cut, and a request that is on its way then is lost.
    """

    def __init__(self, app: ASGIApp, raw: dict[str, ASGIApp], api: FastAPI, drain: Drain) -> None:
        self._app, self.api, self.prefixes, self._drain = app, api, tuple(raw), drain
        self._raw = sorted(raw.items(), key=lambda item: -len(item[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = self._last(send) if self._drain.began else send
        try:
            await self._app_at(scope["path"])(scope, receive, answer)
        except asyncio.CancelledError:
            if not await _told_to_come_again(scope, receive, send):
                raise

    @staticmethod
    def _last(send: Send) -> Send:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        return closing

    def _app_at(self, path: str) -> ASGIApp:
        for prefix, app in self._raw:
            if path.startswith(prefix) and (
                len(path) == len(prefix) or prefix.endswith("/") or path[len(prefix)] == "/"
            ):
                return app
        return self._app


async def _told_to_come_again(scope: Scope, receive: Receive, send: Send) -> bool:
    """Whether that could be said: not once another answer has begun."""
    answer = Problem(
        503,
        "Shutting down",
        "This process was told to stop and the request was not done in time; whether it took effect is open. Send it again: "
        "another process answers, and an event with the same messageId counts once.",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )
    try:
        await answer.to_response()(scope, receive, send)
    except RuntimeError:  # the server's: an answer has one beginning
        return False
    return True
