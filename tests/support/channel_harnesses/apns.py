"""Apple's push service, by HTTP/2."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.dispatch.channels.apns import ApnsSettings
from services.dispatch.channels.base import Adapter, World
from shared.settings import load
from tests.support.apns_peer import KEY_ID, TEAM_ID, TOPIC, ApnsPeer


class ApnsHarness:
    def __init__(self, kind: type[Adapter], peer: ApnsPeer, folder: Path) -> None:
        self.adapter = kind(World(load(outside_allow="127.0.0.0/8", data_dir=folder), folder))
        self.settings = told(peer)
        self.address = peer.register()
        self._peer = peer

    def arrived(self) -> list[str]:
        return [entry["payload"]["message"] for entry in self._peer.pushes()]


def told(peer: ApnsPeer, **changes: str) -> ApnsSettings:
    """What an operator would tell the adapter."""
    given = {
        "team_id": TEAM_ID,
        "key_id": KEY_ID,
        "private_key": peer.private_key,
        "topic": TOPIC,
        "server": peer.url,
        "authority": peer.authority,
    }
    return ApnsSettings.model_validate({**given, **changes})


@asynccontextmanager
async def harness(kind: type[Adapter], folder: Path) -> AsyncIterator[ApnsHarness]:
    with ApnsPeer() as peer:
        yield ApnsHarness(kind, peer, folder)
