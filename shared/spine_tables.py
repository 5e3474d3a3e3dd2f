"""The tables that every consuming service has in its own schema: positions, outbox and its shards.

They are the service's own because a position moves, and an outbox row appears, in the same transaction as the effects.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, DateTime, Integer, LargeBinary, MetaData, Table, Text, func
from sqlalchemy.dialects.postgresql import JSONB


@dataclass(frozen=True)
class SpineTables:
    position: Table
    outbox: Table
    outbox_shard: Table


def spine_tables(metadata: MetaData) -> SpineTables:
    """Declares the three tables in the metadata's schema."""
    position = Table(
        "position",
        metadata,
        Column("group_name", Text, primary_key=True),
        Column("epoch", Text, primary_key=True),
        Column("topic", Text, primary_key=True),
        Column("partition", Integer, primary_key=True),
        Column("next", BigInteger, nullable=False, comment="number of the first record that is not handled"),
        Column(
            "outbox_number",
            BigInteger,
            nullable=False,
            server_default="0",
            comment="last number of this partition's own shard",
        ),
        Column(
            "seen",
            JSONB,
            nullable=False,
            server_default="{}",
            comment="shard -> [number, index], highest published record read",
        ),
        Column("read", BigInteger, nullable=False, server_default="0"),
        Column("applied", BigInteger, nullable=False, server_default="0"),
        Column("repeated", BigInteger, nullable=False, server_default="0"),
        Column("conflicting", BigInteger, nullable=False, server_default="0"),
        Column("erased", BigInteger, nullable=False, server_default="0"),
        Column("dead", BigInteger, nullable=False, server_default="0"),
        postgresql_with={"fillfactor": "50"},
    )
    outbox = Table(
        "outbox",
        metadata,
        Column("shard", Text, primary_key=True),
        Column("number", BigInteger, primary_key=True),
        Column("records", LargeBinary, nullable=False, comment="msgpack: [[topic, key, value, headers], …] in order"),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    )
    outbox_shard = Table(
        "outbox_shard",
        metadata,
        Column("shard", Text, primary_key=True),
        Column("number", BigInteger, nullable=False, server_default="0", comment="last number given"),
        postgresql_with={"fillfactor": "50"},
    )
    return SpineTables(position, outbox, outbox_shard)
