"""Events about consent must carry what makes them proof.

`Subscription Requested` (anyone): channel, address. `Unsubscribed` (secret): channel, address. `Consent Granted`
(secret): channel, address and the proof: form, text_version, page, at, ip. `topics` are consent topics; without them
the shop's marketing is meant, and for Unsubscribed everything.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from datetime import datetime, timedelta
from typing import Any

from services.ingest.refusal import Refusal
from services.ingest.times import read_time
from shared.channels import ADDRESS_KIND, KNOWN

PROOF = ("form", "text_version", "page")
_CHANNEL = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_LONGEST = {"page": 2_048}
_LONGEST_TEXT = 200
_MOST_TOPICS = 50
_CLOCKS_DIFFER_BY = timedelta(minutes=5)


def check(name: str, properties: dict[str, Any], received_at: datetime) -> None:
    """Raises Refusal of kind `consent` that points at what is missing or wrong."""
    _check_channel(properties.get("channel"))
    if type(properties.get("address")) is not str or not properties["address"].strip():
        raise _wrong("address", "is needed: the e-mail address, phone number or token, as text")
    _check_topics(properties.get("topics"))
    for field in PROOF:
        value = properties.get(field)
        if value is None and name != "Consent Granted":
            continue
        _check_text(field, value)
    if name == "Consent Granted":
        _check_moment(properties.get("at"), received_at)
        _check_network(properties.get("ip"))


def _check_channel(channel: Any) -> None:
    if type(channel) is not str or not _CHANNEL.fullmatch(channel):
        raise _wrong("channel", f"is needed: one of {', '.join(ADDRESS_KIND)}")
    if (one := KNOWN.get(channel)) and one.consents:
        raise _wrong("channel", f"people consent to {channel!r} by {one.consents!r}: name that")
    if channel not in ADDRESS_KIND and (near := difflib.get_close_matches(channel, ADDRESS_KIND, 1, 0.7)):
        raise _wrong("channel", f"{channel!r} is no channel; did you mean {near[0]!r}?")


def _check_topics(topics: Any) -> None:
    if topics is None:
        return
    if type(topics) is not list or not topics or len(topics) > _MOST_TOPICS:
        raise _wrong("topics", 'must be a list of consent topics such as ["news", "offers"]')
    for index, topic in enumerate(topics):
        if type(topic) is not str or not topic.strip() or len(topic) > 100:
            raise _wrong(f"topics/{index}", "must be the name of a consent topic, at most 100 characters")


def _check_text(field: str, value: Any) -> None:
    if type(value) is not str or not value.strip():
        raise _wrong(field, "is needed as proof of the consent, as text")
    if len(value) > _LONGEST.get(field, _LONGEST_TEXT):
        raise _wrong(field, f"has {len(value)} characters, at most {_LONGEST.get(field, _LONGEST_TEXT)} are allowed")


def _check_moment(value: Any, received_at: datetime) -> None:
    moment = read_time(value, "/properties/at")
    if moment is None:
        raise _wrong("at", "is needed as proof of the consent: when it was given")
    if moment > received_at + _CLOCKS_DIFFER_BY:
        raise _wrong("at", "lies in the future")


def _check_network(value: Any) -> None:
    try:
        ipaddress.ip_address(value if type(value) is str else "")
    except ValueError:
        raise _wrong("ip", "is needed as proof of the consent: the network address it was given from") from None


def _wrong(field: str, reason: str) -> Refusal:
    return Refusal("consent", reason, f"/properties/{field}")
