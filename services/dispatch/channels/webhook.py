"""The channel messenger served by a system of the shop's own (WhatsApp, VK, an app): a signed webhook for each message.

Posted is `message.send`; back come `message.delivered`, `message.replied` and so on. An outcome that is not known is
cleared by sending again with the same `webhook-id`: `repeatable`, see `signed_hook.py`.
"""

from __future__ import annotations

import typing
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import msgspec

from services.dispatch.channels import base
from services.dispatch.channels.base import Exchange, Report, Unreadable
from services.dispatch.channels.signed_hook import SignedHook, Told

_PREFIX = "message."
# A task for people is another adapter's.
_KINDS = frozenset(typing.get_args(base.Told)) - {"done"}
Code = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_. -]{0,60}$")]


class _Data(msgspec.Struct):
    """`code`: why, in a word of the system's own."""

    message: UUID
    code: Code = ""
    cost: Annotated[Decimal, msgspec.Meta()] | None = None


_DATA = msgspec.json.Decoder(_Data)


class Webhook(SignedHook):
    """Messages as `message.send`."""

    name = "webhook"
    channel = "messenger"
    address_kind = "external_id"
    part = "messenger"

    def told(self, exchange: Exchange) -> tuple[str, dict[str, Any]]:
        rendered = exchange.rendered
        return f"{_PREFIX}send", {
            "message": str(exchange.message),
            "channel": self.channel,
            "to": exchange.address,
            "title": rendered.subject or None,
            "text": rendered.text,
            "links": rendered.urls,
            "purpose": exchange.purpose,
            "valid_until": exchange.valid_until,
        }

    def reports(self, told: Told) -> list[Report]:
        what = told.type.removeprefix(_PREFIX)
        if what not in _KINDS or not told.type.startswith(_PREFIX):
            raise Unreadable(f"type must be {_PREFIX} and one of {', '.join(sorted(_KINDS))}")
        try:
            data = _DATA.decode(told.data)
        except msgspec.MsgspecError as problem:
            raise Unreadable(f"data cannot be read: {problem}") from None
        if data.cost is not None and not (data.cost.is_finite() and 0 <= data.cost <= 1_000_000):
            raise Unreadable("data.cost must be an amount of money from 0")
        return [
            Report(
                typing.cast(base.Told, what), told.id, message=data.message, at=told.at, detail=data.code,
                charged=data.cost,
            )
        ]  # fmt: skip


ADAPTER = Webhook
