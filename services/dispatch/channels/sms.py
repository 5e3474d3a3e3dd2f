"""What the adapters of the channel sms have in common: a phone number, the template's part, the price by segments."""

from __future__ import annotations

from decimal import Decimal

from services.dispatch.channels.base import Adapter, Price
from services.dispatch.rendered import Rendered
from services.dispatch.segments import segments


class SmsAdapter(Adapter):
    """An SMS costs per segment of the rendered text."""

    channel = "sms"
    address_kind = "phone"
    part = "sms"

    @classmethod
    def price(cls, rendered: Rendered, unit_cost: Decimal) -> Price:
        count = segments(rendered.text).count
        return Price(unit_cost * count, count)
