"""Messenger messages that stay on this machine: JSON files under `<data>/inbox/messenger`."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from services.dispatch.channels.base import Adapter, Exchange, Result
from services.dispatch.channels.files import write_note


class InboxMessenger(Adapter):
    """Serves the channel messenger until a provider is configured."""

    name = "inbox-messenger"
    channel = "messenger"
    address_kind = "external_id"
    part = "messenger"
    timeout = timedelta(seconds=5)
    repeatable = True
    leaves_machine = False

    async def send(self, exchange: Exchange) -> Result:
        exchange.check_start()
        return await asyncio.to_thread(write_note, self.world.inbox / "messenger", exchange)


ADAPTER = InboxMessenger
