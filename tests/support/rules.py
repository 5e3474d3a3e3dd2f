"""Copies of shipped rules with single lines changed, as a marketer would edit the file."""

from __future__ import annotations

import re

from services.rules_files import SHIPPED


def edited(rule: str, /, **lines: str) -> str:
    """The text of a shipped rule (`abandoned-cart`, `examples/cart-in-20-seconds`) with other values for these keys,
    at whatever depth they stand. A key that the file does not have exactly once is a mistake in the test."""
    text = (SHIPPED / f"{rule}.yml").read_text()
    for key, value in lines.items():
        text, count = re.subn(rf"(?m)^([ \-]*{key}:)[^#\n]*", lambda line, value=value: f"{line[1]} {value} ", text)
        assert count == 1, f"{rule}.yml has {count} lines {key!r}"
    return text
