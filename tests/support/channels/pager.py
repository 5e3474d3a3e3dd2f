"""A channel that the product does not know: pagers, reached by phone number, next to nothing to send to."""

from __future__ import annotations

from services.dispatch.channels.base import Adapter, Exchange, Result
from services.dispatch.channels.files import write_note


class Pager(Adapter):
    """Writes pages into the inbox folder."""

    name = "pager"
    channel = "pager"
    address_kind = "phone"
    part = "sms"
    repeatable = True
    leaves_machine = False

    async def send(self, exchange: Exchange) -> Result:
        exchange.check_start()
        return write_note(self.world.inbox / "pager", exchange)


ADAPTER = Pager
