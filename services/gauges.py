"""The figures of the deployment as a whole, read from the database now and then by every process.

Every process tells the same, so that an alarm does not depend on the process that happens to be the keeper: take the
maximum. What cannot be read is not told anew; `dripline_sampled_timestamp_seconds` says how old the figures are.
"""

from __future__ import annotations

import shutil
from datetime import datetime

from shared import metrics
from shared.clock import pause
from shared.consumer import read_positions
from shared.db import Tx
from shared.events import EVENTS, HISTORY, MESSAGES, PROFILE_EVENTS
from shared.marks import BEGINNING
from shared.service import Context, Loop

INTERVAL = 15.0  # seconds, as often as Prometheus is told to look by deploy/
MOST_LETTERS = 10_000  # counting goes no further
# group (its schema has the same name) → what it reads
READERS = {"profile": (EVENTS, HISTORY), "triggers": (PROFILE_EVENTS,), "dispatch": (MESSAGES,)}

_TIMES = """
SELECT (SELECT value FROM platform.watermark) AS watermark,
       (SELECT max(f) FROM platform.mark) AS mark,
       (SELECT state = 'held' FROM platform.deployment) AS held
"""
_LETTERS = """
SELECT s.service, (SELECT count(*) FROM (SELECT 1 FROM platform.dead_letter d
                   WHERE d.service = s.service AND d.state = 'open' LIMIT $2) AS open) AS open
FROM unnest($1::text[]) AS s(service)
"""
_SERVER = """
SELECT pg_database_size(current_database()) AS bytes,
       (SELECT sum(numbackends) FROM pg_stat_database) AS connections,
       current_setting('max_connections')::int AS most
"""
_OVERDUE = """
SELECT k.kind, (SELECT min(due_at) FROM dispatch.message m WHERE m.state = 'queued' AND m.kind = k.kind) AS due
FROM unnest(ARRAY['marketing', 'transactional']) AS k(kind)
"""


class Gauges:
    """One a process. `version`: of the program."""

    def __init__(self, context: Context, version: str) -> None:
        self._context = context
        metrics.BUILD.labels(version).set(1)

    def loops(self) -> dict[str, Loop]:
        return {"gauges": self._run}

    async def _run(self) -> None:
        while True:
            if not self._context.clock.virtual:
                await self.sample()
            await pause(INTERVAL)

    async def sample(self) -> None:
        """Reads everything once; raises what database and bus raise."""
        metrics.DISK_FREE.set(shutil.disk_usage(_existing(self._context)).free)
        now = self._context.clock.now()
        async with self._context.database.connection() as connection:
            await _times(connection, now)
            await _outboxes(connection)
            for service, count in await connection.fetch(_LETTERS, ["ingest", *READERS], MOST_LETTERS):
                metrics.DEAD_LETTERS_OPEN.labels(service).set(count)
            for kind, due in await connection.fetch(_OVERDUE):
                metrics.OVERDUE.labels(kind).set(max(0.0, (now - (due or now)).total_seconds()))
            server = await connection.fetchrow(_SERVER)
            metrics.DATABASE_BYTES.set(server["bytes"])
            metrics.DATABASE_CONNECTIONS.set(server["connections"])
            metrics.DATABASE_CONNECTIONS_LIMIT.set(server["most"])
            await self._lags(connection)
        metrics.SAMPLED.set_to_current_time()

    async def _lags(self, connection: Tx) -> None:
        bus = self._context.bus
        for group, topics in READERS.items():
            for topic in topics:
                positions = await read_positions(connection, group, group, bus.epoch(topic), topic)
                ends, beginnings = await bus.ends(topic), await bus.beginnings(topic)
                behind = {
                    partition: max(0, end - max(positions.get(partition, 0), beginnings.get(partition, 0)))
                    for partition, end in ends.items()
                }
                worst = max(behind, key=lambda partition: behind[partition], default=None)
                metrics.LAG.labels(group, topic).set(sum(behind.values()))
                metrics.LAG_PARTITION.labels(group, topic).set(worst if worst is not None and behind[worst] else -1)


async def _times(connection: Tx, now: datetime) -> None:
    row = await connection.fetchrow(_TIMES)
    if row["watermark"] is not None and row["watermark"] != BEGINNING:
        metrics.WATERMARK_AGE.set((now - row["watermark"]).total_seconds())
    if row["mark"] is not None:
        metrics.MARK_AGE.set((now - row["mark"]).total_seconds())
    metrics.HELD.set(bool(row["held"]))


async def _outboxes(connection: Tx) -> None:
    for schema in READERS:
        # From the first row of each shard to that of the next, by the key: a heap of rows is not read through.
        age = await connection.fetchval(
            f"""
            WITH RECURSIVE first AS (
                (SELECT shard, created_at FROM {schema}.outbox ORDER BY shard, number LIMIT 1)
                UNION ALL
                SELECT next.shard, next.created_at FROM first CROSS JOIN LATERAL (
                    SELECT shard, created_at FROM {schema}.outbox o WHERE o.shard > first.shard
                    ORDER BY shard, number LIMIT 1) AS next
            )
            SELECT extract(epoch FROM clock_timestamp() - min(created_at))::float8 FROM first
            """
        )
        metrics.OUTBOX_AGE.labels(schema).set(age or 0.0)


def _existing(context: Context) -> str:
    """The data folder, or the folder above it that is there: a process without files of its own never makes it."""
    place = context.settings.data_dir.absolute()
    while not place.is_dir():
        place = place.parent
    return str(place)
