"""Identifiers: which are derived, which are new.

Derived ids are UUIDv5, so that whoever repeats an act makes the same id; new things get a UUIDv7, which sorts by time.
Node ids are derived in the deployment's secret random namespace, so that an id tells an outsider nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from uuid import UUID, uuid5

SEPARATOR = "\x1f"
# The name space of everything that is derived from ids which are themselves unguessable (runs, messages, events).
DRIPLINE = UUID("6d1f2f0c-1f6e-5a43-9d0f-6f0f7f3f2a11")

RandomBits = Callable[[int], int]


def node_id(namespace: UUID, kind: str, value: str) -> UUID:
    """The id of the node (kind, normalised value); `namespace` is the deployment's own."""
    return uuid5(namespace, f"{kind}{SEPARATOR}{value}")


def event_id(source: UUID, message_id: str) -> UUID:
    """The id of an event: a repeat by the same source has the same one."""
    return uuid5(source, message_id)


def derived_id(*parts: object) -> UUID:
    """An id derived from its parts, e.g. `derived_id("run", rule, node, entry_key)`."""
    return uuid5(DRIPLINE, SEPARATOR.join(str(part) for part in parts))


def run_id(rule: UUID, origin: UUID, entry_key: str) -> UUID:
    """The id of a run: rule, origin node, entry key."""
    return derived_id("run", rule, origin, entry_key)


def message_id(run: UUID, step: str) -> UUID:
    """The id of a message: run and step id."""
    return derived_id("message", run, step)


def uuid7(now: datetime, bits: RandomBits = secrets.randbits) -> UUID:
    """A new UUIDv7 (RFC 9562) of the moment `now`; `bits(n)` gives n random bits."""
    milliseconds = int(now.timestamp() * 1000)
    value = (milliseconds & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76
    value |= bits(12) << 64
    value |= 0b10 << 62
    value |= bits(62)
    return UUID(int=value)


def lock_key(purpose: str, subject: UUID | str) -> int:
    """A signed 64-bit key for PostgreSQL's advisory locks: the same subject locked for another purpose is another lock."""
    digest = uuid5(DRIPLINE, f"lock{SEPARATOR}{purpose}{SEPARATOR}{subject}").int >> 64
    return digest - (1 << 63)
