"""A member for the tests of leases and fencing: a process that reads `events` and writes down what it handled.

    python -m tests.contracts.probe DATABASE_URL BUS_URL

It is the consumer of the services with the smallest handler there is; its tables lie in the schema `probe`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys

import asyncpg
from sqlalchemy import MetaData, create_engine
from sqlalchemy.schema import CreateTable

from shared.consumer import Applied, Batch, Consumer
from shared.db import Tx
from shared.events import EVENTS
from shared.hooks import Hooks
from shared.log import configure
from shared.spine_tables import spine_tables
from tests.support.contexts import context_for, running

PARTITIONS = 4


async def make_tables(database_url: str) -> None:
    """The schema `probe`: what every consuming service has, and a row for each record that took effect."""
    metadata = MetaData(schema="probe")
    spine_tables(metadata)
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("CREATE SCHEMA probe")
        for table in metadata.sorted_tables:
            await connection.execute(str(CreateTable(table).compile(create_engine("postgresql+asyncpg://"))))
        await connection.execute("CREATE TABLE probe.effect (member text, partition int, number bigint, value text)")
    finally:
        await connection.close()


async def main(database_url: str, bus_url: str) -> None:
    """Reads until it is killed."""
    configure(format="json")
    async with context_for(database_url, bus_url=bus_url, partitions=PARTITIONS) as plain:
        context = dataclasses.replace(plain, hooks=Hooks.from_environment())

        async def write_down(tx: Tx, batch: Batch) -> Applied:
            await tx.execute(
                "INSERT INTO probe.effect SELECT $1, * FROM unnest($2::int[], $3::bigint[], $4::text[])",
                context.member,
                [record.partition for record in batch.records],
                [record.number for record in batch.records],
                [record.value.decode() for record in batch.records],
            )
            return Applied()

        consumer = Consumer(context, group="probe", topics=[EVENTS], handler=write_down, schema="probe")
        async with running(consumer.loops()):
            print(f"member {context.member}", flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
