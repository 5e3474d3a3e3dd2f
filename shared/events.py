"""The records of the four bus topics, as types; encoded as JSON, one record a value.

`docs/asyncapi.json` is generated from this module. Unknown fields are ignored when reading, so that an old version can
read what a newer one wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import msgspec

from shared.channels import FEEDBACK_NAMES
from shared.facts.model import Facts
from shared.identifiers import Identifier
from shared.ids import derived_id, event_id

Trust = Literal["public", "signed", "secret", "internal"]
TRUST_RANK: dict[str, int] = {"public": 0, "signed": 1, "secret": 2, "internal": 3}

EVENTS, HISTORY, PROFILE_EVENTS, MESSAGES = "events", "history", "profile-events", "messages"
TOPICS = (EVENTS, HISTORY, PROFILE_EVENTS, MESSAGES)
# Who reads them: the service, its schema and its consumer group have one name.
READER_OF = {EVENTS: "profile", HISTORY: "profile", PROFILE_EVENTS: "triggers", MESSAGES: "dispatch"}
MAX_HOPS = 5
# How long an event's id is remembered, 13 months: what occurred before may come as history only.
REMEMBERED = timedelta(days=396)

# The source under which the product itself publishes; its trust is `internal`.
INTERNAL_SOURCE = derived_id("source", "dripline")

# Names that only the product itself may publish, by their lower case, besides those of the channels' feedback.
_OWN_NAMES = {
    name.casefold(): name
    for name in (
        "Subscription Confirmed", "Consent Granted", "Unsubscribed", "Contact Purged", "Traits Set", "Link Clicked",
    )
}  # fmt: skip

# Names of the e-commerce spec v1, and what they are called in v2.
V1_NAMES = {
    "Viewed Product Category": "Product List Viewed",
    "Viewed Product": "Product Viewed",
    "Clicked Product": "Product Clicked",
    "Added Product": "Product Added",
    "Removed Product": "Product Removed",
    "Completed Order": "Order Completed",
    "Refunded Order": "Order Refunded",
    "Updated Order": "Order Updated",
    "Cancelled Order": "Order Cancelled",
    "Started Order": "Checkout Started",
    "Viewed Cart": "Cart Viewed",
    "Viewed Checkout Step": "Checkout Step Viewed",
    "Completed Checkout Step": "Checkout Step Completed",
    "Entered Payment Info": "Payment Info Entered",
    "Viewed Promotion": "Promotion Viewed",
    "Clicked Promotion": "Promotion Clicked",
    "Searched Products": "Products Searched",
}
# The names of calls that are not `track`.
CALL_NAMES = {
    "identify": "Identify",
    "page": "Page Viewed",
    "screen": "Screen Viewed",
    "group": "Group",
    "alias": "Alias",
}


def own_name(name: str) -> str | None:
    """The name of the product's own that this is, however it is written; a public source that sends one is refused."""
    folded = name.casefold()
    return _OWN_NAMES.get(folded) or FEEDBACK_NAMES.get(folded)


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One accepted event: the value of `events` and `history`, keyed by `origin`.

    `origin` is the strongest node its source may vouch for. `ids` are all identifiers found in it, `origin`'s first if
    it is among them (an event of our own may name its origin node by id alone). `hash` is the SHA-256 (hex) of the
    canonical body: a repeat with another hash is *conflicting*. Money in `properties` is as the client sent it.
    """

    id: UUID
    source: UUID
    trust: Trust
    type: str
    name: str
    origin: UUID
    ids: list[Identifier]
    occurred_at: datetime
    received_at: datetime
    hash: str
    message_id: str | None = None
    history: bool = False
    hops: int = 0
    properties: dict[str, Any] = {}
    traits: dict[str, Any] = {}
    context: dict[str, Any] = {}


class ProfileEvent(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="record", tag="event"):
    """An event after profile applied it (bus topic `profile-events`, key: profile id).

    `nodes`: all nodes of the person at `learned_at`. `order_key`: the order it reports, if it does; `first`: it is the
    first report of that order from a source that may state money (only this one enters rules).
    """

    event: Event
    learned_at: datetime
    profile: UUID
    nodes: list[UUID]
    facts: Facts
    order_key: str | None = None
    first: bool = False


class ProfileMerged(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="record", tag="merged"):
    """Profile `loser` became part of `winner` at `learned_at`; published under both keys."""

    id: UUID
    winner: UUID
    loser: UUID
    nodes: list[UUID]
    learned_at: datetime


class ProfileSplit(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="record", tag="split"):
    """`nodes` left `profile` and are now `new_profile`; published under both keys."""

    id: UUID
    profile: UUID
    new_profile: UUID
    nodes: list[UUID]
    learned_at: datetime


class ProfileErased(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="record", tag="erased"):
    """Profile `profile` was erased at `learned_at`: whatever is kept of these nodes must be forgotten."""

    id: UUID
    profile: UUID
    nodes: list[UUID]
    learned_at: datetime


ProfileRecord = ProfileEvent | ProfileMerged | ProfileSplit | ProfileErased


class Addressed(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The address that the entry event asked for (subscription requested or confirmed): dispatch looks up no other."""

    channel: str
    address: str
    topics: list[str] = []
    form: str | None = None
    node: UUID | None = None
    # The id of the event that asked: the confirmation link confirms this request and no other.
    request: UUID | None = None
    text_version: str | None = None
    page: str | None = None


