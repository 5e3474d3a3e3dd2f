"""What a transaction wants published: one row of its own, numbered within a shard.

A consumer's rows are written by `shared.consumer` into the shard of the partition it reads. Timers and API calls use
`write_free`: one row, whatever it holds, into one of 16 shards chosen by the first node, locked last before COMMIT.
The relay (`shared.relay`) publishes in that order and deletes what is published.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from uuid import UUID

import msgspec

from shared.bus.base import Outgoing
from shared.db import Tx

HEADER = "outbox"
FREE_SHARDS = 16  # for what no partition decides: timers and API calls (design §3, Outbox)
# Before a shard's name among what a position has seen: records above that number tell of what a restore undid.
UNDONE = "undone:"

_pack = msgspec.msgpack.Encoder()
_unpack = msgspec.msgpack.Decoder(list[Outgoing])


def pack(records: Sequence[Outgoing]) -> bytes:
    return _pack.encode(list(records))


def unpack(row: bytes) -> list[Outgoing]:
    return _unpack.decode(row)


def free_shards(generation: int) -> list[str]:
    """All shards of timers and API calls."""
    return [f"free/{number}@{generation}" for number in range(FREE_SHARDS)]


def partition_shard(topic: str, partition: int, epoch: str, generation: int) -> str:
    """The shard of the partition that a consumer reads. Another epoch or generation numbers anew, so it is in the name."""
    mark = blake2b(epoch.encode(), digest_size=6).hexdigest()  # epochs of one Kafka cluster begin alike
    return f"{topic}/{partition}@{mark}.{generation}"


def renamed(shard: str, generation: int) -> str:
    """The name that a shard of this generation has in the next one."""
    name, end = shard.removesuffix(str(generation)), str(generation)
    if name + end != shard or name[-1:] not in ("@", "."):
        raise ValueError(f"{shard} is no shard of generation {generation}")
    return f"{name}{generation + 1}"


def stamped(shard: str, number: int, records: Sequence[Outgoing]) -> list[Outgoing]:
    """The records with the header that lets a reader drop what it has seen: shard, number, index."""
    return [
        msgspec.structs.replace(record, headers={**record.headers, HEADER: f"{shard},{number},{index}".encode()})
        for index, record in enumerate(records)
    ]


def read_header(value: bytes) -> tuple[str, int, int]:
    """(shard, number, index) of a record's `outbox` header."""
    shard, number, index = value.decode().rsplit(",", 2)
    return shard, int(number), int(index)


async def write_free(tx: Tx, schema: str, node: UUID, records: Sequence[Outgoing]) -> bool:
    """Writes one outbox row in `schema`; call it last before COMMIT, because it locks the shard's row.

    Says whether there was anything to publish; if so, signal `wake.outbox(schema)` after the commit.
    """
    if not records:
        return False
    await tx.execute(
        f"""
        WITH shard AS (
            INSERT INTO {schema}.outbox_shard AS s (shard, number)
            SELECT $1 || '@' || generation, 1 FROM platform.deployment
            ON CONFLICT (shard) DO UPDATE SET number = s.number + 1
            RETURNING shard, number
        )
        INSERT INTO {schema}.outbox (shard, number, records) SELECT shard, number, $2 FROM shard
        """,
        f"free/{node.int % FREE_SHARDS}",
        pack(records),
    )
    return True
