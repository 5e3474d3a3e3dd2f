"""The address that a subscription event is about."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from shared.channels import ADDRESS_KIND
from shared.events import Addressed
from shared.facts.model import EventFact, Facts
from shared.identifiers import BadIdentifier, normalise
from shared.ids import derived_id

ASKING = frozenset({"Subscription Requested", "Subscription Confirmed"})


def addressed_by(event: EventFact | None, facts: Facts, country: str) -> tuple[Addressed | None, str]:
    """The address, form and topics of a subscription event, and its subject (the address's node; empty for other events).

    :param country: by which phone numbers without a country code are read
    """
    if event is None or event.name not in ASKING:
        return None, ""
    said = event.properties
    channel, address = str(said.get("channel") or "email"), said.get("address")
    kind = ADDRESS_KIND.get(channel)
    if kind is None or not isinstance(address, str):
        return None, ""
    try:
        address = normalise(kind, address, country)
    except BadIdentifier:
        return None, ""
    node = next((one.node for one in facts.addresses if one.kind == kind and one.value == address), None)
    topics = said.get("topics")
    asked = Addressed(
        channel=channel,
        address=address,
        topics=[str(topic) for topic in topics] if isinstance(topics, list) else [],
        form=_text(said.get("form")),
        node=node,
        request=event.id if event.name == "Subscription Requested" else _id(said.get("request")),
        text_version=_text(said.get("text_version")),
        page=_text(said.get("page")),
    )
    return asked, str(node or derived_id("address", channel, address))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _id(value: Any) -> UUID | None:
    try:
        return UUID(str(value)) if value else None
    except ValueError:
        return None
