"""Which identifiers an event names, which of them its source may vouch for, and whose event it is.

*Origin node*: the strongest id that the source may vouch for. Secret sources vouch for all of them, a signed event for
its user id and its own anonymousId, a public one for its own anonymousId alone; without one it belongs to a node of
kind `claimed` that is scoped to the source. Every other id only makes a link.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgspec

from services.ingest.refusal import Refusal
from shared.channels import ADDRESS_KIND
from shared.events import Trust
from shared.identifiers import STRENGTH, BadIdentifier, Identifier, identifier
from shared.ids import node_id

# Their properties name the person something is shared with, not the person who shares.
_ABOUT_OTHERS = frozenset({"Product Shared", "Cart Shared"})
ADDRESSED = frozenset({"Subscription Requested", "Consent Granted", "Unsubscribed"})
_CARD_FIELDS = ("card", "loyalty_card")
_EXTERNAL_KINDS = {
    "email": "email",
    "phone": "phone",
    "card": "card",
    "loyalty_card": "card",
    "user_id": "user_id",
    "anonymous_id": "anonymous_id",
    "device_token": "device_token",
}


class Candidate(msgspec.Struct, frozen=True):
    """An identifier as written. `own`: named at the top of the event; a bad one there is refused, elsewhere left out."""

    kind: str
    value: str
    pointer: str
    own: bool = False


def text_id(value: Any, pointer: str) -> str | None:
    """An id at the top of an event: text, or an integer written as such; None for null and ""."""
    if value is None or value == "":
        return None
    if type(value) is int:
        return str(value)
    if type(value) is not str:
        raise Refusal("identifier", "must be text", pointer)
    return value


def candidates(call: dict[str, Any], kind: str, name: str, data: EventData) -> Iterator[Candidate]:
    """All identifiers in an event, the most explicit first."""
    for field, id_kind in (("userId", "user_id"), ("anonymousId", "anonymous_id")):
        if value := text_id(call.get(field), f"/{field}"):
            yield Candidate(id_kind, value, f"/{field}", own=True)
    if kind == "alias":
        yield from _previous(call)
    if name in ADDRESSED and kind == "track":
        channel, address = data.properties.get("channel"), data.properties.get("address")
        yield Candidate(ADDRESS_KIND.get(str(channel), "external_id"), str(address), "/properties/address", own=True)
    if data.traits:
        yield from _in_object(data.traits, "/traits")
    if kind != "group" and data.properties and name not in _ABOUT_OTHERS:
        yield from _in_object(data.properties, "/properties")
    if data.context:
        yield from _in_context(data.context)


def _previous(call: dict[str, Any]) -> Iterator[Candidate]:
    """An alias does not say what its previousId is: a user id or an anonymous one. It is taken for both."""
    if value := text_id(call.get("previousId"), "/previousId"):
        yield Candidate("anonymous_id", value, "/previousId", own=True)
        if value != call.get("anonymousId"):
            yield Candidate("user_id", value, "/previousId", own=True)


def _in_object(fields: dict[str, Any], pointer: str) -> Iterator[Candidate]:
    for field in ("email", "phone"):
        if (value := fields.get(field)) and type(value) in (str, int):
            yield Candidate(field, str(value), f"{pointer}/{field}")
    for field in _CARD_FIELDS:
        if (value := fields.get(field)) and type(value) in (str, int):
            yield Candidate("card", str(value), f"{pointer}/{field}")


def _in_context(context: dict[str, Any]) -> Iterator[Candidate]:
    if type(traits := context.get("traits")) is dict:
        yield from _in_object(traits, "/context/traits")
    if type(device := context.get("device")) is dict and type(token := device.get("token")) is str and token:
        yield Candidate("device_token", token, "/context/device/token")
    for field in ("externalIds", "externalId"):  # Segment's name, RudderStack's name
        if type(listed := context.get(field)) is list:
            for index, entry in enumerate(listed):
                if type(entry) is dict:
                    yield from _external(entry, f"/context/{field}/{index}/id")


def _external(entry: dict[str, Any], pointer: str) -> Iterator[Candidate]:
    id_type, value = entry.get("type"), entry.get("id")
    if type(id_type) is not str or not id_type or type(value) not in (str, int) or value == "":
        return
    if kind := _EXTERNAL_KINDS.get(id_type):
        yield Candidate(kind, str(value), pointer)
    else:
        yield Candidate("external_id", f"{id_type}:{value}", pointer)


class EventData(msgspec.Struct):
    """What an event says, after its envelope was merged in."""

    properties: dict[str, Any]
    traits: dict[str, Any]
    context: dict[str, Any]


@lru_cache(maxsize=20_000)  # the same people come again and again; normal forms of phones and domains are dear
def _identifier(namespace: UUID, kind: str, value: str, country: str, strong: bool) -> Identifier:
    return identifier(namespace, kind, value, country, strong=strong)


def identify(
    found: Iterator[Candidate], trust: Trust, namespace: UUID, country: str
) -> tuple[list[Identifier], list[Candidate]]:
    """The identifiers in normal form, strongest first, each once; and the candidates that are none (a mistyped e-mail).

    Raises Refusal when one at the top of the event, or the address of a subscription, cannot be one.
    """
    by_node: dict[UUID, Identifier] = {}
    bad: list[Candidate] = []
    for candidate in found:
        strong = _vouched(candidate, trust)
        try:
            one = _identifier(namespace, candidate.kind, candidate.value, country, strong)
        except BadIdentifier as problem:
            if candidate.own:
                raise Refusal("identifier", str(problem), candidate.pointer) from None
            bad.append(candidate)
            continue
        if one.node not in by_node or strong:
            by_node[one.node] = one
    return sorted(by_node.values(), key=lambda one: -STRENGTH[one.kind]), bad


def _vouched(candidate: Candidate, trust: Trust) -> bool:
    if trust == "secret":
        return True
    if candidate.pointer == "/anonymousId":
        return True
    return trust == "signed" and candidate.pointer == "/userId"


def origin_first(ids: list[Identifier], source: UUID, namespace: UUID) -> list[Identifier]:
    """`ids` with the origin's first. Adds the claimed node of a public source that vouches for none of them.

    Raises Refusal when the event names nobody.
    """
    if not ids:
        raise Refusal("nobody", "names nobody: give userId or anonymousId")
    for index, one in enumerate(ids):
        if one.strong:
            return [one, *ids[:index], *ids[index + 1 :]] if index else ids
    value = f"{source}/{ids[0].node}"
    return [Identifier("claimed", value, node_id(namespace, "claimed", value), strong=True), *ids]


def signature_of(user_id: str, secret: str) -> str:
    """What a shop's server puts into `context.dripline.signature`: HMAC-SHA256 of the user id, in hex.

    `user_id` as it is sent, without blanks around it; `secret`: the source's signing secret, as text.
    """
    return hmac.new(secret.encode(), user_id.strip().encode(), hashlib.sha256).hexdigest()


def is_signed(user_id: str, signature: str, secrets: tuple[str, ...]) -> bool:
    """Whether one of the source's signing secrets (the present one, or the former while it overlaps) made it."""
    given = signature.strip().lower().encode()
    return any(hmac.compare_digest(signature_of(user_id, secret).encode(), given) for secret in secrets)
