"""Push messages that stay on this machine: JSON files under `<data>/inbox/push`."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from services.dispatch.channels.base import Adapter, Exchange, Result
from services.dispatch.channels.files import write_note


class InboxPush(Adapter):
    """Serves the channel push until a provider is configured."""

    name = "inbox-push"
    channel = "push"
    address_kind = "device_token"
    part = "push"
    timeout = timedelta(seconds=5)
    repeatable = True
    leaves_machine = False

    async def send(self, exchange: Exchange) -> Result:
        exchange.check_start()
        return await asyncio.to_thread(write_note, self.world.inbox / "push", exchange)


ADAPTER = InboxPush
