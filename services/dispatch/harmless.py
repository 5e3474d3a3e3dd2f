"""Texts from outside, made so that no mail program makes a link of anything in them.

Mail programs link more than `https://`: `www.`, `name@host`, and a bare `evil.com/login`, by lists of endings that grow
every year. So every dot that an ending might follow is parted from it by a space, which no link survives ("ASP. NET");
characters without width would not do: host names are read without them. What is taken out leaves a space, lest what
stood around it make a new link. Endings that are none (`Node.js`) and the shop's own hosts stay.
"""

from __future__ import annotations

import re
from collections.abc import Set

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]+")
# Host names are read as if these were not there, and the other dots as if they were full stops (UTS 46).
_UNSEEN = re.compile(r"[\u00ad\u034f\u180b-\u180f\u2060-\u2065\u206a-\u206f\ufe00-\ufe0f]+")
_DOTS = ".\u2024\u3002\ufe52\uff0e\uff61"
_SCHEME = re.compile(r"(?:\w[\w+.-]*:)?[/\\]{2,}|https?:|www[" + _DOTS + "]", re.IGNORECASE)
_SPOKEN_SCHEME = re.compile(r"(mailto|tel|sms|sip|xmpp|skype|tg|javascript|data|magnet):(?=\S)", re.IGNORECASE)
_HOST = re.compile(rf"[\w-]+(?:[{_DOTS}]+[\w-]+)*")
_ENDING = re.compile(rf"(?<=\S)([{_DOTS}]+)(?=([^\W\d_][\w-]+))")
_NUMBERS = re.compile(r"\b(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(?=\d{1,3}\b)")
_SPACES = re.compile(r" {2,}")
# Two letters are countries' endings; these are no country's. The longer ones are of files, and nobody's ending.
_NO_ENDINGS = frozenset(
    "js ts css html htm xml json pdf doc docx xls xlsx txt csv jpg jpeg png gif mp3 mp4 flac".split()
)
_BEFORE_HOST = " (\"'«„“/@"


def harmless(value: str, hosts: Set[str], most: int) -> str:
    """One line of at most `most` characters.

    :param hosts: the shop's, in lower case: they may be linked
    """
    text = _line(value[: 4 * most], hosts)
    while len(text) > most:
        # What is cut may end in another host than it did: looked at again, which may make it longer.
        text = _line(text.removesuffix("…")[: most - 1], hosts) + "…"
    return text


def _line(value: str, hosts: Set[str]) -> str:
    text = _CONTROL.sub(" ", _UNSEEN.sub("", value))
    text = _SPOKEN_SCHEME.sub(r"\1: ", _SCHEME.sub(" ", text))
    kept, at = [], 0
    for match in _HOST.finditer(text):
        before = text[match.start() - 1] if match.start() else " "
        if match.group(0).lower() in hosts and before in _BEFORE_HOST:
            kept.append(_parted(text[at : match.start()]) + match.group(0))
            at = match.end()
    return _SPACES.sub(" ", "".join(kept) + _parted(text[at:])).strip()


def _parted(text: str) -> str:
    apart = _ENDING.sub(lambda dot: dot[1] if dot[2].lower() in _NO_ENDINGS else f"{dot[1]} ", text)
    return _NUMBERS.sub(r"\1. \2. \3. ", apart)
