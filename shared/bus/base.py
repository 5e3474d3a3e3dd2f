"""The bus: a log with numbered records in a fixed number of partitions.

The contract, held for every implementation by `tests/contracts/test_bus.py`: bytes, keys and headers survive; records of
one key keep their order; numbers rise within a partition but may have gaps; every group sees everything; a record whose
append was answered is never lost, and a reader never passes a record that commits later than its neighbours.
Who reads which partition is not the bus's business (see `shared.bus.leases`), nor are positions (`shared.consumer`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from shared.errors import DriplineError


class Outgoing(msgspec.Struct, frozen=True):
    """A record to be appended. `key` decides the partition."""

    topic: str
    key: bytes
    value: bytes
    headers: dict[str, bytes] = {}


class Record(msgspec.Struct, frozen=True):
    """A record as read. `number` is its offset."""

    topic: str
    partition: int
    number: int
    key: bytes
    value: bytes
    headers: dict[str, bytes]


class OutOfRange(DriplineError):
    """The position lies before the first or behind the last record that is kept. Never reset silently."""


class RecordTooLarge(DriplineError):
    """A single record is over the bus's limit."""


class Bus(Protocol):
    """One bus. All methods raise transient errors of their client (see `shared.errors.is_transient`) when it is unreachable."""

    def epoch(self, topic: str) -> str:
        """The identity of cluster and topic: another cluster or a recreated topic has another one."""
        ...

    def partitions(self, topic: str) -> int: ...

    async def append(self, records: Sequence[Outgoing]) -> None:
        """Appends all; returns when all are durable. Order is kept per partition within one call.

        After an error the outcome of any of them is unknown. Callers that wait together are written together.
        """
        ...

    async def publish(self, records: Sequence[Outgoing]) -> None:
        """Like `append`, for the outbox relay: after a failure the producer is closed and a new one begins, so that
        nothing of the failed call can arrive later than the next call."""
        ...

    async def fetch(
        self, topic: str, positions: Mapping[int, int], *, limit: int, wait: float
    ) -> dict[int, list[Record]]:
        """At most `limit` records of every partition from its position on; returns as soon as there is any, or
        empty after `wait` seconds. Raises OutOfRange naming the partition."""
        ...

    async def ends(self, topic: str) -> dict[int, int]:
        """Per partition the number that the next record will have, or one not above it."""
        ...

    async def beginnings(self, topic: str) -> dict[int, int]:
        """Per partition the first number that is kept (or the end, when it is empty)."""
        ...

    async def commit(self, group: str, topic: str, positions: Mapping[int, int]) -> None:
        """Tells the bus's own tools how far a group is. For people's eyes only; failures are logged, not raised."""
        ...

    async def maintain(self, handled: Mapping[str, Mapping[int, int]]) -> None:
        """What the bus needs once an hour: room for new records, and old ones dropped.

        :param handled: bus topic → partition → number of the first record that its reader has not handled
        """
        ...

    async def close(self) -> None: ...


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key: the same on every bus, so that moving from one to the other keeps people together."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % partitions
