"""A request's body → its items and their envelope, before anybody knows whose it is."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import msgspec

from services.ingest import json_split, strict_json
from services.ingest.refusal import Refusal

MAX_EVENTS = 2_500
WRITE_KEY = re.compile(r"c[a-z0-9]{24}")  # Jitsu's client accepts no other form
TYPES = ("identify", "track", "page", "screen", "group", "alias")

_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_raw_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_MARK = b"\xef\xbb\xbf"  # byte order mark


class Item(msgspec.Struct):
    """One event as sent. `type` is None where the item itself must say it; `value` is there if it is read already; `id`
    is the event's where nothing in it makes one (a replayed letter's: however often it is taken, it is one event)."""

    raw: bytes
    type: str | None = None
    value: dict[str, Any] | None = None
    id: UUID | None = None


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a batch says for all of its items: merged into each, the item's own values win."""

    context: dict[str, Any] = {}
    integrations: dict[str, Any] = {}
    sent_at: str | None = None


class Reading(msgspec.Struct):
    """A body as read: `write_key` if it carries one."""

    items: list[Item]
    envelope: Envelope
    write_key: str | None = None
    batch: bool = False


def read_body(raw: bytes, call: str) -> Reading:
    """`call`: one of TYPES, or `batch`. Raises Refusal when the body as a whole cannot be read."""
    raw = raw.removeprefix(_MARK)
    return _read_batch(raw) if call == "batch" else _read_single(raw, call)


def _read_single(raw: bytes, call: str) -> Reading:
    value = strict_json.read(raw)
    if type(value) is not dict:
        raise Refusal("json", "the body must be a JSON object")
    return Reading([Item(raw, call, value)], Envelope(), _write_key(value.get("writeKey")))


def _read_batch(raw: bytes) -> Reading:
    members = _members(raw)
    if "batch" not in members:
        raise Refusal("field", 'a batch needs "batch", the list of its events', "/batch")
    parts = _elements(members["batch"])
    if len(parts) > MAX_EVENTS:
        raise Refusal("count", f"the batch has {len(parts)} events, at most {MAX_EVENTS} are taken", "/batch")
    rest = {name: _member(members, name) for name in ("context", "integrations", "sentAt", "writeKey")}
    for name in ("context", "integrations"):
        if rest[name] is not None and type(rest[name]) is not dict:
            # Segment's libraries may send `"integrations": true`; only an object says anything.
            if name == "context":
                raise Refusal("field", "context must be an object", "/context")
            rest[name] = None
    if rest["sentAt"] is not None and type(rest["sentAt"]) is not str:
        raise Refusal("time", "sentAt must be an ISO 8601 time", "/sentAt")
    envelope = Envelope(rest["context"] or {}, rest["integrations"] or {}, rest["sentAt"])
    return Reading([Item(part) for part in parts], envelope, _write_key(rest["writeKey"]), batch=True)


def _members(raw: bytes) -> dict[str, bytes]:
    """The members of the batch, unread. Cut apart by hand if the whole is not JSON or says a name twice."""
    try:
        quick = {name: bytes(value) for name, value in _raw_members(raw).items()}
        if strict_json.names_written(raw) == len(quick) + sum(map(strict_json.names_written, quick.values())):
            return quick
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # one item may be at fault
    found: dict[str, bytes] = {}
    for quoted, value in json_split.members(raw):
        name = strict_json.read(quoted)
        if name in found:
            raise Refusal("json", "is given twice", f"/{name}")
        found[name] = value
    return found


def _elements(raw: bytes) -> list[bytes]:
    try:
        return [bytes(element) for element in _raw_elements(raw)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        if raw[:1] != b"[":
            raise Refusal("field", "batch must be a list of events", "/batch") from None
        return json_split.elements(raw)


def _member(members: dict[str, bytes], name: str) -> Any:
    if name not in members:
        return None
    try:
        return strict_json.read(members[name])
    except Refusal as refusal:
        raise Refusal(refusal.kind, refusal.reason, f"/{name}{refusal.pointer}") from None


def _write_key(value: Any) -> str | None:
    """Jitsu's client puts `***` into the body and the key into a header: what has not the form of a key is none."""
    return value if type(value) is str and WRITE_KEY.fullmatch(value) else None
