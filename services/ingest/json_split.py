"""A JSON body cut into its members without understanding them, so that one broken item does not lose its neighbours.

Only quotes, brackets and commas are looked at, without recursion. What is cut out may be anything: it is read strictly
later, one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from services.ingest.refusal import Refusal

_TOKEN = re.compile(rb'"(?:[^"\\]+|\\.)*+(?P<end>"|\Z)|[\[{]+|[\]}]+|,', re.DOTALL)
_NAME = re.compile(rb'\s*("(?:[^"\\]+|\\.)*+")\s*:', re.DOTALL)


def members(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Names (quoted, as written) and values of an object. Raises Refusal when `raw` is no whole object."""
    pairs = []
    for part in _parts(raw, b"{"):
        name = _NAME.match(part)
        if not name:
            raise Refusal("json", "is not JSON: a member without a name")
        pairs.append((name[1], part[name.end() :].strip()))
    return pairs


def elements(raw: bytes) -> list[bytes]:
    """The elements of an array. Raises Refusal when `raw` is no whole array."""
    return list(_parts(raw, b"["))


def _parts(raw: bytes, opening: bytes) -> Iterator[bytes]:
    raw = raw.strip()
    closing = b"}" if opening == b"{" else b"]"
    if raw[:1] != opening:
        raise Refusal("json", f"is not JSON {'object' if opening == b'{' else 'array'}")
    depth, begin = 0, 1
    for token in _TOKEN.finditer(raw, 1):
        first = token[0][:1]
        if first == b'"':
            if not token["end"]:
                break
        elif first == b",":
            if depth == 0:
                yield raw[begin : token.start()].strip()
                begin = token.end()
        elif first in b"[{":
            depth += len(token[0])
        else:
            depth -= len(token[0])
            if depth < 0:
                yield from _last(raw, begin, token.end() - 1, complete=depth == -1 and raw.endswith(closing))
                return
    raise Refusal("json", "is not JSON: it ends too early")


def _last(raw: bytes, begin: int, end: int, *, complete: bool) -> Iterator[bytes]:
    if not complete or end + 1 != len(raw):
        raise Refusal("json", "is not JSON: something follows its end")
    part = raw[begin:end].strip()
    if part or begin > 1:
        yield part
