"""Identifiers of people: their kinds, their normal form, their strength.

The normal form never changes (node ids are made from it): e-mail trimmed, NFC, lower case, IDNA domain; phone E.164
with the shop's country; every other kind trimmed, NFC, case kept.
"""

from __future__ import annotations

import unicodedata
from uuid import UUID

import idna
import msgspec
import phonenumbers

from shared.ids import node_id

# From strongest to weakest (design §5, "Strength of ids"); `claimed` is the node of an event without any id of its own.
STRENGTH: dict[str, int] = {
    "user_id": 70,
    "card": 60,
    "external_id": 50,
    "email": 40,
    "phone": 30,
    "device_token": 20,
    "anonymous_id": 10,
    "claimed": 0,
}
KINDS = tuple(STRENGTH)
# Two different values of an exclusive kind are two people, whatever else links them.
EXCLUSIVE = frozenset({"user_id", "card"})
# An id with more links than this joins nothing (a shop's own phone typed at every till). None: no limit.
DEGREE_LIMIT: dict[str, int] = {
    "user_id": 200,
    "card": 100,
    "external_id": 100,
    "email": 30,
    "phone": 20,
    "device_token": 10,
    "anonymous_id": 10,
    "claimed": 10,
}

MAX_VALUE = 320  # characters; the longest legal e-mail address, and short enough for an index
# A browser's subscription is its keys and an address that the push service made as long as it liked.
MAX_LENGTH: dict[str, int] = {"device_token": 1024}


class Identifier(msgspec.Struct, frozen=True, omit_defaults=True):
    """One identifier in an event, in normal form. `strong`: the event's source may vouch for it."""

    kind: str
    value: str
    node: UUID
    strong: bool = False


class BadIdentifier(ValueError):
    """The value cannot be an identifier of its kind; the text says why."""


def normalise(kind: str, value: str, country: str) -> str:
    """The normal form of `value`. `country`: ISO 3166 code for phones written without one.

    Raises BadIdentifier for what cannot be one.
    """
    text = unicodedata.normalize("NFC", str(value)).strip()
    if not text:
        raise BadIdentifier(f"{kind} is empty")
    longest = MAX_LENGTH.get(kind, MAX_VALUE)
    if len(text) > longest:
        raise BadIdentifier(f"{kind} has {len(text)} characters, at most {longest} are allowed")
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in text):
        raise BadIdentifier(f"{kind} contains control characters")
    if kind == "email":
        return _email(text)
    if kind == "phone":
        return _phone(text, country)
    return text


def _email(text: str) -> str:
    local, at, domain = text.lower().rpartition("@")
    if not at or not local or not domain or any(c.isspace() for c in text):
        raise BadIdentifier("email is not an address (name@domain)")
    try:
        domain = idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError as problem:
        raise BadIdentifier(f"email has an impossible domain: {problem}") from problem
    return f"{local}@{domain}"


def _phone(text: str, country: str) -> str:
    try:
        number = phonenumbers.parse(text, country)
    except phonenumbers.NumberParseException as problem:
        raise BadIdentifier("phone is not a telephone number") from problem
    if not phonenumbers.is_possible_number(number):
        raise BadIdentifier("phone is not a possible telephone number")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def identifier(namespace: UUID, kind: str, value: str, country: str, *, strong: bool = False) -> Identifier:
    """Normalises and makes the node id at once. Raises BadIdentifier."""
    normal = normalise(kind, value, country)
    return Identifier(kind=kind, value=normal, node=node_id(namespace, kind, normal), strong=strong)
