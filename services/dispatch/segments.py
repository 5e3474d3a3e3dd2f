"""How many segments an SMS takes: 160 GSM-7 or 70 UCS-2 characters in one, 153 or 67 each when there are several."""

from __future__ import annotations

from typing import Literal

import msgspec

# 3GPP TS 23.038: the default alphabet, and what costs two septets by the extension table.
_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENSION = frozenset("\f^{}\\[~]|€")
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
    if all(character in _BASIC or character in _EXTENSION for character in text):
        return _count("GSM-7", [2 if character in _EXTENSION else 1 for character in text], GSM_SINGLE, GSM_PART)
    return _count("UCS-2", [2 if ord(character) > 0xFFFF else 1 for character in text], UCS_SINGLE, UCS_PART)


def _count(alphabet: Alphabet, widths: list[int], single: int, part: int) -> Segments:
    length = sum(widths)
    if length <= single:
        return Segments(alphabet, length, 1)
    count, room = 1, part
    for width in widths:
        if width > room:
            count, room = count + 1, part
        room -= width
    return Segments(alphabet, length, count)
