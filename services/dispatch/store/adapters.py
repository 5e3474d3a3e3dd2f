"""What adapters were told by API, and which of them are paused because their provider is away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from shared.db import Tx

# So many exchanges in a row in which the provider was not there, and it is left alone for a while; then one exchange at a
# time looks whether it is back.
MOST_FAILURES = 10
PAUSES = tuple(timedelta(seconds=s) for s in (5, 15, 30, 60))
# However long a provider asks to be left alone, it is looked at again after this.
LONGEST_PAUSE = timedelta(hours=1)


class Told(msgspec.Struct, frozen=True):
    """What an adapter was told: `settings` as they may be read back, `secrets` sealed, `secret_names` which are set."""

    name: str
    channel: str
    settings: dict[str, Any]
    secrets: bytes | None
    secret_names: list[str]
    version: int
    updated_at: datetime


class Pause(msgspec.Struct, frozen=True):
    """`failures` in a row; `until`: no call before, None if none is owed."""

    adapter: str
    failures: int
    until: datetime | None
    why: str

    def holds(self, now: datetime) -> bool:
        return self.until is not None and self.until > now

    @property
    def doubtful(self) -> bool:
        """Whether one exchange at a time looks if the provider is back."""
        return self.failures >= MOST_FAILURES


async def read_told(tx: Tx, names: Sequence[str] | None = None) -> dict[str, Told]:
    """By the adapter's name; all, or of these."""
    rows = await tx.fetch(
        "SELECT name, channel, settings, secrets, secret_names, version, updated_at FROM dispatch.adapter "
        "WHERE $1::text[] IS NULL OR name = ANY($1::text[])",
        names,
    )
    return {row["name"]: Told(**dict(row)) for row in rows}


async def lock_told(tx: Tx, name: str) -> Told | None:
    """For a change; two changes come one after the other, the first of an adapter too."""
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended('dispatch.adapter ' || $1, 0))", name)
    return (await read_told(tx, [name])).get(name)


async def write_told(
    tx: Tx,
    name: str,
    channel: str,
    settings: Mapping[str, Any],
    secrets: bytes | None,
    secret_names: Sequence[str],
    now: datetime,
) -> None:
    """What the adapter is told from now on; whatever was held against its provider is forgotten."""
    await tx.execute(
        """
        INSERT INTO dispatch.adapter AS a (name, channel, settings, secrets, secret_names, version, updated_at)
        VALUES ($1, $2, $3, $4, $5, 1, $6)
        ON CONFLICT (name) DO UPDATE SET channel = excluded.channel, settings = excluded.settings,
            secrets = excluded.secrets, secret_names = excluded.secret_names, version = a.version + 1,
            updated_at = excluded.updated_at
        """,
        name,
        channel,
        dict(settings),
        secrets,
        sorted(secret_names),
        now,
    )
    await forgive(tx, [name])


async def delete_told(tx: Tx, name: str) -> None:
    await tx.execute("DELETE FROM dispatch.adapter WHERE name = $1", name)
    await forgive(tx, [name])


async def read_pauses(tx: Tx) -> dict[str, Pause]:
    """By adapter: those whose provider was not there lately, or asked for a pause."""
    rows = await tx.fetch("SELECT adapter, failures, until, why FROM dispatch.pause")
    return {row["adapter"]: Pause(**dict(row)) for row in rows}


async def forgive(tx: Tx, names: Sequence[str]) -> None:
    """Their providers answered: nothing is held against them."""
    await tx.execute("DELETE FROM dispatch.pause WHERE adapter = ANY($1::text[])", sorted(names))


async def recovered(tx: Tx, names: Sequence[str]) -> bool:
    """Their providers answered, so failures count for nothing; a pause that one asked for stays. Returns whether there
    was anything to forget."""
    rows = await tx.fetch(
        "DELETE FROM dispatch.pause WHERE adapter = ANY($1::text[]) AND failures > 0 RETURNING adapter", sorted(names)
    )
    return bool(rows)


async def blame(tx: Tx, failed: Mapping[str, int], why: Mapping[str, str], now: datetime) -> None:
    """So many more exchanges of each adapter found its provider away; from MOST_FAILURES on it is paused, longer each
    time."""
    names = sorted(failed)
    await tx.execute(
        """
        INSERT INTO dispatch.pause AS p (adapter, failures, until, why)
        SELECT f.adapter, f.failures, CASE WHEN f.failures >= $4 THEN $5::timestamptz + ($6::interval[])[1] END, f.why
        FROM unnest($1::text[], $2::int[], $3::text[]) AS f(adapter, failures, why)
        ON CONFLICT (adapter) DO UPDATE SET
            failures = p.failures + excluded.failures, why = excluded.why,
            until = CASE
                WHEN p.failures + excluded.failures < $4 THEN p.until
                ELSE greatest(p.until, $5::timestamptz
                    + ($6::interval[])[least(1 + greatest(p.failures - $4 + 1, 0), cardinality($6::interval[]))])
            END
        """,
        names,
        [failed[name] for name in names],
        [why[name] for name in names],
        MOST_FAILURES,
        now,
        list(PAUSES),
    )


async def leave_alone(tx: Tx, until: Mapping[str, datetime]) -> None:
    """Their providers asked for it."""
    names = sorted(until)
    await tx.execute(
        """
        INSERT INTO dispatch.pause AS p (adapter, failures, until, why)
        SELECT adapter, 0, until, 'the provider asks to be left alone'
        FROM unnest($1::text[], $2::timestamptz[]) AS a(adapter, until)
        ON CONFLICT (adapter) DO UPDATE SET failures = 0, until = greatest(p.until, excluded.until), why = excluded.why
        """,
        names,
        [until[name] for name in names],
    )
