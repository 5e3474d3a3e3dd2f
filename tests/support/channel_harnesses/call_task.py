"""For the adapter call-task: the shop's own system, which takes each webhook once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.dispatch.channels.base import Adapter, World
from services.dispatch.channels.signed_hook import HookSettings
from shared.settings import load
from tests.support.webhook_peer import SECRET, WebhookPeer


class Harness:
    def __init__(self, kind: type[Adapter], peer: WebhookPeer, folder: Path) -> None:
        self.adapter = kind(World(load(data_dir=folder, outside_allow=("127.0.0.0/8",)), folder))
        self.settings = HookSettings(url=peer.url, secret=SECRET)
        self._peer = peer

    def arrived(self) -> list[str]:
        return [body["data"]["task"] for body in self._peer.taken()]


@asynccontextmanager
async def harness(kind: type[Adapter], folder: Path) -> AsyncIterator[Harness]:
    with WebhookPeer() as peer:
        yield Harness(kind, peer, folder)
