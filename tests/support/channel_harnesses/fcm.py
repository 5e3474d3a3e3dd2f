"""Firebase: Google's token endpoint and the HTTP v1 API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.dispatch.channels.base import Adapter, World
from services.dispatch.channels.fcm import FcmSettings
from shared.settings import load
from tests.support.fcm_peer import FcmPeer


class FcmHarness:
    def __init__(self, kind: type[Adapter], peer: FcmPeer, folder: Path) -> None:
        self.adapter = kind(World(load(outside_allow="127.0.0.0/8", data_dir=folder), folder))
        self.settings = told(peer)
        self.address = peer.register()
        self._peer = peer

    def arrived(self) -> list[str]:
        return [entry["message"]["data"]["message"] for entry in self._peer.pushes()]


def told(peer: FcmPeer, **changes: str) -> FcmSettings:
    """What an operator would tell the adapter."""
    given = {"service_account": peer.service_account(), "server": peer.url, "authority": peer.authority}
    return FcmSettings.model_validate({**given, **changes})


@asynccontextmanager
async def harness(kind: type[Adapter], folder: Path) -> AsyncIterator[FcmHarness]:
    with FcmPeer() as peer:
        yield FcmHarness(kind, peer, folder)
