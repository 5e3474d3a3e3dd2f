"""JSON that strangers wrote: read as msgspec reads it, and refused with a pointer where PostgreSQL or a reader would choke.

Refused are: what is not JSON or not UTF-8, NaN and infinities, lone surrogates, NUL, integers beyond 64 bits, numbers
beyond 10^15, names given twice, nesting deeper than 32. Ordinary input costs one fast decode, a scan and a walk over its
containers; only what looks suspicious is read a second time, slowly, to say where the fault lies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from services.ingest.refusal import Refusal, pointer_to

MAX_DEPTH = 32
MAX_NUMBER = 1e15
_INT64 = 2**63

_decode = msgspec.json.Decoder().decode
_SUSPICIOUS = -1_000_000_000


def read(raw: bytes) -> Any:
    """The value that `raw` means. Raises Refusal of kind `json`, pointing at the field at fault."""
    try:
        value = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        _find_flaw(raw)
        raise Refusal("json", f"is not JSON: {problem}") from problem
    if b"\\u0000" in raw or _names(value, 1) != names_written(raw):
        _find_flaw(raw)
    return value


def names_written(raw: bytes) -> int:
    """How many names of members compact JSON holds: a quote before a colon ends a name, unless it is escaped.

    What is written otherwise (blanks before the colon) gives another number, and the slow reading decides.
    """
    return raw.count(b'":') - raw.count(b'\\":')


def _names(value: Any, depth: int) -> int:
    """Names of members in all objects; far below zero where nesting is too deep or a number too large."""
    if type(value) is dict:
        count = len(value)
        inner: Iterable[Any] = value.values()
    elif type(value) is list:
        count, inner = 0, value
    else:
        return 0
    if depth > MAX_DEPTH:
        return _SUSPICIOUS
    for member in inner:
        kind = type(member)
        if kind is str:
            continue
        if kind is dict or kind is list:
            count += _names(member, depth + 1)
        elif (kind is float and not -MAX_NUMBER <= member <= MAX_NUMBER) or (
            kind is int and not -_INT64 <= member < _INT64
        ):
            return _SUSPICIOUS
    return count


class _Flaw:
    """Stands in the slowly read value where something cannot be taken."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _integer(digits: str) -> int | _Flaw:
    if len(digits) > 20 or not -_INT64 <= int(digits) < _INT64:
        return _Flaw(f"is an integer of {len(digits.lstrip('-'))} digits; at most 64 bits are kept, send it as text")
    return int(digits)


def _number(text: str) -> float | _Flaw:
    value = float(text)
    return value if abs(value) <= MAX_NUMBER else _Flaw("is a number beyond 10^15")


def _constant(name: str) -> _Flaw:
    return _Flaw(f"is {name}, which is not JSON: leave it out or send null")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                members[name] = _Flaw("is given twice")
            seen.add(name)
    return members


def _find_flaw(raw: bytes) -> None:
    """Raises Refusal for the first flaw; returns if there is none."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as problem:
        raise Refusal("json", f"is not UTF-8: byte {problem.start} ({raw[problem.start]:#04x})") from None
    try:
        value = json.loads(
            text, parse_int=_integer, parse_float=_number, parse_constant=_constant, object_pairs_hook=_object
        )
    except RecursionError:
        raise Refusal("json", f"is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as problem:
        where = f" at character {problem.pos}" if isinstance(problem, json.JSONDecodeError) else ""
        raise Refusal("json", f"is not JSON: {getattr(problem, 'msg', problem)}{where}") from None
    _inspect(value, ())


def _inspect(value: Any, path: tuple[str | int, ...]) -> None:
    if isinstance(value, _Flaw):
        raise Refusal("json", value.reason, pointer_to(*path))
    if isinstance(value, str):
        _inspect_text(value, path, "contains")
    elif isinstance(value, dict | list):
        if len(path) >= MAX_DEPTH:
            raise Refusal("json", f"is nested deeper than {MAX_DEPTH} levels", pointer_to(*path[:3]))
        members = value.items() if isinstance(value, dict) else enumerate(value)
        for name, member in members:
            if isinstance(name, str):
                _inspect_text(name, (*path, name), "has a name that contains")
            _inspect(member, (*path, name))


def _inspect_text(text: str, path: tuple[str | int, ...], verb: str) -> None:
    if "\x00" in text:
        raise Refusal("json", f"{verb} the character NUL (\\u0000)", pointer_to(*path))
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise Refusal("json", f"{verb} half a character (a lone surrogate)", pointer_to(*path))
