"""Finding an address again wherever an event names it, in whatever way it was typed. Pure.

`8 (903) 123-45-67` is `+79031234567`, and an address with a Cyrillic domain is the one in punycode: a value names an address if
its normal form is the address's.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from uuid import UUID

from services.profile.people import KnownNode
from shared.channels import ADDRESS_KIND
from shared.identifiers import BadIdentifier, normalise

LONGEST = 1024  # characters; nothing longer is an address
FIELD = "address"  # where events about consent have it
SAME_ENDS = 6  # digits in which a number with and without its country and area agree
GONE: Any = object()


class TypedAddresses:
    """The addresses of these nodes. `country`: the shop's (ISO 3166), for phones typed without one."""

    def __init__(self, nodes: Iterable[KnownNode], country: str) -> None:
        self._country = country
        self._kind_of: dict[UUID, str] = {}
        self._values: dict[str, set[str]] = {}
        self._folded: set[str] = set()
        for node in nodes:
            self._kind_of[node.id] = node.kind
            self._values.setdefault(node.kind, set()).add(node.value)
            self._folded.add(node.value.casefold())

    def names(self, value: Any) -> bool:
        """Whether the value is one of the addresses."""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return False
        text = str(value).strip()
        if not text or len(text) > LONGEST:
            return False
        return text.casefold() in self._folded or any(
            _may_be(kind, text, values) and _normal(kind, text, self._country) in values
            for kind, values in self._values.items()
        )

    def without(self, properties: Mapping[str, Any], named: Collection[UUID]) -> dict[str, Any]:
        """The properties without whatever is one of the addresses, however deep.

        :param named: the nodes that the event names: where the address of its channel is among ours, `address` is that one,
            even if nobody could make it out
        """
        left = {key: kept for key, value in properties.items() if (kept := self._kept(value)) is not GONE}
        kind = ADDRESS_KIND.get(str(properties.get("channel")))
        if any(self._kind_of.get(node) == kind for node in named):
            left.pop(FIELD, None)
        return left

    def _kept(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept for key, inner in value.items() if (kept := self._kept(inner)) is not GONE}
        if isinstance(value, list):
            return [kept for inner in value if (kept := self._kept(inner)) is not GONE]
        return GONE if self.names(value) else value


def _may_be(kind: str, text: str, values: Collection[str]) -> bool:
    """Quickly: most of what a person's events hold is no address, and a telephone number takes long to read."""
    if kind == "phone":
        digits = "".join(str(unicodedata.digit(char)) for char in text if char.isdigit())
        return any(value[-SAME_ENDS:] in digits for value in values)
    return kind != "email" or "@" in text


def _normal(kind: str, text: str, country: str) -> str | None:
    try:
        return normalise(kind, text, country)
    except BadIdentifier:
        return None
