"""For the carrier of the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.dispatch.channels.base import Adapter, World
from shared.settings import load
from tests.support.carrier_peer import TOKEN, CarrierPeer


class CarrierHarness:
    """What arrived is what the peer's ledger says."""

    def __init__(self, kind: type[Adapter], peer: CarrierPeer, folder: Path) -> None:
        self.adapter = kind(World(load(data_dir=folder, outside_allow=("127.0.0.0/8",)), folder))
        assert kind.settings_type is not None
        self.settings: Any = kind.settings_type.model_validate(
            {"url": peer.url, "token": TOKEN, "signing_key": "k" * 20}
        )
        self._peer = peer

    def arrived(self) -> list[str]:
        return [taken["id"] for taken in self._peer.taken()]


@asynccontextmanager
async def harness(kind: type[Adapter], folder: Path) -> AsyncIterator[CarrierHarness]:
    with CarrierPeer() as peer:
        yield CarrierHarness(kind, peer, folder)
