"""A batch of `events` or `history` → one transaction.

In this order, the same for everybody, so that no two batches wait for each other in a circle: position (the consumer's) →
marks → `event_seen` → erasure journal → nodes → people (all components concerned) → orders → effects. The position, and
what this returns, are the consumer's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from services.profile.applying import Applying, Concerned
from services.profile.intake import Incoming, identifiers_of, read
from services.profile.purging import parts_between_purges, purge
from services.profile.store import locking
from shared.clock import MICROSECOND
from shared.consumer import Applied, Batch
from shared.db import Tx
from shared.erasure import erased
from shared.events import EVENTS
from shared.marks import hold_mark, marks_for


class Handler:
    """The handler of the consumer `profile`. `secret` keys the erasure journal; `currency` (ISO 4217) and `country` (ISO
    3166): the deployment's."""

    def __init__(self, *, secret: bytes, currency: str, country: str) -> None:
        self._secret, self._currency, self._country = secret, currency, country
        self.grown = 0  # how often a batch had to lock more people than it had read

    async def __call__(self, tx: Tx, batch: Batch) -> Applied:
        """Raises Permanent for a record that can never be stored; the consumer then finds out which."""
        incoming = [read(record, batch.now, self._currency) for record in batch.records]
        await self._set_base(tx, batch, incoming)
        applied = Applied()
        new = await self._new(tx, incoming, applied)
        live = await self._not_erased(tx, new, applied)
        applied.applied = len(live)
        for part in parts_between_purges(live):
            await self._apply(tx, batch, part, applied)
        return applied

    async def _set_base(self, tx: Tx, batch: Batch, incoming: Sequence[Incoming]) -> None:
        """The earliest moment at which each event may count as learned: after the marks that were made before it came."""
        if batch.topic == EVENTS:
            marks = await marks_for(tx, batch.epoch, batch.spans())
            for record, one in zip(batch.records, incoming, strict=True):
                if (mark := marks.of(record.partition, record.number)) is not None and mark >= one.base:
                    one.base = mark + MICROSECOND
            return
        least = max(batch.now, await hold_mark(tx) + MICROSECOND)
        for one in incoming:
            one.base = least

    async def _new(self, tx: Tx, incoming: Sequence[Incoming], applied: Applied) -> list[Incoming]:
        """The events that were not seen before; the others are counted as repeats, or as conflicts if their body differs."""
        first: dict[UUID, Incoming] = {}
        again: list[Incoming] = []
        for one in incoming:
            if one.event.id in first:
                again.append(one)
            else:
                first[one.event.id] = one
        seen = await locking.see(
            tx, [(event, first[event].digest, first[event].event.received_at) for event in sorted(first)]
        )
        for one in again:
            self._count(applied, seen.get(one.event.id) or first[one.event.id].digest, one)
        for event, known in seen.items():
            self._count(applied, known, first[event])
        return [one for event, one in first.items() if event not in seen]

    @staticmethod
    def _count(applied: Applied, known: bytes, one: Incoming) -> None:
        if known == one.digest:
            applied.repeated += 1
        else:
            applied.conflicting += 1

    async def _not_erased(self, tx: Tx, incoming: list[Incoming], applied: Applied) -> list[Incoming]:
        """Drops what occurred before somebody it names was erased, and our own events about somebody who is gone."""
        gone = await erased(tx, self._secret, {node for one in incoming for node in one.nodes})
        if not gone:
            return incoming
        kept = []
        for one in incoming:
            nameless = not one.event.ids and one.origin in gone
            if nameless or any(node in gone and one.event.occurred_at <= gone[node] for node in one.nodes):
                applied.erased += 1
            else:
                kept.append(one)
        return kept

    async def _apply(self, tx: Tx, batch: Batch, part: list[Incoming], applied: Applied) -> None:
        concerned = Concerned(identifiers_of(part), part)
        applying = Applying(tx, concerned)
        self.grown += await applying.lock()
        applied.publish += await applying.write(live=batch.topic == EVENTS)
        if concerned.purged:
            base = max(one.base for one in part) + MICROSECOND
            applied.publish += await purge(tx, self._secret, self._country, concerned.purged, base)
