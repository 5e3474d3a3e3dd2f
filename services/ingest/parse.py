"""One item of a body → an `Event`, or `Refused` with its reason. Pure: time, ids and secrets come in.

What is decided here: the event's name (v1 names become v2, the product's own are refused), its time, its identifiers
and origin node, its trust, its id. Nothing is corrected silently: what a public source may not say is refused, what
would reach a letter is taken out and listed in `context.dripline.removed`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from services.ingest import strict_json, subscriptions
from services.ingest.origin import (
    ADDRESSED,
    Candidate,
    EventData,
    candidates,
    identify,
    is_signed,
    origin_first,
    text_id,
)
from services.ingest.public_limits import limited
from services.ingest.reading import TYPES, Envelope, Item
from services.ingest.refusal import Refusal, Refused, pointer_to
from services.ingest.times import occurred_at, read_time, refuse_too_old
from shared.events import CALL_NAMES, V1_NAMES, Event, Trust, body_hash, own_name
from shared.ids import RandomBits, derived_id, event_id, uuid7

KIB = 1024
MAX_EVENT = {"public": 32 * KIB, "secret": 256 * KIB}
MAX_MESSAGE_ID = 100
MAX_NAME = 200
MAX_KEY = 200  # three of them make a receipt's key, and PostgreSQL takes no index entry above 2 700 bytes

# A secret source may say these two of the product's own names: consent that was given elsewhere, and taken back.
_SAID_BY_SECRET = frozenset({"Consent Granted", "Unsubscribed"})
_KEYS_OF_THINGS = ("order_id", "store_id", "terminal_id", "receipt_id", "product_id", "cart_id", "checkout_id")


class Source(msgspec.Struct, frozen=True):
    """Who sends. `signing_secrets`: by which a public source's server vouches for user ids; the present one first."""

    id: UUID
    name: str
    kind: Literal["public", "secret"]
    signing_secrets: tuple[str, ...] = ()


class Shop(msgspec.Struct, frozen=True):
    """What of the deployment decides how an event is read."""

    namespace: UUID
    country: str
    link_hosts: frozenset[str]


class Arrival(msgspec.Struct, frozen=True):
    """How a body came: from whom, when, from which network address, in which envelope."""

    source: Source
    received_at: datetime
    envelope: Envelope = Envelope()
    address: str | None = None


class Parsed(msgspec.Struct):
    """An accepted event, and what of it was left aside: `bad_ids` are no identifiers, `removed` may not be kept."""

    event: Event
    bad_ids: list[Candidate]
    removed: list[str]
    badly_signed: bool = False


def parse_item(item: Item, arrival: Arrival, shop: Shop, bits: RandomBits) -> Parsed | Refused:
    """What the item means. Never raises for anything a client can send."""
    try:
        limit = MAX_EVENT[arrival.source.kind]
        if len(item.raw) > limit:
            where = f"a {arrival.source.kind} source"
            raise Refusal("size", f"has {len(item.raw)} bytes; {where} may send {limit // KIB} KiB an event")
        call = strict_json.read(item.raw) if item.value is None else item.value
        if type(call) is not dict:
            raise Refusal("type", "an event must be a JSON object")
        return _parse(call, item, arrival, shop, bits)
    except Refusal as refusal:
        return Refused.because(refusal)


def parse(raw: bytes, call: str | None, arrival: Arrival, shop: Shop, bits: RandomBits) -> Event | Refused:
    """One event's JSON → the event. `call`: one of TYPES, or None where the event itself says its type."""
    parsed = parse_item(Item(raw, call), arrival, shop, bits)
    return parsed.event if isinstance(parsed, Parsed) else parsed


