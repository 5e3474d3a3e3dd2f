"""A dead letter's JSON, mended by a patch: a list of operations (RFC 6902), or an object that is merged in (RFC 7396). Pure."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import msgspec

from services.ingest.refusal import printable
from shared.errors import Problem, field_error

_NAMES = frozenset({"add", "remove", "replace", "move", "copy", "test"})
_WITH_VALUE = frozenset({"add", "replace", "test"})
_WITH_FROM = frozenset({"move", "copy"})


class Unfit(Exception):
    """An operation does not fit the document."""


def mended(raw: bytes, patch: list[Any] | dict[str, Any]) -> bytes:
    """The letter's bytes after the patch. Raises Problem 422 that says which operation does not fit, and why."""
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        detail = (
            f"The letter is not JSON ({printable(str(problem))}): send the whole of it as `body` instead of a patch."
        )
        raise Problem(422, "The letter cannot be patched", detail) from None
    if isinstance(patch, dict):
        return encoded(merged(document, patch), "patch")
    for index, operation in enumerate(patch):
        try:
            document = applied(document, operation)
        except Unfit as problem:
            at = [field_error(["patch", index], printable(str(problem)))]
            raise Problem(422, "The patch does not fit", f"Operation {index}: {printable(str(problem))}.", at) from None
    return encoded(document, "patch")


def encoded(document: Any, member: str) -> bytes:
    """JSON of what a person sent as this member. Raises Problem 422 for what JSON in UTF-8 cannot say."""
    try:
        return msgspec.json.encode(document)
    except (UnicodeEncodeError, OverflowError, RecursionError) as problem:
        at = [field_error([member], f"cannot be written as JSON: {printable(str(problem))}")]
        raise Problem(422, "The request is not valid", errors=at) from None


def merged(document: Any, patch: Any) -> Any:
    """RFC 7396: members of `patch` replace those of `document`, objects are merged, null takes a member away."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def applied(document: Any, operation: Any) -> Any:
    """RFC 6902: the document after one operation; `document` itself may be changed. Raises Unfit."""
    name, path = _checked(operation)
    if name in _WITH_FROM:
        source = _path(operation["from"], "from")
        if name == "move" and path[: len(source)] == source and len(path) > len(source):
            raise Unfit("cannot be moved into itself")
        value = copy.deepcopy(_read(document, source))
        document = _removed(document, source) if name == "move" else document
        return _added(document, path, value)
    if name == "remove":
        return _removed(document, path)
    value = operation["value"]
    if name == "add":
        return _added(document, path, value)
    present = _read(document, path)
    if name == "test":
        if present != value or isinstance(present, bool) is not isinstance(value, bool):
            raise Unfit(f"{operation['path']!r} has another value")
        return document
    return _replaced(document, path, value)


def _checked(operation: Any) -> tuple[str, list[str]]:
    if not isinstance(operation, dict) or (name := operation.get("op")) not in _NAMES:
        raise Unfit(f'needs "op", one of {", ".join(sorted(_NAMES))}')
    for member in ["path", *(["value"] if name in _WITH_VALUE else []), *(["from"] if name in _WITH_FROM else [])]:
        if member not in operation:
            raise Unfit(f'{name} needs "{member}"')
    return name, _path(operation["path"], "path")


def _path(pointer: Any, member: str) -> list[str]:
    """The parts of a JSON pointer (RFC 6901)."""
    if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
        raise Unfit(f'"{member}" must be a JSON pointer such as /properties/total')
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def _read(document: Any, path: Sequence[str]) -> Any:
    for depth, part in enumerate(path):
        where = "/" + "/".join(path[: depth + 1])
        if isinstance(document, dict) and part in document:
            document = document[part]
        elif isinstance(document, list):
            document = document[_index(part, len(document) - 1, where)]
        else:
            raise Unfit(f"there is nothing at {where!r}")
    return document


def _index(part: str, last: int, where: str) -> int:
    if not (part.isascii() and part.isdigit() and len(part) < 8 and str(int(part)) == part and int(part) <= last):
        raise Unfit(f"there is nothing at {where!r}")
    return int(part)


def _added(document: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    holder, where = _read(document, path[:-1]), "/" + "/".join(path)
    if isinstance(holder, dict):
        holder[path[-1]] = value
    elif isinstance(holder, list):
        holder.insert(len(holder) if path[-1] == "-" else _index(path[-1], len(holder), where), value)
    else:
        raise Unfit(f"nothing can be put at {where!r}")
    return document


def _removed(document: Any, path: Sequence[str]) -> Any:
    _read(document, path)
    if not path:
        return None
    holder = _read(document, path[:-1])
    del holder[path[-1] if isinstance(holder, dict) else int(path[-1])]
    return document


def _replaced(document: Any, path: Sequence[str], value: Any) -> Any:
    """The thing at `path` is there: it was read."""
    if not path:
        return value
    holder = _read(document, path[:-1])
    holder[path[-1] if isinstance(holder, dict) else int(path[-1])] = value
    return document
