"""Calls as tasks for people: each is posted to the shop's call centre as a signed webhook `call.task`, and what came of
it comes back to `/webhooks/call-task` as `call.done`, signed the same way.

An outcome of the posting that is not known is cleared by posting again with the same `webhook-id`: `repeatable`, see
`signed_hook.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from services.dispatch.channels.base import Exchange, Report, Unreadable
from services.dispatch.channels.signed_hook import SignedHook, Told

# What a call can come to. *refused*: the person did not want to talk now; *do_not_call*: never again.
Outcome = Literal["reached", "not_reached", "refused", "call_back", "wrong_number", "do_not_call"]


class _Data(msgspec.Struct):
    task: UUID
    outcome: Outcome
    duration_seconds: Annotated[int, msgspec.Meta(ge=0, le=86_400)] | None = None


_DATA = msgspec.json.Decoder(_Data)


class CallTask(SignedHook):
    """Tasks as `call.task`."""

    name = "call-task"
    channel = "call"
    address_kind = "phone"
    part = "call"

    def told(self, exchange: Exchange) -> tuple[str, dict[str, Any]]:
        rendered = exchange.rendered
        return "call.task", {
            "task": str(exchange.message),
            "phone": exchange.address,
            "title": rendered.subject or None,
            "text": rendered.text,
            "links": rendered.urls,
            "purpose": exchange.purpose,
            "not_after": exchange.valid_until,
        }

    def reports(self, told: Told) -> list[Report]:
        if told.type != "call.done":
            raise Unreadable("type must be call.done")
        try:
            data = _DATA.decode(told.data)
        except msgspec.MsgspecError as problem:
            raise Unreadable(f"data cannot be read: {problem}") from None
        properties: dict[str, Any] = {"outcome": data.outcome}
        if data.duration_seconds is not None:
            properties["duration_seconds"] = data.duration_seconds
        found = [Report("done", told.id, message=data.task, at=told.at, properties=properties)]
        if data.outcome == "do_not_call":
            found.append(Report("unsubscribed", f"{told.id}/unsubscribed", message=data.task, at=told.at))
        if data.outcome == "wrong_number":
            found.append(Report("bounced", f"{told.id}/bounced", message=data.task, at=told.at, detail=data.outcome))
        return found


ADAPTER = CallTask
