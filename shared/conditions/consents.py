"""Whether a person may be written to over a channel for a topic, read from the folded consents."""

from __future__ import annotations

from uuid import UUID

from shared.conditions.errors import unknown
from shared.conditions.fields import refusal
from shared.facts.model import Consent, Facts
from shared.identifiers import ADDRESS_KIND

STATES = ("requested", "granted", "confirmed", "withdrawn", "complained")
ALL_TOPICS = "*"
# How feedback events call the channels; others are called by their own name, capitalised.
EVENT_WORDS = {"email": "Email", "sms": "SMS", "push": "Push", "messenger": "Messenger", "call": "Call"}


def known_channel(channel: str, *, key: bool = False) -> str:
    """The channel, if there is an address for it; for validation. `key`: it is the key of the field at fault."""
    if channel not in ADDRESS_KIND:
        raise refusal(unknown("channel", str(channel), ADDRESS_KIND), **({"field": str(channel)} if key else {}))
    return channel


def event_word(channel: str) -> str:
    """The first word of the channel's feedback events: `Email` in `Email Opened`."""
    return EVENT_WORDS.get(channel, channel.capitalize())


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