def _parse(call: dict[str, Any], item: Item, arrival: Arrival, shop: Shop, bits: RandomBits) -> Parsed:
    source, received_at = arrival.source, arrival.received_at
    kind = item.type or _type(call)
    name = _name(call, kind, source)
    data = _data(call, kind, arrival.envelope)
    _check_keys(data)
    own = _own_context(data.context)
    history = _history(own, source)
    trust, badly_signed = _trust(call, own, source)
    if name in ADDRESSED and kind == "track":
        subscriptions.check(name, data.properties, received_at)
    ids, bad_ids = identify(candidates(call, kind, name, data), trust, shop.namespace, shop.country)
    ids = origin_first(ids, source.id, shop.namespace)

    written = _first_said(call.get("timestamp"), call.get("originalTimestamp"))
    timestamp = read_time(written, "/timestamp")
    occurred = occurred_at(timestamp, _sent_at(call, arrival), received_at)
    if not history:
        refuse_too_old(occurred, received_at)
    digest = body_hash(kind, name, ids, data.properties, data.traits, written)
    message = _message_id(call)
    removed = _limit(data, shop, arrival) if source.kind == "public" else []
    event = Event(
        id=_event_id(source, message, digest if written else None) or item.id or uuid7(received_at, bits),
        source=source.id,
        trust=trust,
        type=kind,
        name=name,
        origin=ids[0].node,
        ids=ids,
        occurred_at=occurred,
        received_at=received_at,
        hash=digest,
        message_id=message,
        history=history,
        properties=data.properties,
        traits=data.traits,
        context=data.context,
    )
    return Parsed(event, bad_ids, removed, badly_signed)


def _type(call: dict[str, Any]) -> str:
    kind = call.get("type")
    if type(kind) is not str or kind not in TYPES:
        raise Refusal("type", f"type must be one of {', '.join(TYPES)}", "/type")
    return kind


def _name(call: dict[str, Any], kind: str, source: Source) -> str:
    if kind != "track":
        return CALL_NAMES[kind]
    name = call.get("event")
    if type(name) is not str or not (name := name.strip()):
        raise Refusal("name", "a track event needs its name", "/event")
    if len(name) > MAX_NAME:
        raise Refusal("name", f"the name has {len(name)} characters, at most {MAX_NAME} are allowed", "/event")
    if not name.isprintable():
        raise Refusal("name", "the name contains control characters", "/event")
    if own := own_name(name):
        if source.kind == "secret" and own in _SAID_BY_SECRET:
            return own
        who = "only a secret source may send it" if own in _SAID_BY_SECRET else "only Dripline itself publishes it"
        raise Refusal("name", f"{own!r} is a name of the product's own: {who}", "/event")
    return V1_NAMES.get(name, name)


def _data(call: dict[str, Any], kind: str, envelope: Envelope) -> EventData:
    """Properties, traits and context as the event means them, whatever the kind of call and the client's habits."""
    context = _merged(envelope.context, _object(call, "context"))
    integrations = call.get("integrations")
    if merged := _merged(envelope.integrations, integrations if type(integrations) is dict else {}):
        context["integrations"] = merged
    properties, traits = dict(_object(call, "properties")), {}
    if kind == "identify":
        # RudderStack's libraries put the traits of an identify into its context.
        inner = context.get("traits")
        traits = {**(inner if type(inner) is dict else {}), **_object(call, "traits")}
        context.pop("traits", None)
    elif kind == "group":
        properties = {**_object(call, "traits"), **properties}
        if group := text_id(call.get("groupId"), "/groupId"):
            properties["group_id"] = group
    elif kind in ("page", "screen"):
        for field in ("name", "category"):
            if (value := call.get(field)) is not None:
                properties.setdefault(field, value)
    return EventData(properties, traits, context)


def _object(call: dict[str, Any], field: str) -> dict[str, Any]:
    value = call.get(field)
    if value is None:
        return {}
    if type(value) is not dict:
        raise Refusal("field", f"{field} must be an object", f"/{field}")
    return value


