"""Copies of shipped rules with single lines changed, as a marketer would edit the file."""

from __future__ import annotations

import re

from services.rules_files import SHIPPED


def edited(rule: str, /, **lines: str | list[str]) -> str:
    """The text of a shipped rule (`abandoned-cart`, `examples/cart-in-20-seconds`) with other values for these keys, at
    whatever depth they stand; a list for a key that stands there several times. A key that the file has not exactly so
    often is a mistake in the test."""
    text = (SHIPPED / f"{rule}.yml").read_text()
    for key, given in lines.items():
        values = given if isinstance(given, list) else [given]
        found = re.findall(rf"(?m)^[ \-]*{key}:", text)
        assert len(found) == len(values), f"{rule}.yml has {len(found)} lines {key!r}"
        left = iter(values)
        text = re.sub(rf"(?m)^([ \-]*{key}:)[^#\n]*", lambda line, left=left: f"{line[1]} {next(left)} ", text)
    return text
