"""What a decision of dispatch looks at, complete: it is stored with the decision, so that the decision can be computed
again from it and nothing else. Money is Decimal roubles; moments are aware UTC."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import msgspec

from services.dispatch.choice import Alternative, Figures, Learned
from services.dispatch.reasons import Reason

ZERO, ONE = Decimal(0), Decimal(1)
Purpose = Literal["marketing", "transactional", "confirmation"]


class ConsentRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row of a consent ledger: profile's (`cdp.consent`) or dispatch's own. States: see `shared.facts.consent`."""

    id: UUID
    node: UUID
    channel: str
    topic: str
    state: str
    at: datetime
    trust: int = 0


class Suppression(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why nothing at all goes to an address: bounced, complained, or somebody said so."""

    why: str
    at: datetime


class Address(msgspec.Struct, frozen=True, omit_defaults=True):
    """One address of the person for a channel. `status`: claimed | confirmed | asserted. `country`: of a phone number,
    where the channel asks for it."""

    node: UUID
    status: str
    consents: list[ConsentRow] = []
    suppression: Suppression | None = None
    country: str | None = None


class Cap(msgspec.Struct, frozen=True, omit_defaults=True):
    """At most `limit` messages `per` "day" (a calendar day where the person lives) or a duration such as "7d".

    `scope`: who has had enough (person, address; network and source for confirmation mails). `purpose` None: of any.
    `channel` None: over all channels.
    """

    scope: Literal["person", "address", "network", "source"]
    limit: int
    per: str
    purpose: Purpose | None = "marketing"
    channel: str | None = None


class Contact(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message that counts against caps: chosen, being sent or sent. `mine`: to the person as known now; a contact
    that is not was made to one of the addresses while it was somebody else's."""

    message: UUID
    at: datetime
    channel: str
    purpose: Purpose
    node: UUID
    mine: bool = True


class Text(msgspec.Struct, frozen=True, omit_defaults=True):
    """What rendering for a channel came to: its price, or why there is no text."""

    cost: Decimal | None = None
    units: int = 1
    reason: Reason | None = None


class Left(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a channel may still spend: `amount` under the tighter of its ceilings, `per` "day" or "month" which is at most
    `ceiling`. What was chosen and not sent yet counts as spent."""

    amount: Decimal
    per: str
    ceiling: Decimal

    def less(self, cost: Decimal) -> Left:
        """What is left once this is spent, too."""
        return Left(self.amount - cost, self.per, self.ceiling)


class Channel(msgspec.Struct, frozen=True, omit_defaults=True):
    """A channel as configured, with this person's addresses on it. `quiet`: "21:00-09:00" or "" for none.
    `price`: λ of its budget. `consent`: the channel's name in the consent ledgers. `countries`: the only ones it may
    write to, [] for all. `ceiling`: whether its spending has one, and `left` what may still be spent under it."""

    name: str
    adapter: str
    consent: str
    unit_cost: Decimal
    figures: Figures
    enabled: bool = True
    quiet: str = ""
    price: Decimal = ONE
    caps: list[Cap] = []
    countries: list[str] = []
    ceiling: bool = False
    left: Left | None = None
    addresses: list[Address] = []
    text: Text | None = None


class Switch(msgspec.Struct, frozen=True, omit_defaults=True):
    """A kill switch that is on. `name`: of the channel or the rule; empty for all."""

    scope: Literal["all", "channel", "rule"]
    name: str = ""
    reason: str = ""


class GuardVerdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The guard judged on the facts of now. `seen`: the values it looked at."""

    holds: bool
    reason: Reason | None = None
    seen: list[dict[str, Any]] = []


class Bought(msgspec.Struct, frozen=True, omit_defaults=True):
    """Goods of an offer's scope that the person bought; `category`: by which they are in it, empty: by the product."""

    product: str
    at: datetime
    category: str = ""


class OfferGuard(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the offer of a message is not made after: that one of `products`, or goods of one of `categories`, were bought
    `within` (None: ever). `bought`: which were, whenever it was."""

    name: str
    products: list[str] = []
    categories: list[str] = []
    within: timedelta | None = None
    bought: list[Bought] = []


class Inputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that one decision looked at. `known`: the person still exists. `nodes`: the person's at that moment.
    `addressed`: the only address that may be used (of a subscription), its channel is then the only one.
    `value_from` says in words where `value` comes from; `base_version` names the version of the shop-wide mean order.
    `window`: the rule's, in its own form; None: it has none."""

    message: UUID
    rule: UUID
    rule_name: str
    purpose: Purpose
    topic: str
    now: datetime
    valid_until: datetime
    zone: str
    window: dict[str, Any] | None = None
    draw: Decimal
    ghost: bool = False
    known: bool = True
    profile: UUID | None = None
    nodes: list[UUID] = []
    guard: GuardVerdict = GuardVerdict(holds=True)
    template: str = ""
    template_version: int | None = None
    problem: Reason | None = None
    offer_guard: OfferGuard | None = None
    asked: list[str] | None = None
    addressed: UUID | None = None
    channels: list[Channel] = []
    switches: list[Switch] = []
    caps: list[Cap] = []
    contacts: list[Contact] = []
    network_count: int = 0
    source_count: int = 0
    purged_at: datetime | None = None
    value: Decimal = ZERO
    value_from: str = ""
    base_version: int | None = None
    base_learned: Learned = Learned()
    explore: Decimal = ZERO
    rival: Decimal | None = None
    rival_name: str = ""
    tried: list[str] = []


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to do with a message. `send`: over `channel` to `address`; `postpone`: look again at `until`; `withhold`: for
    good. A ghost's decision is `withhold` with reason *ghost* and the channel it would have taken."""

    act: Literal["send", "postpone", "withhold"]
    channel: str | None = None
    address: UUID | None = None
    reason: Reason | None = None
    until: datetime | None = None
    alternatives: list[Alternative] = []
    cost: Decimal = ZERO
    probability: Decimal = ONE
    explored: bool = False
