"""`dripline keys`: makes and revokes keys of the management API."""

from __future__ import annotations

from shared.auth import create_key, log_change
from shared.clock import SystemClock
from shared.db import Database
from shared.deployment import refuse_without_tables
from shared.errors import ConfigurationError

BY = "dripline keys"  # who did it, in the change log


async def make_key(database_url: str, name: str, scope: str) -> str:
    """Makes the key and returns it; only its hash is stored."""
    database = await Database.open(database_url, member="dripline-keys", size=1)
    try:
        now = SystemClock().now()
        async with database.transaction() as tx:
            await refuse_without_tables(tx)
            identity, key = await create_key(tx, name, scope, now)
            after = {"keys": [str(identity)], "scope": scope}
            await log_change(tx, BY, "api_key.create", f"API key {name}", None, after, now)
    except ValueError as problem:
        raise ConfigurationError(f"{problem}.") from None
    finally:
        await database.close()
    return key


async def revoke_keys(database_url: str, name: str) -> int:
    """Revokes every key of that name; counts at once. Returns how many there were.

    :raises ConfigurationError: when no key that counts has the name
    """
    database = await Database.open(database_url, member="dripline-keys", size=1)
    try:
        now = SystemClock().now()
        async with database.transaction() as tx:
            await refuse_without_tables(tx)
            rows = await tx.fetch(
                "UPDATE platform.api_key SET revoked_at = $2 WHERE name = $1 AND revoked_at IS NULL RETURNING id",
                name,
                now,
            )
            if rows:
                after = {"keys": [str(row["id"]) for row in rows]}
                await log_change(tx, BY, "api_key.revoke", f"API key {name}", None, after, now)
    finally:
        await database.close()
    if not rows:
        raise ConfigurationError(f"No API key that counts is called {name!r}.")
    return len(rows)
