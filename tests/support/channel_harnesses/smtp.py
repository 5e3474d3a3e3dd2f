"""For the SMTP adapter: a server with a ledger of its own, which takes nothing without TLS and a password."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.dispatch.channels.base import Adapter, World
from services.dispatch.channels.smtp_settings import SmtpSettings
from shared.settings import load
from tests.support.smtp_peer import SmtpPeer


class SmtpHarness:
    """A letter's id is the local part of its Message-ID."""

    def __init__(self, kind: type[Adapter], peer: SmtpPeer, folder: Path) -> None:
        self.adapter = kind(World(load(data_dir=folder, outside_allow=("127.0.0.0/8",)), folder))
        self.settings = SmtpSettings(
            host="127.0.0.1",
            port=peer.port,
            username="shop",
            password="of the test",
            authority=peer.authority.certificate,
        )
        self._peer = peer

    def arrived(self) -> list[str]:
        return [str(letter.message["Message-ID"]).strip("<>").partition("@")[0] for letter in self._peer.letters()]


@asynccontextmanager
async def harness(kind: type[Adapter], folder: Path) -> AsyncIterator[SmtpHarness]:
    with SmtpPeer(security="starttls", users={"shop": "of the test"}) as peer:
        yield SmtpHarness(kind, peer, folder)
