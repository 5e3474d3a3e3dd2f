"""SMS that stay on this machine: JSON files under `<data>/inbox/sms`."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal

from services.dispatch.channels.base import Adapter, Exchange, Price, Result
from services.dispatch.channels.files import write_note
from services.dispatch.rendered import Rendered
from services.dispatch.segments import segments


class InboxSms(Adapter):
    """Serves the channel sms until a provider is configured."""

    name = "inbox-sms"
    channel = "sms"
    address_kind = "phone"
    part = "sms"
    timeout = timedelta(seconds=5)
    repeatable = True
    leaves_machine = False

    @classmethod
    def price(cls, rendered: Rendered, unit_cost: Decimal) -> Price:
        """An SMS costs per segment of the rendered text."""
        count = segments(rendered.text).count
        return Price(unit_cost * count, count)

    async def send(self, exchange: Exchange) -> Result:
        exchange.check_start()
        return await asyncio.to_thread(write_note, self.world.inbox / "sms", exchange)


ADAPTER = InboxSms
