"""A message as it will be seen, on whatever channel."""

from __future__ import annotations

import msgspec


class Link(msgspec.Struct, frozen=True):
    """A link of the text that is followed by way of `/c/…`. `number` counts from 1 within the message."""

    number: int
    url: str


class Rendered(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message as it will be seen. `text` is there on every channel; `subject` is an e-mail's subject or a push's title.
    `urls`: the absolute links that a person finds in it, by name (`unsubscribe`, `confirm`, `open`, …)."""

    text: str
    subject: str = ""
    html: str = ""
    links: list[Link] = []
    urls: dict[str, str] = {}
