"""One batch in one transaction: positions by compare-and-set, effects, counts, outbox; and the record that is at fault.

A batch holds records of one bus topic, of as many partitions as had few: what a transaction costs by itself is paid once.
Its outbox row and its counts belong to its first partition; sums are what the books compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import structlog

from shared.bus.base import Outgoing, Record
from shared.db import Tx
from shared.errors import Permanent, is_timeout, is_transient
from shared.ids import uuid7
from shared.metrics import DEAD_LETTERS
from shared.outbox import HEADER, UNDONE, pack, partition_shard, read_header
from shared.service import Context

log = structlog.get_logger(__name__)

PATIENCE = 3  # how often a timeout must return for one record alone before it is that record's fault
# As many records that time out, and fewer that pass: something is locked or slow, and no record is at fault.
SUSPECTS = 3


@dataclass
class Batch:
    """Records of one bus topic, in order within each partition; what the outbox header proved to be a repeat is gone.

    `now`: business time taken before BEGIN. `epoch`: the bus epoch of the topic.
    """

    group: str
    topic: str
    epoch: str
    now: datetime
    records: Sequence[Record]

    def spans(self) -> dict[int, tuple[int, int]]:
        """The first and the last number of each partition."""
        spans: dict[int, tuple[int, int]] = {}
        for record in self.records:
            spans[record.partition] = (spans.get(record.partition, (record.number,))[0], record.number)
        return spans


@dataclass
class Applied:
    """What a handler did with a batch: counts that add up to the records it was given (a record handled without error
    and not counted elsewhere is applied), what to publish in order, and which loops to wake after the commit."""

    applied: int = 0
    repeated: int = 0
    conflicting: int = 0
    erased: int = 0
    dead: int = 0
    publish: list[Outgoing] = field(default_factory=list)
    wake: set[str] = field(default_factory=set)

    def add(self, other: Applied) -> None:
        """Takes in what another part of the same batch did."""
        for name in ("applied", "repeated", "conflicting", "erased", "dead"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.publish += other.publish
        self.wake |= other.wake


class Handler(Protocol):
    """Raises for a record that is at fault: the batch is run again record by record under savepoints and that record
    alone is dead-lettered (so a handler must be able to run on any sub-batch). Transient errors are retried."""

    async def __call__(self, tx: Tx, batch: Batch) -> Applied: ...


class Fenced(Exception):
    """The position was not where the batch was fetched from: somebody else was faster."""


@dataclass
class Position:
    """A partition as this member knows it. `seen`: shard → [number, index] of the highest record read."""

    next: int
    seen: dict[str, list[int]]
    timeouts: dict[int, int] = field(default_factory=dict)
    failures: int = 0


class Fetched:
    """What was fetched of some partitions, with the positions that it was fetched from. `lead`: the first partition."""

    def __init__(
        self, found: Mapping[int, Sequence[Record]], positions: Mapping[int, Position], by_header: bool
    ) -> None:
        self.partitions = sorted(found)
        self.lead = self.partitions[0]
        self.positions = [positions[partition] for partition in self.partitions]
        self.following = [found[partition][-1].number + 1 for partition in self.partitions]
        self.read = [len(found[partition]) for partition in self.partitions]
        self.fresh: list[Record] = []
        self.seen: list[dict[str, list[int]]] = []
        for partition, position in zip(self.partitions, self.positions, strict=True):
            fresh, seen = _unseen(position.seen, found[partition]) if by_header else (found[partition], position.seen)
            self.fresh += fresh
            self.seen.append(seen)

    @property
    def one_by_one(self) -> bool:
        """Whether it failed so often that each record is tried for itself."""
        return any(position.failures >= PATIENCE for position in self.positions)

    @property
    def dropped(self) -> int:
        """How many records the outbox header proved to be repeats."""
        return sum(self.read) - len(self.fresh)

    def committed(self) -> None:
        """Moves the positions as this member knows them."""
        for position, following, seen in zip(self.positions, self.following, self.seen, strict=True):
            position.next, position.seen, position.failures = following, seen, 0


def _unseen(seen: dict[str, list[int]], records: Sequence[Record]) -> tuple[list[Record], dict[str, list[int]]]:
    """Drops what the outbox header proves to be a repeat, or to tell of what a restore undid; returns the rest and the
    new highest per shard."""
    seen, fresh = dict(seen), []
    for record in records:
        header = record.headers.get(HEADER)
        if header is not None:
            shard, number, index = read_header(header)
            if [number, index] <= seen.get(shard, [-1, -1]):
                continue
            if number > seen.get(UNDONE + shard, (number,))[0]:
                continue
            seen[shard] = [number, index]
        fresh.append(record)
    return fresh, seen


class Batches:
    """Handles what was fetched, for one group of one service (`schema`)."""

    def __init__(self, context: Context, *, group: str, schema: str, handler: Handler) -> None:
        self._context, self._group, self._schema, self._handler = context, group, schema, handler

    def shard(self, topic: str, partition: int) -> str:
        """The outbox shard of a partition that is read."""
        return partition_shard(topic, partition, self._context.bus.epoch(topic), self._context.generation)

    async def handle(self, topic: str, fetched: Fetched) -> tuple[Applied, int]:
        """Everything in one transaction; if that fails for another reason than the surroundings, once more record by
        record. Returns what was done and the number of the outbox row.

        :raises Fenced: a position is not where it was fetched from
        """
        epoch = self._context.bus.epoch(topic)
        batch = Batch(self._group, topic, epoch, self._context.clock.now(), fetched.fresh)
        one_by_one = fetched.one_by_one
        try:
            return await self._commit(batch, fetched, one_by_one)
        except Fenced:
            raise
        except Exception as problem:
            if one_by_one or (is_transient(problem) and not isinstance(problem, Permanent)):
                raise
        return await self._commit(batch, fetched, True)

    async def _commit(self, batch: Batch, fetched: Fetched, one_by_one: bool) -> tuple[Applied, int]:
        async with self._context.database.transaction() as tx:
            number = await self._move(tx, batch, fetched)
            if not batch.records:
                applied = Applied()
            elif one_by_one:
                applied = await self._isolate(tx, batch, fetched)
            else:
                applied = await self._handler(tx, batch)
            applied.applied = len(batch.records) - (
                applied.repeated + applied.conflicting + applied.erased + applied.dead
            )
            await self._finish(tx, batch, fetched, applied, number)
            await self._context.hooks.reach("consumer.in_transaction")
        return applied, number

    async def _move(self, tx: Tx, batch: Batch, fetched: Fetched) -> int:
        """The compare-and-set, locked in the order of the partitions. Returns the number for the outbox row."""
        rows = await tx.fetch(
            f"""
            WITH locked AS MATERIALIZED (
                SELECT partition, next FROM {self._schema}.position
                WHERE group_name = $1 AND epoch = $2 AND topic = $3 AND partition = ANY($4::int[])
                ORDER BY partition FOR UPDATE
            )
            UPDATE {self._schema}.position p SET next = moved.following,
                outbox_number = p.outbox_number + (p.partition = $7)::int
            FROM locked JOIN unnest($4::int[], $5::bigint[], $6::bigint[]) AS moved(partition, next, following)
                ON moved.partition = locked.partition AND moved.next = locked.next
            WHERE p.group_name = $1 AND p.epoch = $2 AND p.topic = $3 AND p.partition = moved.partition
            RETURNING p.partition, p.outbox_number
            """,
            batch.group,
            batch.epoch,
            batch.topic,
            fetched.partitions,
            [position.next for position in fetched.positions],
            fetched.following,
            fetched.lead,
        )
        if len(rows) != len(fetched.partitions):
            raise Fenced
        return next(row["outbox_number"] for row in rows if row["partition"] == fetched.lead)

    async def _finish(self, tx: Tx, batch: Batch, fetched: Fetched, applied: Applied, number: int) -> None:
        await tx.execute(
            f"""
            WITH counted AS (
                UPDATE {self._schema}.position p SET seen = t.seen, read = p.read + t.read,
                    applied = p.applied + $8::bigint * t.lead, repeated = p.repeated + $9::bigint * t.lead,
                    conflicting = p.conflicting + $10::bigint * t.lead, erased = p.erased + $11::bigint * t.lead,
                    dead = p.dead + $12::bigint * t.lead
                FROM (
                    SELECT partition, seen, read, (partition = $7)::int AS lead
                    FROM unnest($4::int[], $5::jsonb[], $6::bigint[]) AS u(partition, seen, read)
                ) t
                WHERE p.group_name = $1 AND p.epoch = $2 AND p.topic = $3 AND p.partition = t.partition
            )
            INSERT INTO {self._schema}.outbox (shard, number, records)
            SELECT $13, $14, $15::bytea WHERE $15::bytea IS NOT NULL
            """,
            batch.group,
            batch.epoch,
            batch.topic,
            fetched.partitions,
            fetched.seen,
            fetched.read,
            fetched.lead,
            applied.applied,
            applied.repeated + fetched.dropped,
            applied.conflicting,
            applied.erased,
            applied.dead,
            self.shard(batch.topic, fetched.lead),
            number,
            pack(applied.publish) if applied.publish else None,
        )

    # ── a record that is at fault ──────────────────────────────────────────────────────────────────────────────────
    async def _isolate(self, tx: Tx, batch: Batch, fetched: Fetched) -> Applied:
        """The batch again, record by record under savepoints; what fails is dead-lettered with its original bytes.

        A timeout is the fault of its record only if it returns while others pass: what is alone is tried again and again.
        """
        positions = dict(zip(fetched.partitions, fetched.positions, strict=True))
        total, passed = Applied(), 0
        suspects: list[tuple[Batch, Record, Exception]] = []
        for record in batch.records:
            alone = Batch(batch.group, batch.topic, batch.epoch, batch.now, [record])
            try:
                async with tx.transaction():
                    total.add(await self._handler(tx, alone))
                passed += 1
            except Exception as problem:
                if not is_transient(problem, tx):
                    await self._bury(tx, alone, record, problem)
                    total.dead += 1
                    continue
                suspects.append((alone, record, problem))
                if tx.is_closed() or not is_timeout(problem) or passed < len(suspects) >= SUSPECTS:
                    raise
        if suspects and not passed:
            raise suspects[0][2]
        returned = [_returns(positions[record.partition], record) for _, record, _ in suspects]
        for (alone, record, timeout), proven in zip(suspects, returned, strict=True):
            if not proven:
                raise timeout
            await self._bury(tx, alone, record, timeout)
            total.dead += 1
        return total

    async def _bury(self, tx: Tx, batch: Batch, record: Record, problem: Exception) -> None:
        reason = problem.reason if isinstance(problem, Permanent) else f"{type(problem).__name__}: {problem}"
        await tx.execute(
            """
            INSERT INTO platform.dead_letter
                (id, service, topic, partition, number, epoch, reason, pointer, key, bytes, headers, at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            """,
            uuid7(batch.now, self._context.bits),
            self._group,
            record.topic,
            record.partition,
            record.number,
            batch.epoch,
            reason.replace("\x00", "\\0")[:2000],
            problem.pointer if isinstance(problem, Permanent) else "",
            record.key,
            record.value,
            {name: value.decode(errors="replace") for name, value in record.headers.items()},
            batch.now,
        )
        DEAD_LETTERS.labels(self._group).inc()
        log.error(
            "consumer.dead_letter",
            group=self._group,
            topic=record.topic,
            partition=record.partition,
            number=record.number,
            error=type(problem).__name__,
        )


def _returns(position: Position, record: Record) -> bool:
    """Counts a timeout of one record alone; whether it has returned often enough."""
    position.timeouts[record.number] = position.timeouts.get(record.number, 0) + 1
    return position.timeouts[record.number] >= PATIENCE
