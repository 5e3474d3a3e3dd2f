"""Keys of the management API, made and revoked on the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.keys import make_key, revoke_keys
from shared.auth import authenticate
from shared.db import Database
from shared.errors import ConfigurationError


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, member="test")
    yield opened
    await opened.close()


async def test_a_key_counts_until_it_is_revoked_and_others_go_on(database: Database, database_url: str) -> None:
    lost, kept = await make_key(database_url, "lost laptop", "admin"), await make_key(database_url, "till", "read")
    holder = await authenticate(database, f"Bearer {lost}")
    assert holder is not None
    assert (holder.name, holder.scope) == ("lost laptop", "admin")

    assert await revoke_keys(database_url, "lost laptop") == 1
    assert await authenticate(database, f"Bearer {lost}") is None
    assert await authenticate(database, f"Bearer {kept}") is not None
    assert kept not in str(await _everything_stored(database)), "only hashes are stored"


async def test_revoking_what_is_not_there_says_so(database_url: str) -> None:
    with pytest.raises(ConfigurationError, match="No API key that counts is called 'nobody'"):
        await revoke_keys(database_url, "nobody")


async def test_what_the_command_makes_and_revokes_stands_in_the_change_log(
    database: Database, database_url: str
) -> None:
    key = await make_key(database_url, "lost laptop", "admin")
    holder = await authenticate(database, f"Bearer {key}")
    assert holder is not None
    await revoke_keys(database_url, "lost laptop")
    with pytest.raises(ConfigurationError):
        await revoke_keys(database_url, "lost laptop")
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT * FROM platform.change_log ORDER BY id")
    assert [(row["principal"], row["action"], row["subject"]) for row in rows] == [
        ("dripline keys", "api_key.create", "API key lost laptop"),
        ("dripline keys", "api_key.revoke", "API key lost laptop"),
    ]
    assert [row["after"]["keys"] for row in rows] == [[str(holder.key)], [str(holder.key)]]
    assert rows[0]["after"]["scope"] == "admin"
    assert key not in str([tuple(row) for row in rows])


async def _everything_stored(database: Database) -> list[tuple[object, ...]]:
    async with database.connection() as connection:
        return [tuple(row) for row in await connection.fetch("SELECT * FROM platform.api_key")]
