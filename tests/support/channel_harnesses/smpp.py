"""For SMPP: a centre with a ledger of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.dispatch.channels.base import Exchange, Result, World
from services.dispatch.channels.smpp import Smpp
from services.dispatch.channels.smpp_messages import SmppSettings
from shared.settings import load
from tests.support.smpp_peer import PASSWORD, SYSTEM_ID, SmppPeer


def told(peer: SmppPeer, **changes: Any) -> SmppSettings:
    """Settings by which the adapter reaches the peer."""
    given = {"host": "127.0.0.1", "port": peer.port, "tls": False, "system_id": SYSTEM_ID, "password": PASSWORD}
    return SmppSettings(**{**given, "sender": "Shop", **changes})


class SmppHarness:
    """SMPP carries no id of ours: which message an id of the centre's is, the adapter's answers say."""

    def __init__(self, kind: type[Smpp], peer: SmppPeer, folder: Path) -> None:
        self.adapter = kind(World(load(data_dir=folder, outside_allow=("127.0.0.0/8",)), folder))
        self.settings = told(peer)
        self.peer = peer
        self._messages: dict[str, str] = {}
        send = self.adapter.send

        async def remembered(exchange: Exchange) -> Result:
            result = await send(exchange)
            self._messages[result.provider_id] = str(exchange.message)
            return result

        self.adapter.send = remembered  # type: ignore[method-assign]

    def arrived(self) -> list[str]:
        return [self._messages[message["id"]] for message in self.peer.messages()]


@asynccontextmanager
async def harness(kind: type[Smpp], folder: Path) -> AsyncIterator[SmppHarness]:
    with SmppPeer() as peer:
        yield SmppHarness(kind, peer, folder)