class Guard(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The condition under which it is still right to send, judged on the facts of now.

    `until`: event matches of `stop` and `goal` in the rule language's own form (`{event, where}`); one of them learned
    after `since` withholds. `conditions`: condition documents that must hold (entry `if`/`among`, every `if` around the
    send; negated under `else`).
    """

    since: datetime
    until: list[dict[str, Any]] = []
    conditions: list[dict[str, Any]] = []


class Intended(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="record", tag="intended"):
    """A message wanted by a rule (bus topic `messages`, key: run id). The highest `run_version` wins.

    `value`: what success is worth, in the rule's own form (`{"money": "900"}`, `{"cart_total": "0.3"}` …; None: 30 % of
    the mean order). `event`: the entry event as templates see it. `decided_at`: the T of the decision. `window`: the days and
    hours in which it may be sent, in the rule's own form (`{"days": ["mon..fri"], "hours": "09:00-21:00"}`).
    """

    message: UUID
    run: UUID
    run_version: int
    rule: UUID
    rule_name: str
    rule_version: int
    kind: Literal["marketing", "transactional"]
    topic: str
    step: str
    template: str
    profile: UUID
    origin: UUID
    entered_at: datetime
    decided_at: datetime
    valid_until: datetime
    guard: Guard
    ghost: bool = False
    channels: list[str] | None = None
    offer: str | None = None
    value: dict[str, Any] | None = None
    goal_within: float | None = None
    cascade_after: float | None = None
    collect: float = 0.0
    priority: int = 0
    window: dict[str, Any] | None = None
    event: dict[str, Any] = {}
    addressed: Addressed | None = None
    hops: int = 0


class Cancelled(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="record", tag="cancelled"):
    """The intent is wrong by now; `reason` is what a marketer reads."""

    message: UUID
    run: UUID
    run_version: int
    rule: UUID
    reason: str
    decided_at: datetime


class Outcome(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="record", tag="outcome"):
    """What came of a run when its goal window closed; of ghosts alike. `revenue` less refunds, in the shop's currency."""

    run: UUID
    run_version: int
    rule: UUID
    ghost: bool
    entered_at: datetime
    closed_at: datetime
    goal_at: datetime | None = None
    revenue: Decimal = Decimal(0)


class Erased(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="record", tag="erased"):
    """Somebody was erased at `at`: nothing is sent to these nodes any more, and what was sent loses address and text.
    Published under the profile's id."""

    id: UUID
    profile: UUID
    nodes: list[UUID]
    at: datetime


MessageRecord = Intended | Cancelled | Outcome | Erased

_encoder = msgspec.json.Encoder()
_event = msgspec.json.Decoder(Event)
_profile_record = msgspec.json.Decoder(ProfileRecord)
_message_record = msgspec.json.Decoder(MessageRecord)


def encode(record: Event | ProfileRecord | MessageRecord) -> bytes:
    """The record as JSON bytes."""
    return _encoder.encode(record)


def decode_event(value: bytes) -> Event:
    """Raises msgspec.DecodeError / ValidationError, which name the field at fault."""
    return _event.decode(value)


def decode_profile_record(value: bytes) -> ProfileRecord:
    return _profile_record.decode(value)


def decode_message_record(value: bytes) -> MessageRecord:
    return _message_record.decode(value)


def cloud_headers(record_id: UUID, source: str, kind: str, at: datetime, subject: str) -> dict[str, bytes]:
    """CloudEvents' Kafka binding, binary mode."""
    return {
        "ce_specversion": b"1.0",
        "ce_id": str(record_id).encode(),
        "ce_source": source.encode(),
        "ce_type": kind.encode(),
        "ce_time": at.isoformat().encode(),
        "ce_subject": subject.encode(),
        "content-type": b"application/json",
    }


def internal_event(
    name: str,
    *,
    key: str,
    origin: UUID,
    at: datetime,
    ids: list[Identifier] | None = None,
    properties: Mapping[str, Any] | None = None,
    traits: Mapping[str, Any] | None = None,
    hops: int = 1,
    type: str = "track",
) -> Event:
    """An event of our own. `key` says what it is a record of (`"{message}/1/sent"`): repeats get the same id.

    `ids` must contain `origin`'s identifier if that node may not exist yet.
    """
    props, trts = dict(properties or {}), dict(traits or {})
    return Event(
        id=event_id(INTERNAL_SOURCE, key),
        source=INTERNAL_SOURCE,
        trust="internal",
        type=type,
        name=name,
        origin=origin,
        ids=list(ids or []),
        occurred_at=at,
        received_at=at,
        hash=body_hash(type, name, ids or [], props, trts, at.isoformat()),
        message_id=key,
        hops=hops,
        properties=props,
        traits=trts,
    )


def body_hash(
    type: str,
    name: str,
    ids: list[Identifier],
    properties: Mapping[str, Any],
    traits: Mapping[str, Any],
    timestamp: str | None,
) -> str:
    """SHA-256 (hex) of the canonical body: what must be equal for a repeat to be a repeat.

    `timestamp` is the client's own, as it wrote it; never sentAt, context or corrected times.
    """
    import hashlib

    canonical = msgspec.json.encode(
        [type, name, sorted((i.kind, i.value) for i in ids), dict(properties), dict(traits), timestamp],
        order="deterministic",
    )
    return hashlib.sha256(canonical).hexdigest()
