"""How many segments an SMS takes: 160 GSM-7 or 70 UCS-2 characters in one, 153 or 67 each when there are several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

# 3GPP TS 23.038: the default alphabet in the order of its codes (0x1B, the escape, is no character) …
_ORDER = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_BASIC = {character: code for code, character in enumerate(_ORDER) if character != "\x1b"}
# … and what costs two septets by the extension table: the escape, then this code.
_EXTENSION = {
    "\f": 0x0A,
    "^": 0x14,
    "{": 0x28,
    "}": 0x29,
    "\\": 0x2F,
    "[": 0x3C,
    "~": 0x3D,
    "]": 0x3E,
    "|": 0x40,
    "€": 0x65,
}
_ESCAPE = 0x1B
_BY_CODE = {code: character for character, code in _EXTENSION.items()}
GSM_SINGLE, GSM_PART = 160, 153
UCS_SINGLE, UCS_PART = 70, 67

Alphabet = Literal["GSM-7", "UCS-2"]


class Segments(msgspec.Struct, frozen=True):
    """`length` in septets (GSM-7) or UTF-16 code units (UCS-2); `count` is what a provider charges for."""

    alphabet: Alphabet
    length: int
    count: int


def segments(text: str) -> Segments:
    """What `text` takes. A character of two units is never cut in two: it moves to the next segment whole."""
    alphabet = alphabet_of(text)
    return Segments(alphabet, sum(_width(character, alphabet) for character in text), sum(1 for _ in split(text)))


def split(text: str) -> Iterator[str]:
    """The text of each segment, in order; an empty text is one empty segment."""
    alphabet = alphabet_of(text)
    single, part = (GSM_SINGLE, GSM_PART) if alphabet == "GSM-7" else (UCS_SINGLE, UCS_PART)
    if sum(_width(character, alphabet) for character in text) <= single:
        yield text
        return
    begin, room = 0, part
    for position, character in enumerate(text):
        width = _width(character, alphabet)
        if width > room:
            yield text[begin:position]
            begin, room = position, part
        room -= width
    yield text[begin:]


def alphabet_of(text: str) -> Alphabet:
    """GSM-7 if every character is in the default alphabet or its extension table, else UCS-2 for the whole text."""
    return "GSM-7" if all(character in _BASIC or character in _EXTENSION for character in text) else "UCS-2"


def encoded(text: str, alphabet: Alphabet) -> bytes:
    """As SMPP carries it: GSM-7 a septet in an octet (SMPP packs nothing), UCS-2 as UTF-16, high byte first.

    :raises KeyError: a character is not in the alphabet
    """
    if alphabet == "UCS-2":
        return text.encode("utf-16-be")
    septets = bytearray()
    for character in text:
        if character in _EXTENSION:
            septets += bytes((_ESCAPE, _EXTENSION[character]))
        else:
            septets.append(_BASIC[character])
    return bytes(septets)


def decoded(octets: bytes) -> str:
    """GSM-7 as SMPP carries it, a septet in an octet. An escape before a code that the extension table does not have means
    the character of the default alphabet, as on a phone.

    :param octets: each below 0x80
    """
    text, escaped = [], False
    for code in octets:
        if code == _ESCAPE and not escaped:
            escaped = True
            continue
        text.append(_BY_CODE.get(code, _ORDER[code]) if escaped else _ORDER[code])
        escaped = False
    return "".join(text)


def _width(character: str, alphabet: Alphabet) -> int:
    if alphabet == "GSM-7":
        return 2 if character in _EXTENSION else 1
    return 2 if ord(character) > 0xFFFF else 1
