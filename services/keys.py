"""`dripline keys`: a new key for the management API."""

from __future__ import annotations

from shared.auth import create_key
from shared.clock import SystemClock
from shared.db import Database
from shared.errors import ConfigurationError


async def make_key(database_url: str, name: str, scope: str) -> str:
    """Makes the key and returns it; only its hash is stored."""
    database = await Database.open(database_url, member="dripline-keys", size=1)
    try:
        async with database.transaction() as tx:
            _, key = await create_key(tx, name, scope, SystemClock().now())
    except ValueError as problem:
        raise ConfigurationError(f"{problem}.") from None
    finally:
        await database.close()
    return key
