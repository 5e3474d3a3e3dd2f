"""Messenger messages that stay on this machine: JSON files under `<data>/inbox/messenger`."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal

from services.dispatch.channels.base import Adapter, ChannelDefaults, Exchange, Result
from services.dispatch.channels.files import write_note
from services.dispatch.inputs import Cap


class InboxMessenger(Adapter):
    """Serves the channel messenger until a provider is configured."""

    name = "inbox-messenger"
    channel = "messenger"
    address_kind = "external_id"
    part = "messenger"
    timeout = timedelta(seconds=5)
    repeatable = True
    leaves_machine = False
    defaults = ChannelDefaults(
        unit_cost=Decimal("0.10"),
        reach=Decimal("0.8"),
        act=Decimal("0.04"),
        lost=Decimal("0.04"),
        event="Messenger",
        caps=(Cap(scope="person", limit=1, per="day", channel="messenger"),),
    )

    async def send(self, exchange: Exchange) -> Result:
        exchange.check_start()
        return await asyncio.to_thread(write_note, self.world.inbox / "messenger", exchange)


ADAPTER = InboxMessenger