def _merged(outer: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
    """`outer` with what `inner` says; objects are merged, an explicit null says nothing."""
    if not outer:
        return dict(inner)
    merged = dict(outer)
    for name, value in inner.items():
        below = merged.get(name)
        if type(value) is dict and type(below) is dict:
            merged[name] = _merged(below, value)
        elif value is not None or below is None:
            merged[name] = value
    return merged


def _check_keys(data: EventData) -> None:
    """What becomes part of an index must fit into it."""
    _check_things(data.properties, "/properties")
    products = data.properties.get("products")
    if type(products) is list:
        for index, product in enumerate(products):
            if type(product) is dict:
                _check_things(product, f"/properties/products/{index}")
    for name in data.traits:
        if len(name) > MAX_NAME:
            raise Refusal(
                "field", f"a trait's name has {len(name)} characters, at most {MAX_NAME} are allowed", "/traits"
            )


def _check_things(fields: dict[str, Any], pointer: str) -> None:
    for name in _KEYS_OF_THINGS:
        value = fields.get(name)
        if type(value) is str and len(value) > MAX_KEY:
            raise Refusal(
                "field", f"has {len(value)} characters, at most {MAX_KEY} are allowed", pointer + pointer_to(name)
            )


def _own_context(context: dict[str, Any]) -> dict[str, Any]:
    """`context.dripline`, taken out: a signature is not stored, and what stands there is ours to write."""
    own = context.pop("dripline", None)
    if own is None:
        return {}
    if type(own) is not dict:
        raise Refusal("field", "context.dripline must be an object", "/context/dripline")
    return own


def _history(own: dict[str, Any], source: Source) -> bool:
    history = own.get("history")
    if history is None or history is False:
        return False
    if history is not True:
        raise Refusal("history", "must be true or false", "/context/dripline/history")
    if source.kind != "secret":
        raise Refusal("history", "only a secret source may send history", "/context/dripline/history")
    return True


def _trust(call: dict[str, Any], own: dict[str, Any], source: Source) -> tuple[Trust, bool]:
    """The event's trust, and whether it was signed wrongly: such an event counts as any other of its public source."""
    if source.kind == "secret":
        return "secret", False
    signature, user_id = own.get("signature"), text_id(call.get("userId"), "/userId")
    if signature is None or not user_id:
        return "public", False
    if type(signature) is str and is_signed(user_id, signature, source.signing_secrets):
        return "signed", False
    return "public", True


def _sent_at(call: dict[str, Any], arrival: Arrival) -> datetime | None:
    if arrival.source.kind == "secret":
        return None
    return read_time(_first_said(call.get("sentAt"), arrival.envelope.sent_at), "/sentAt")


def _first_said(*values: Any) -> Any:
    """The first value that says something: null and "" do not."""
    return next((value for value in values if value is not None and value != ""), None)


def _message_id(call: dict[str, Any]) -> str | None:
    message = call.get("messageId")
    if message is None or message == "":
        return None
    if type(message) is int:
        message = str(message)
    if type(message) is not str:
        raise Refusal("message_id", "must be text", "/messageId")
    if len(message) > MAX_MESSAGE_ID:
        raise Refusal(
            "message_id", f"has {len(message)} characters, at most {MAX_MESSAGE_ID} are allowed", "/messageId"
        )
    return message


def _event_id(source: Source, message: str | None, digest: str | None) -> UUID | None:
    """A repeat has the same id: by its messageId, else by its body if that says when; else (None) every event is a new one."""
    if message is not None:
        return event_id(source.id, message)
    return derived_id("event", source.id, digest) if digest else None


def _limit(data: EventData, shop: Shop, arrival: Arrival) -> list[str]:
    """Takes out of a public event what may not reach a letter, and writes down where it came from."""
    removed: list[str] = []
    data.properties = limited(data.properties, shop.link_hosts, "properties", removed)
    data.traits = limited(data.traits, shop.link_hosts, "traits", removed)
    if removed:
        data.context["dripline"] = {"removed": removed[:20]}
    if arrival.address:
        data.context["ip"] = arrival.address
    return removed
