"""Whether a person may be written to over a channel for a topic, read from the folded consents."""

from __future__ import annotations

from uuid import UUID

from pydantic_core import PydanticCustomError

from shared.channels import ADDRESS_KIND, KNOWN
from shared.conditions.errors import unknown
from shared.conditions.fields import refusal
from shared.facts.model import Consent, Facts

STATES = ("requested", "granted", "confirmed", "withdrawn", "complained")
ALL_TOPICS = "*"


def consent_channel(channel: str, *, key: bool = False) -> str:
    """The channel, if people can consent to it; for validation. `key`: it is the key of the field at fault."""
    if (one := KNOWN.get(channel)) and one.consents:
        raise _refused(f"people consent to {channel} and {one.consents} at once: ask for {one.consents}", channel, key)
    if channel not in ADDRESS_KIND:
        raise _refused(unknown("channel", str(channel), ADDRESS_KIND), channel, key)
    return channel


def known_channel(channel: str, *, key: bool = False) -> str:
    """The channel, if there is one of that name; for validation. `key`: it is the key of the field at fault."""
    if channel not in KNOWN:
        raise _refused(unknown("channel", str(channel), KNOWN), channel, key)
    return channel


def _refused(message: str, channel: str, key: bool) -> PydanticCustomError:
    return refusal(message, **({"field": str(channel)} if key else {}))


def event_word(channel: str) -> str:
    """The first word of the channel's feedback events: `Email` in `Email Opened`. A channel that is no longer declared goes
    by its own name."""
    one = KNOWN.get(channel)
    return one.event if one else channel.capitalize()


def standing(facts: Facts, channel: str, topic: str) -> list[Consent]:
    """What holds for each address of the channel that ever said anything about the topic, by address node.

    The consent for a topic has the rows about all topics folded in already; it is asked first.
    """
    by_node: dict[UUID, Consent] = {}
    for consent in facts.consents:
        if consent.channel == channel and consent.topic in (topic, ALL_TOPICS):
            there = by_node.get(consent.node)
            if there is None or there.topic == ALL_TOPICS:
                by_node[consent.node] = consent
    return [consent for _, consent in sorted(by_node.items())]


def counts_as(consent: Consent, state: str) -> bool:
    """Whether the consent is in that state; granted with proof by the shop's server counts as confirmed."""
    if state == "confirmed" and consent.state == "granted":
        return consent.may_write
    return consent.state == state
