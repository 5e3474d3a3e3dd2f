"""Web Push: a push service with browsers behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.dispatch.channels.base import Adapter, World
from services.dispatch.channels.web_push import WebPushSettings
from shared.settings import load
from tests.support.web_push_peer import WebPushPeer


class WebPushHarness:
    def __init__(self, kind: type[Adapter], peer: WebPushPeer, folder: Path) -> None:
        self.adapter = kind(World(load(outside_allow="127.0.0.0/8", data_dir=folder), folder))
        self.settings = told(peer)
        self.address = peer.subscribe()
        self._peer = peer

    def arrived(self) -> list[str]:
        return [entry["payload"]["message"] for entry in self._peer.pushes()]


def told(peer: WebPushPeer, **changes: str) -> WebPushSettings:
    """What an operator would tell the adapter."""
    given = {
        "public_key": peer.public_key,
        "private_key": peer.private_key,
        "subject": "mailto:push@shop.example",
        "authority": peer.authority,
    }
    return WebPushSettings.model_validate({**given, **changes})


@asynccontextmanager
async def harness(kind: type[Adapter], folder: Path) -> AsyncIterator[WebPushHarness]:
    with WebPushPeer() as peer:
        yield WebPushHarness(kind, peer, folder)
