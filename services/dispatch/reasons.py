"""Every "no" has a reason that a marketer can read: a code to count by and a sentence."""

from __future__ import annotations

from decimal import Decimal

import msgspec

# What a code means; `/v1/messages` filters by them and the metrics count them.
CODES = {
    "cancelled": "the rule took the message back before it was sent",
    "ghost": "the run belongs to the control group",
    "gone": "the person is no longer known",
    "late": "the message was valid until an earlier moment",
    "guard": "what made the message right no longer holds",
    "switched-off": "somebody switched off everything, the channel or the rule",
    "no-template": "the template does not exist or has no text for the channel",
    "missing-variable": "the template asks for something that is not known of this person",
    "bad-text": "the rendered text cannot be sent",
    "no-offer": "the rule names an offer that does not exist",
    "bought-already": "the person has bought what the offer is about",
    "not-asked": "the rule or the request names other channels",
    "no-address": "there is no address for the channel",
    "claimed": "the address was typed by someone and never confirmed",
    "suppressed": "the address is on the suppression list",
    "no-consent": "there is no consent for the channel and the topic",
    "opted-out": "the consent was taken back",
    "country": "the channel may not write to that country",
    "spend-ceiling": "the channel has spent what it may in the day or the month",
    "cap": "the person, the address or the channel has had enough for now",
    "quiet-hours": "it is night where the person lives",
    "outside-window": "the window of days and hours that the rule names is closed where the person lives",
    "tried": "the channel was tried before for this message",
    "not-worth-it": "no channel brings more than it costs in money and trust",
    "outbid": "another rule's message to the same person is worth more",
    "limit": "too many confirmation mails for this address, network or source",
    "bounced": "the provider says that the address does not exist",
    "refused": "the provider refuses the message for good",
    "undelivered": "the provider took the message and could not deliver it",
    "exhausted": "the provider did not take it as long as it was good",
    "restored": "it was sent, or may have been, between a backup and its restore",
    "unknown": "it is not known whether the provider took the message",
}


class Reason(msgspec.Struct, frozen=True):
    """Why not. `code` is one of CODES."""

    code: str
    text: str

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"there is no reason {self.code!r}")


def money(amount: Decimal) -> str:
    """The amount, in the shop's currency, to the hundredth; one that is less, and is not zero, with its first two digits:
    nobody understands why "-0.00" was not worth a message."""
    hidden = amount and not round(amount, 2)
    return f"{amount:,.{1 - amount.adjusted() if hidden else 2}f}"
