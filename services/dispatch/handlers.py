"""A batch of the bus topic `messages` → one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import msgspec

from services.dispatch.store.forgetting import forget_people
from services.dispatch.store.intents import add_outcomes, apply_cancels, release_contacts, upsert_intents
from services.dispatch.store.restored import read_gap, reconcile
from shared.consumer import Applied, Batch
from shared.db import Tx
from shared.errors import Permanent
from shared.events import Cancelled, Erased, Intended, MessageRecord, Outcome, decode_message_record
from shared.wake import DISPATCH_DUE

Versioned = TypeVar("Versioned", Intended, Cancelled, Outcome)


async def handle(tx: Tx, batch: Batch) -> Applied:
    """A fixed number of statements, whatever the size. Of several records about one message the highest version counts."""
    records = [_decode(record.value) for record in batch.records]
    intents = _highest((r for r in records if isinstance(r, Intended)), lambda r: r.message)
    cancels = _highest((r for r in records if isinstance(r, Cancelled)), lambda r: r.message)
    outcomes = _highest((r for r in records if isinstance(r, Outcome)), lambda r: r.run)
    written = await upsert_intents(tx, intents, batch.now) if intents else set()
    cancelled = await apply_cancels(tx, cancels, batch.now) if cancels else set()
    if written or cancelled:
        await release_contacts(tx, sorted(written | cancelled))
    if written and (gap := await read_gap(tx)) is not None and not gap.held:
        await reconcile(tx, gap, sorted(written), batch.now)
    runs = await add_outcomes(tx, outcomes) if outcomes else set()
    if erased := _erased(r for r in records if isinstance(r, Erased)):
        await forget_people(tx, erased, batch.now)
    repeated = sum(1 for r in intents if r.message not in written) + sum(1 for r in outcomes if r.run not in runs)
    return Applied(applied=len(records) - repeated, repeated=repeated, wake={DISPATCH_DUE} if written else set())


def _decode(value: bytes) -> MessageRecord:
    try:
        return decode_message_record(value)
    except msgspec.ValidationError as problem:
        raise Permanent(f"it is no record of the bus topic messages: {problem}") from problem
    except msgspec.DecodeError as problem:
        raise Permanent(f"it is not JSON: {problem}") from problem


def _erased(records: Iterable[Erased]) -> dict[UUID, datetime]:
    """By node the last moment at which it was erased."""
    in_order = sorted(records, key=lambda record: record.at)
    return {node: record.at for record in in_order for node in record.nodes}


def _highest(records: Iterable[Versioned], of: Callable[[Versioned], UUID]) -> list[Versioned]:
    best: dict[UUID, Versioned] = {}
    for record in records:
        known = best.get(of(record))
        if known is None or record.run_version > known.run_version:
            best[of(record)] = record
    return list(best.values())
