"""Effects as they are published and as they are kept."""

from __future__ import annotations

from typing import Any

import msgspec

from services.triggers.run import Effect
from shared.bus.base import Outgoing
from shared.events import (
    EVENTS,
    MESSAGES,
    Cancelled,
    Erased,
    Event,
    Intended,
    Outcome,
    ProfileErased,
    cloud_headers,
    encode,
)
from shared.ids import derived_id

SOURCE = "/triggers"
CONTACT_PURGED = "Contact Purged"


def outgoing(effect: Effect) -> Outgoing:
    """The record of an effect: messages under their run's id, events under their origin node."""
    match effect:
        case Event():
            headers = cloud_headers(effect.id, SOURCE, "dripline.event", effect.occurred_at, str(effect.origin))
            return Outgoing(topic=EVENTS, key=str(effect.origin).encode(), value=encode(effect), headers=headers)
        case Intended():
            kind, id, at = "intended", derived_id("intended", effect.message, effect.run_version), effect.decided_at
        case Cancelled():
            kind, id, at = "cancelled", derived_id("cancelled", effect.message, effect.run_version), effect.decided_at
        case Outcome():
            kind, id, at = "outcome", derived_id("outcome", effect.run), effect.closed_at
    headers = cloud_headers(id, SOURCE, f"dripline.message.{kind}", at, str(effect.run))
    return Outgoing(topic=MESSAGES, key=str(effect.run).encode(), value=encode(effect), headers=headers)


def erased(record: ProfileErased) -> Outgoing:
    """An erasure, handed on to dispatch."""
    told = Erased(id=record.id, profile=record.profile, nodes=record.nodes, at=record.learned_at)
    headers = cloud_headers(told.id, SOURCE, "dripline.message.erased", told.at, str(told.profile))
    return Outgoing(topic=MESSAGES, key=str(told.profile).encode(), value=encode(told), headers=headers)


# What every effect of a run repeats and the decision's own row says already.
_TOLD = {
    "run",
    "rule",
    "rule_name",
    "rule_version",
    "decided_at",
    "entered_at",
    "event",
    "profile",
    "origin",
    "addressed",
}


def summary_of(effect: Effect) -> dict[str, Any]:
    """The effect as it is kept with its decision and compared when it is derived again, as JSON gives it back."""
    plain = msgspec.json.decode(msgspec.json.encode(effect))
    if isinstance(effect, Event):
        told = {key: plain[key] for key in ("id", "name", "origin", "properties", "traits", "hops") if key in plain}
        if effect.name == CONTACT_PURGED:
            told["properties"] = {key: value for key, value in told["properties"].items() if key != "address"}
        return {"emit": told}
    kind = plain.pop("record")
    return {kind: {key: value for key, value in plain.items() if key not in _TOLD}}
