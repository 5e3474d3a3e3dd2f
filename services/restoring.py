"""`dripline restored`: what a restored database must be told before the services start on it.

One transaction, with nothing else running:

1. the deployment's generation is raised: outbox shards get new names, because numbers given after the backup are given again;
2. readers are told which records of a bus that outlived the database tell of what the restore undid;
3. the erasure journal is applied: whoever was erased after the backup is erased again, in every schema;
4. dispatch is *held*: what may have been sent since the backup is settled when somebody releases it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from services.dispatch.store.forgetting import forget_people as forget_in_dispatch
from services.migrate import migrate
from services.profile.purging import erase_again
from services.triggers.store.people import forget_people as forget_in_triggers
from services.triggers.store.people import lock_nodes
from shared import erasure
from shared.auth import log_change
from shared.clock import Clock, SystemClock
from shared.db import Database, Tx
from shared.deployment import Deployment, forget_home, read_deployment, refuse_without_tables
from shared.errors import ConfigurationError
from shared.outbox import UNDONE, free_shards, partition_shard, renamed
from shared.settings import Settings

MEMBER = "dripline-restored"
SCHEMAS = ("profile", "triggers", "dispatch")
# Who tells repeats by the shards of whom; what profile reads is told by the ids of events.
READERS = {"profile": "triggers", "triggers": "dispatch"}
PAGE = 20_000  # nodes looked at in one statement
# How `services.run` names its members: host.pid.six hex digits, then what a connection is for.
RUNNING = """
    SELECT DISTINCT application_name FROM pg_stat_activity
    WHERE datname = current_database() AND application_name ~ '\\.[0-9]+\\.[0-9a-f]{6}(/|$)' ORDER BY 1
