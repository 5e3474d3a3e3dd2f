"""Publishing outbox rows in the order of their numbers, and deleting what is published.

The row of a consumer's own batch is published from memory right after its commit (`publish_row`); what a dead holder left
behind, and the free shards of timers and API calls, are read from the table (`publish_shards`). A crash between
publishing and deleting publishes a row again: readers drop what is not above what they have seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from shared import wake as signals
from shared.bus.base import Outgoing, RecordTooLarge
from shared.bus.leases import LeasePool
from shared.clock import pause
from shared.errors import is_transient
from shared.ids import uuid7
from shared.metrics import DEAD_LETTERS, OUTBOX_ROWS
from shared.outbox import stamped, unpack

if TYPE_CHECKING:
    from shared.service import Context

log = structlog.get_logger(__name__)
ROWS = 200  # read at once
FALLBACK = 1.0  # seconds


class Relay:
    """Publishes the rows of one service's outbox."""

    def __init__(self, context: Context, schema: str) -> None:
        self._context = context
        self._schema = schema

    async def publish_row(self, shard: str, number: int, records: Sequence[Outgoing]) -> None:
        """Publishes one committed row and deletes it. Raises transient errors; then begin again from the table."""
        await self._publish(shard, number, stamped(shard, number, records))
        await self._context.hooks.reach("relay.published")
        async with self._context.database.connection() as connection:
            await connection.execute(
                f"DELETE FROM {self._schema}.outbox WHERE shard = $1 AND number = $2", shard, number
            )
        OUTBOX_ROWS.labels(self._schema).inc()

    async def publish_shards(self, shards: Sequence[str]) -> int:
        """Publishes what lies in these shards, every shard in order; returns the number of rows."""
        async with self._context.database.connection() as connection:
            rows = await connection.fetch(
                f"SELECT shard, number, records FROM {self._schema}.outbox WHERE shard = ANY($1) ORDER BY shard, number LIMIT $2",
                list(shards),
                ROWS,
            )
        by_shard: dict[str, list[tuple[int, bytes]]] = {}
        for shard, number, records in rows:
            by_shard.setdefault(shard, []).append((number, records))
        results = await asyncio.gather(
            *(self._publish_in_order(shard, numbered) for shard, numbered in by_shard.items()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return len(rows)

    async def _publish_in_order(self, shard: str, numbered: list[tuple[int, bytes]]) -> None:
        published = []
        try:
            for number, records in numbered:
                await self._publish(shard, number, stamped(shard, number, unpack(records)))
                published.append(number)
        finally:
            if published:
                async with self._context.database.connection() as connection:
                    await connection.execute(
                        f"DELETE FROM {self._schema}.outbox WHERE shard = $1 AND number = ANY($2)", shard, published
                    )
                OUTBOX_ROWS.labels(self._schema).inc(len(published))

    async def _publish(self, shard: str, number: int, records: Sequence[Outgoing]) -> None:
        try:
            await self._context.bus.publish(records)
        except RecordTooLarge:
            for index, record in enumerate(records):
                try:
                    await self._context.bus.publish([record])
                except RecordTooLarge as problem:
                    await self._bury(
                        record, f"outbox {shard}, row {number}, record {index}: {problem}", self._context.clock.now()
                    )

    async def _bury(self, record: Outgoing, reason: str, at: datetime) -> None:
        async with self._context.database.connection() as connection:
            await connection.execute(
                """
                INSERT INTO platform.dead_letter (id, service, topic, reason, key, bytes, headers, at)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
                """,
                uuid7(at, self._context.bits),
                self._schema,
                record.topic,
                reason,
                record.key,
                record.value,
                {name: value.decode(errors="replace") for name, value in record.headers.items()},
                at,
            )
        DEAD_LETTERS.labels(self._schema).inc()
        log.error("relay.dead_letter", service=self._schema, topic=record.topic)

    async def run(self, pool: LeasePool) -> None:
        """The loop over the free shards that this member holds (lease names end with the shard's name)."""
        listener = self._context.wake.listen([signals.outbox(self._schema)])
        failures = 0
        try:
            while True:
                shards = [name.split(":", 2)[2] for name in pool.held]
                try:
                    count = await self.publish_shards(shards) if shards else 0
                    failures = 0
                except Exception as problem:
                    if not is_transient(problem):
                        raise
                    failures += 1
                    log.warning("relay.retry", schema=self._schema, error=type(problem).__name__)
                    await pause(min(2.0, 0.05 * 2**failures))
                    continue
                if count:
                    self._context.wake.signal(signals.MOVED)
                if count < ROWS:
                    await listener.wait(FALLBACK)
        finally:
            listener.close()
