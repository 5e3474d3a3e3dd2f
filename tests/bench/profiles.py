"""events → profiles, against one connection that does a bare upsert of the same rows and bytes into the same tables."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import timedelta
from typing import Any
from uuid import NAMESPACE_DNS

import asyncpg

from services.profile.service import build
from shared.bus.base import Outgoing
from shared.clock import SystemClock
from shared.events import EVENTS, Event, body_hash, encode
from shared.identifiers import Identifier
from shared.ids import event_id, node_id
from shared.service import Context
from tests.support.contexts import context_for
from tests.support.databases import cloned, make_template, temporary_server

PEOPLE = 100_000
BATCH = 1000
SOURCE = node_id(event_id(NAMESPACE_DNS, "bench"), "source", "bench")


def make_events(context: Context, count: int, hot: bool, seed: int) -> list[Outgoing]:
    """`count` events of about 500 bytes, each of one of `PEOPLE` by chance; `hot`: most of them of few people."""
    chance, now = random.Random(seed), SystemClock().now() - timedelta(minutes=5)
    records = []
    for number in range(count):
        person = int(chance.paretovariate(0.9)) % PEOPLE if hot else chance.randrange(PEOPLE)
        name = chance.choices(["Product Viewed", "Product Added", "Page Viewed"], [7, 1, 2])[0]
        value = f"a-{person}"
        ids = [Identifier("anonymous_id", value, node_id(context.node_namespace, "anonymous_id", value), True)]
        properties = {
            "product_id": f"sku-{number % 5000}",
            "name": "A record with a long and pleasant name",
            "category": "vinyl",
            "price": 1500,
            "quantity": 1,
            "url": "https://shop.example/p/1",
            "filler": "x" * 120,
        }
        event = Event(
            id=event_id(SOURCE, f"{seed}-{number}"),
            source=SOURCE,
            trust="public",
            type="track",
            name=name,
            origin=ids[0].node,
            ids=ids,
            occurred_at=now,
            received_at=now,
            message_id=f"{seed}-{number}",
            hash=body_hash("track", name, ids, properties, {}, None),
            properties=properties,
        )
        records.append(Outgoing(EVENTS, str(event.origin).encode(), encode(event)))
    return records


async def ours(context: Context, records: list[Outgoing]) -> float:
    """Events a second from the bus to the profiles, everything included (positions, marks, outbox, publishing)."""
    for start in range(0, len(records), 5000):
        await context.bus.append(records[start : start + 5000])
    ends = await context.bus.ends(EVENTS)
    service = await build(context)
    began = time.perf_counter()
    tasks = [asyncio.create_task(loop()) for loop in service.loops.values()]
    while True:
        async with context.database.connection() as connection:
            done = await connection.fetchval(
                "SELECT coalesce(sum(next), 0) FROM profile.position WHERE topic = 'events'"
            )
        if done >= sum(ends.values()):
            break
        await asyncio.sleep(0.02)
    took = time.perf_counter() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return len(records) / took


async def bare(url: str) -> float:
    """The same rows into the same tables: a statement a table and batch of 1 000 events, one transaction a batch."""
    connection = await asyncpg.connect(url)
    tables = [
        row[0]
        for row in await connection.fetch(
            "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE nspname = 'profile' AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1"
        )
        if row[0] not in ("position", "outbox", "outbox_shard", "alembic_version")
    ]
    rows = {table: await connection.fetch(f"SELECT * FROM profile.{table}") for table in tables}
    rows = {table: found for table, found in rows.items() if found}
    order = sorted(rows["event"], key=lambda row: row["learned_at"])
    batch_of_event = {row["id"]: number // BATCH for number, row in enumerate(order)}
    batches_of_node: dict[Any, list[int]] = {}
    for number, row in enumerate(order):
        batches_of_node.setdefault(row["node"], []).append(number // BATCH)
    writes = [_spread(table, found, batch_of_event, batches_of_node) for table, found in rows.items()]
    statements = {table: await _statement(connection, table) for table in rows}
    for table in rows:
        await connection.execute(f"TRUNCATE profile.{table}")
    prepared = [
        [(statements[table], _columns(of_batch.get(number, []))) for table, of_batch in zip(rows, writes, strict=True)]
        for number in range(-(-len(order) // BATCH))
    ]
    began = time.perf_counter()
    for batch in prepared:
        async with connection.transaction():
            for statement, columns in batch:
                if columns:
                    await connection.execute(statement, *columns)
    took = time.perf_counter() - began
    await connection.close()
    return len(order) / took


def _spread(
    table: str, found: list[asyncpg.Record], batch_of_event: dict[Any, int], batches_of_node: dict[Any, list[int]]
) -> dict[int, list[asyncpg.Record]]:
    """Which rows a batch writes: those of its events, the nodes it saw first, and every profile it touched, again."""
    spread: dict[int, dict[Any, asyncpg.Record]] = {}
    for row in found:
        if "id" in row and row["id"] in batch_of_event:
            numbers = [batch_of_event[row["id"]]]
        elif table == "profile":
            numbers = sorted({number for node in row["nodes"] for number in batches_of_node.get(node, [])})
        else:
            node = row.get("node") or row.get("id") or row.get("a")
            numbers = batches_of_node.get(node, [0])[:1]
        for number in numbers:
            spread.setdefault(number, {})[id(row)] = row
    return {number: list(of_batch.values()) for number, of_batch in spread.items()}


def _columns(rows: list[asyncpg.Record]) -> list[list[Any]]:
    """Columns of the rows; an array among them goes as PostgreSQL writes it (unnest would take it apart)."""
    return [
        ["{" + ",".join(map(str, value)) + "}" if isinstance(value, list) else value for value in column]
        for column in zip(*rows, strict=True)
    ]


async def _statement(connection: asyncpg.Connection, table: str) -> str:
    columns = await connection.fetch(
        "SELECT attname, format_type(atttypid, NULL) AS type FROM pg_attribute"
        " WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        f"profile.{table}",
    )
    keys = await connection.fetchval(
        "SELECT string_agg(quote_ident(attname), ', ') FROM pg_index i JOIN pg_attribute a ON a.attrelid = indrelid"
        " AND attnum = ANY(indkey) WHERE indrelid = $1::regclass AND indisprimary",
        f"profile.{table}",
    )
    names = ", ".join(f'"{row["attname"]}"' for row in columns)
    arrays = ", ".join(
        f"${n}::text[]" if row["type"].endswith("[]") else f"${n}::{row['type']}[]" for n, row in enumerate(columns, 1)
    )
    picked = ", ".join(f'"{row["attname"]}"::{row["type"]}' for row in columns)
    changed = ", ".join(f'"{row["attname"]}" = excluded."{row["attname"]}"' for row in columns)
    return (
        f"INSERT INTO profile.{table} ({names}) SELECT {picked} FROM unnest({arrays}) AS t({names})"
        f" ON CONFLICT ({keys}) DO UPDATE SET {changed}"
    )


async def measure(count: int = 100_000, rounds: int = 3) -> dict[str, Any]:
    """Interleaved rounds; medians of the ratios within a round."""
    found: dict[str, list[tuple[float, float]]] = {"uniform": [], "hot": []}
    with temporary_server() as server:
        template = await make_template(server.url)
        for number in range(rounds):
            for name in found:
                async with cloned(server.url, template) as url:
                    async with context_for(url, role="dripline_profile", partitions=8, linger_ms=20) as context:
                        speed = await ours(context, make_events(context, count, name == "hot", number))
                    found[name].append((speed, await bare(url)))
    return {
        name: {
            "events_per_second": round(sorted(a for a, _ in pairs)[len(pairs) // 2]),
            "bare_per_second": round(sorted(b for _, b in pairs)[len(pairs) // 2]),
            "ratio": round(sorted(a / b for a, b in pairs)[len(pairs) // 2], 3),
        }
        for name, pairs in found.items()
    }
