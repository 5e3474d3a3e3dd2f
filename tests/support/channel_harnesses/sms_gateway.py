"""For the HTTP gateways: SMSC stands for all in the common suite; each has its own tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.dispatch.channels.base import Adapter, World
from services.dispatch.channels.sms_gateway import SmsGatewaySettings
from shared.settings import load
from tests.support.sms_gateway_peer import LOGINS, PASSWORD, SECRET, SmsGatewayPeer


class SmsGatewayHarness:
    """A message's id is what the gateway was told as the client's own."""

    def __init__(self, kind: type[Adapter], peer: SmsGatewayPeer, folder: Path, preset: str = "smsc") -> None:
        world = World(load(data_dir=folder, outside_allow=("127.0.0.0/8",), public_url="https://shop.example"), folder)
        self.adapter = kind(world)
        self.settings = SmsGatewaySettings(
            preset=preset,
            server=peer.url,
            login=LOGINS[preset],
            password=PASSWORD,
            sender="Shop",
            webhook_secret=SECRET,
        )
        self.peer = peer

    def arrived(self) -> list[str]:
        return [message["key"] for message in self.peer.messages()]


@asynccontextmanager
async def harness(kind: type[Adapter], folder: Path) -> AsyncIterator[SmsGatewayHarness]:
    with SmsGatewayPeer() as peer:
        yield SmsGatewayHarness(kind, peer, folder)
