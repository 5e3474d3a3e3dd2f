"""For the adapter telegram: a Bot API with a ledger of its own. Telegram knows nothing of our ids; the harness tells a
message by the one that stands in its ledger, in the order in which the adapter sent them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.dispatch.channels.base import Adapter, Exchange, Result, World
from services.dispatch.channels.telegram import TelegramSettings
from shared.settings import load
from tests.support.telegram_peer import TOKEN, TelegramPeer


class Harness:
    """`arrived` maps the provider's ids, as answers told them, to ours; a message that nobody was told of has none."""

    address = "telegram:1001"

    def __init__(self, kind: type[Adapter], peer: TelegramPeer, folder: Path) -> None:
        self.adapter = kind(World(load(data_dir=folder, outside_allow=("127.0.0.0/8",)), folder))
        self.settings = TelegramSettings(token=TOKEN, api=peer.origin)
        self._peer = peer
        self._ours: dict[str, str] = {}
        send = self.adapter.send

        async def noting(exchange: Exchange) -> Result:
            result = await send(exchange)
            self._ours[result.provider_id] = str(exchange.message)
            return result

        self.adapter.send = noting  # type: ignore[method-assign]

    def arrived(self) -> list[str]:
        taken = [f"{entry['chat_id']}:{entry['message']}" for entry in self._peer.entries("taken")]
        return [self._ours.get(id, f"unknown {id}") for id in taken]


@asynccontextmanager
async def harness(kind: type[Adapter], folder: Path) -> AsyncIterator[Harness]:
    with TelegramPeer() as peer:
        yield Harness(kind, peer, folder)
