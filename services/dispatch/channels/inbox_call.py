"""Calls as tasks for people, kept on this machine: JSON files under `<data>/inbox/call`."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from services.dispatch.channels.base import Adapter, Exchange, Result
from services.dispatch.channels.files import write_note


class InboxCall(Adapter):
    """Serves the channel call until a provider is configured."""

    name = "inbox-call"
    channel = "call"
    address_kind = "phone"
    part = "call"
    timeout = timedelta(seconds=5)
    repeatable = True
    leaves_machine = False

    async def send(self, exchange: Exchange) -> Result:
        exchange.check_start()
        return await asyncio.to_thread(write_note, self.world.inbox / "call", exchange)


ADAPTER = InboxCall