"""


@dataclass(frozen=True)
class Restored:
    """What `take_up` did."""

    generation: int
    erased_nodes: int
    erased_events: int
    waiting: int
    """Messages in the queue that are settled at the release."""


async def refuse_if_running(tx: Tx, what: str) -> None:
    """:raises ConfigurationError: a service is connected"""
    if running := [row[0] for row in await tx.fetch(RUNNING)]:
        raise ConfigurationError(
            f"{what} needs the services stopped; connected is {running[0]}"
            + (f" and {len(running) - 1} more." if len(running) > 1 else ".")
        )


async def was_only_moved(database_url: str) -> None:
    """The database is whole, it merely lies elsewhere."""
    database = await Database.open(database_url, member=MEMBER, size=1)
    try:
        async with database.transaction() as tx:
            await refuse_without_tables(tx)
            await refuse_if_running(tx, "dripline restored")
            await forget_home(tx)
    finally:
        await database.close()


async def take_up_copy(settings: Settings, database_url: str, journals: Sequence[Path] = ()) -> Restored:
    """`take_up` of a database that was restored by other means: brought to this program's version first.

    :param journals: files of the erasure journal; that of the settings is read besides
    :raises ConfigurationError: the database is empty, services are running, or a journal cannot be read
    """
    read_journals(journals)
    database = await Database.open(database_url, member=MEMBER, size=1)
    try:
        async with database.connection() as connection:
            await refuse_without_tables(connection)
            await refuse_if_running(connection, "dripline restored")
    finally:
        await database.close()
    await migrate(database_url)
    return await take_up(settings, database_url, journals=journals)


async def take_up(
    settings: Settings,
    database_url: str,
    *,
    journals: Sequence[Path] = (),
    backup_at: datetime | None = None,
    clock: Clock | None = None,
) -> Restored:
    """See the module.

    :param journals: files of the erasure journal; that of the settings is read besides
    :param backup_at: when the backup was made; None: it is taken for as old as its last watermark
    :raises ConfigurationError: services are running, or a journal cannot be read
    """
    now = (clock or SystemClock()).now()
    erased = read_journals([*journals, *_own_journal(settings)])
    database = await Database.open(database_url, member=MEMBER, size=2)
    try:
        async with database.connection() as connection:
            await refuse_if_running(connection, "dripline restored")
            deployment = await read_deployment(connection)
            secret = settings.secret_key.get_secret_value().encode() if settings.secret_key else deployment.secret
            unknown = await _not_in_database(connection, erased)
            nodes = await find_nodes(connection, secret, unknown)
        async with database.transaction() as tx:
            await tx.execute(
                "SET LOCAL statement_timeout = '10min'; SET LOCAL idle_in_transaction_session_timeout = '1min'"
            )
            await tx.execute("TRUNCATE platform.lease, platform.member")
            for schema in SCHEMAS:
                await rename_shards(tx, schema, deployment.generation)
            await _raise_generation(tx, backup_at, now)
            await erasure.write_digests(tx, unknown)
            events = await _erase(tx, nodes, now)
            waiting = await tx.fetchval(
                "SELECT count(*) FROM dispatch.message WHERE intended AND state IN ('queued', 'claimed')"
            )
            report = Restored(deployment.generation + 1, len(nodes), events, waiting)
            await log_change(tx, "dripline restored", "restore", "deployment", _told(deployment), vars(report), now)
        return report
    finally:
        await database.close()


def _told(deployment: Deployment) -> dict[str, Any]:
    return {"generation": deployment.generation, "state": deployment.state}


async def _raise_generation(tx: Tx, backup_at: datetime | None, now: datetime) -> None:
    await tx.execute(
        """
        UPDATE platform.deployment SET generation = generation + 1, state = 'held', bus = NULL, restored_at = $2,
            backup_at = coalesce($1, (SELECT value FROM platform.watermark), made_at)
        """,
        backup_at,
        now,
    )
    await forget_home(tx)


# ── shards ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def rename_shards(tx: Tx, schema: str, generation: int) -> None:
    """Gives the shards of a service their names of the next generation, with what waits in them; and leaves with every
    position, for the shards that it reads, the number above which their old names tell of what the restore undid."""
    last = await _last_numbers(tx, schema, generation)
    waiting = await tx.fetch(f"SELECT shard, min(number) AS first FROM {schema}.outbox GROUP BY shard")
    # What waits in the outbox may be on the bus already: it comes again under the new name, so the old one does not count.
    undone = last | {row["shard"]: row["first"] - 1 for row in waiting}
    names = {old: renamed(old, generation) for old in undone}
    await tx.execute(
        f"UPDATE {schema}.outbox o SET shard = n.new FROM unnest($1::text[], $2::text[]) AS n(old, new) WHERE o.shard = n.old",
        list(names),
        list(names.values()),
    )
    await tx.execute(
        f"""
        INSERT INTO {schema}.outbox_shard (shard, number)
        SELECT n.new, s.number FROM unnest($1::text[], $2::text[]) AS n(old, new) JOIN {schema}.outbox_shard s ON s.shard = n.old
        ON CONFLICT (shard) DO UPDATE SET number = excluded.number
        """,
        list(names),
        list(names.values()),
    )
    if schema in READERS:
        await _tell_reader(tx, READERS[schema], undone, names)


async def _last_numbers(tx: Tx, schema: str, generation: int) -> dict[str, int]:
    """By shard of this generation the last number that was given in it."""
    last = dict.fromkeys(free_shards(generation), 0)
    last |= dict(await tx.fetch(f"SELECT shard, number FROM {schema}.outbox_shard WHERE shard = ANY($1)", list(last)))
    rows = await tx.fetch(f"SELECT topic, partition, epoch, outbox_number FROM {schema}.position")
    return last | {
        partition_shard(row["topic"], row["partition"], row["epoch"], generation): row["outbox_number"] for row in rows
    }


async def _tell_reader(tx: Tx, reader: str, undone: Mapping[str, int], names: Mapping[str, str]) -> None:
    rows = await tx.fetch(f"SELECT group_name, epoch, topic, partition, seen FROM {reader}.position")
    above = {UNDONE + shard: [number, 0] for shard, number in undone.items()}
    # What was read under the old name is not read again under the new one.
    seen = [
        row["seen"] | above | {names[shard]: place for shard, place in row["seen"].items() if shard in names}
        for row in rows
    ]
    await tx.execute(
        f"""
        UPDATE {reader}.position p SET seen = s.seen
        FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::jsonb[]) AS s(group_name, epoch, topic, partition, seen)
        WHERE (p.group_name, p.epoch, p.topic, p.partition) = (s.group_name, s.epoch, s.topic, s.partition)
        """,
        [row["group_name"] for row in rows],
        [row["epoch"] for row in rows],
        [row["topic"] for row in rows],
        [row["partition"] for row in rows],
        seen,
    )


# ── erasure ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_journals(files: Iterable[Path]) -> dict[bytes, datetime]:
    """What all these files say together.

    :raises ConfigurationError: one is missing or is no journal
    """
    found: dict[bytes, datetime] = {}
    for file in files:
        try:
            for digest, at in erasure.read_file(file).items():
                found[digest] = max(at, found.get(digest, at))
        except OSError as problem:
            raise ConfigurationError(f"The erasure journal {file} cannot be read ({problem.strerror}).") from None
        except UnicodeDecodeError:
            raise ConfigurationError(
                f"The erasure journal {file} is no text; unpack it first if it is packed."
            ) from None
        except ValueError as problem:
            raise ConfigurationError(f"{problem}.") from None
    return found


def _own_journal(settings: Settings) -> list[Path]:
    file = settings.erasure_journal_file
    return [file] if file is not None and file.exists() else []


async def _not_in_database(tx: Tx, erased: Mapping[bytes, datetime]) -> dict[bytes, datetime]:
    """Erasures that the backup does not know: the journal says them with a later moment, or alone."""
    known = await erasure.read_digests(tx)
    return {digest: at for digest, at in erased.items() if digest not in known or known[digest] < at}


async def find_nodes(tx: Tx, secret: bytes, digests: Mapping[bytes, datetime]) -> dict[UUID, datetime]:
    """The nodes in the database that these digests mean, with the moment of their erasure."""
    found: dict[UUID, datetime] = {}
    last = UUID(int=0)
    while digests:
        rows = await tx.fetch("SELECT id FROM profile.node WHERE id > $1 ORDER BY id LIMIT $2", last, PAGE)
        for row in rows:
            if (at := digests.get(erasure.digest(secret, row["id"]))) is not None:
                found[row["id"]] = at
        if len(rows) < PAGE:
            break
        last = rows[-1]["id"]
    return found


async def _erase(tx: Tx, nodes: Mapping[UUID, datetime], now: datetime) -> int:
    """Erases them in every schema, in the order in which the services would."""
    if not nodes:
        return 0
    everybody = sorted(nodes)
    events = await erase_again(tx, everybody, now)
    await lock_nodes(tx, everybody)
    await forget_in_triggers(tx, nodes)
    await forget_in_dispatch(tx, nodes, now)
    # The books count the events of erased people by these entries of the change log.
    await log_change(
        tx, "dripline restored", "profile.erase", "erasure journal", {"nodes": len(nodes)}, {"events": events}, now
    )
    return events
