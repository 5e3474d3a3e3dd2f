"""Why an event is not taken: the exception of the parsing modules, and the value that `parse` returns."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from shared.errors import Permanent

# What a refusal is about: the label of its counter, so this list stays short.
Kind = Literal[
    "json", "type", "size", "count", "field", "name", "identifier", "time", "message_id", "consent", "history", "nobody"
]
_LONGEST = 300
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class Refusal(Permanent):
    """This event, or this body, cannot be taken.

    :param kind: what it is about
    :param reason: one sentence that says what to do
    :param pointer: JSON pointer of the field at fault within the event, "" for the whole of it
    """

    def __init__(self, kind: Kind, reason: str, pointer: str = "") -> None:
        super().__init__(printable(reason), printable(pointer))
        self.kind: Kind = kind


class Refused(msgspec.Struct, frozen=True):
    """What became of an event that is not taken. Fields as in `Refusal`."""

    kind: Kind
    reason: str
    pointer: str = ""

    @classmethod
    def because(cls, refusal: Refusal) -> Refused:
        return cls(refusal.kind, refusal.reason, refusal.pointer)


def printable(text: str) -> str:
    """`text` as PostgreSQL and people can take it: no NUL, no lone surrogates, not endless."""
    clean = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    return clean if len(clean) <= _LONGEST else clean[: _LONGEST - 1] + "…"


def pointer_to(*parts: str | int) -> str:
    """A JSON pointer (RFC 6901): `pointer_to("products", 0)` → `/products/0`."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
