"""A channel that the product does not know: pagers, reached by phone number, next to nothing to send to."""

from __future__ import annotations

from decimal import Decimal

from services.dispatch.channels.base import Adapter, ChannelDefaults, Exchange, Result
from services.dispatch.channels.files import write_note


class Pager(Adapter):
    """Writes pages into the inbox folder."""

    name = "pager"
    channel = "pager"
    address_kind = "phone"
    part = "sms"
    repeatable = True
    leaves_machine = False
    defaults = ChannelDefaults(
        unit_cost=Decimal("0.05"),
        reach=Decimal("0.99"),
        act=Decimal("0.20"),
        lost=Decimal("0.01"),
        event="Pager",
        quiet=False,
        consent="sms",
    )

    async def send(self, exchange: Exchange) -> Result:
        exchange.check_start()
        return write_note(self.world.inbox / "pager", exchange)


ADAPTER = Pager
