"""The first start makes its keys and says them in a file: both, or neither, so that it can be tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest
from typer.testing import CliRunner

from services import first_start
from services.__main__ import app
from services.first_start import make_credentials, read_credentials, write_private
from shared.auth import authenticate
from shared.errors import ConfigurationError
from shared.service import Context
from shared.settings import SERVICE_NAMES, ServiceName
from tests.support.contexts import context_for
from tests.support.wait import until

URL = "http://localhost:8080"
REFUSE_FOR_A_MOMENT = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('tries'); RAISE 'not now' USING ERRCODE = 'serialization_failure'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON platform.api_key FOR EACH ROW EXECUTE FUNCTION refuse()"""


async def made(context: Context) -> tuple[int, int]:
    """How many API keys and sources there are."""
    async with context.database.connection() as connection:
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM platform.api_key), (SELECT count(*) FROM ingest.source)"
        )
    return tuple(row)


async def test_keys_whose_file_cannot_be_written_are_not_made(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.write_text("a file where the folder should be")
    async with context_for(database_url, leases=False, data_dir=folder) as context:
        with pytest.raises(ConfigurationError, match=r"credentials\.json cannot be written"):
            await make_credentials(context, URL)
        assert await made(context) == (0, 0)
        folder.unlink()
        assert await make_credentials(context, URL) == read_credentials(context.settings.credentials_file)
        assert await made(context) == (1, 2)


async def test_a_first_start_whose_commit_fails_is_begun_again(database_url: str, tmp_path: Path) -> None:
    async with context_for(database_url, leases=False, data_dir=tmp_path) as context:
        async with context.database.connection() as connection:
            await connection.execute(REFUSE_AT_COMMIT)
        with pytest.raises(asyncpg.RaiseError):
            await make_credentials(context, URL)
        assert await made(context) == (0, 0)
        assert not context.settings.credentials_file.exists(), "no file names keys that do not exist"
        async with context.database.connection() as connection:
            await connection.execute("DROP FUNCTION refuse() CASCADE")
        await make_credentials(context, URL)
        kept = read_credentials(context.settings.credentials_file)
        assert await authenticate(context.database, f"Bearer {kept['api_key']}")
        assert context.settings.credentials_file.stat().st_mode & 0o077 == 0


async def test_a_database_that_fails_for_a_moment_does_not_end_the_first_start(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the process answers: if it ended, the requests that it has would be cut off."""
    monkeypatch.setattr(first_start, "RETRY_SECONDS", 0.05)
    async with context_for(database_url, leases=False, data_dir=tmp_path) as context:
        async with context.database.connection() as connection:
            await connection.execute("CREATE SEQUENCE tries; " + REFUSE_FOR_A_MOMENT)
            starting = asyncio.create_task(make_credentials(context, URL))

            async def tried_again() -> bool:
                return starting.done() or await connection.fetchval("SELECT last_value FROM tries") > 1

            await until(tried_again, limit=10, what="it tries again")
            assert not starting.done()
            await connection.execute("DROP FUNCTION refuse() CASCADE")
        async with asyncio.timeout(10):
            keys = await starting
        assert keys == read_credentials(context.settings.credentials_file)
        assert await made(context) == (1, 2)


async def test_a_second_start_makes_nothing(database_url: str, tmp_path: Path) -> None:
    async with context_for(database_url, leases=False, data_dir=tmp_path) as context:
        await make_credentials(context, URL)
        before = context.settings.credentials_file.read_text()
        assert await make_credentials(context, URL) is None
        assert context.settings.credentials_file.read_text() == before
        assert await made(context) == (1, 2)


PUBLIC = "https://drip.example.com"


@pytest.mark.parametrize(
    ("services", "public_url", "named"),
    [
        (frozenset(SERVICE_NAMES), "", URL),
        (frozenset(SERVICE_NAMES), PUBLIC, URL),  # it works whether or not the name leads here already
        (frozenset({"ingest"}), PUBLIC, PUBLIC),  # the rules are another process's
        (frozenset({"ingest"}), "", URL),
    ],
)
async def test_the_file_names_where_all_of_the_api_is(
    database_url: str, tmp_path: Path, services: frozenset[ServiceName], public_url: str, named: str
) -> None:
    settings = {"data_dir": tmp_path, "services": services, "public_url": public_url}
    async with context_for(database_url, leases=False, **settings) as context:
        await make_credentials(context, URL)
        assert read_credentials(context.settings.credentials_file)["url"] == named


@pytest.mark.parametrize(("public_url", "named"), [("", URL), (PUBLIC, PUBLIC)])
def test_a_shell_is_told_the_way_in_that_everybody_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, public_url: str, named: str
) -> None:
    keys = {"site_write_key": "w", "server_write_key": "s", "api_key": "a"}
    write_private(tmp_path / "credentials.json", {"url": URL, **keys})
    monkeypatch.setenv("PUBLIC_URL", public_url)
    said = CliRunner().invoke(app, ["env", "--data", str(tmp_path)])
    assert said.exit_code == 0, said.output
    assert f"export DRIPLINE_URL={named}\n" in said.output
    assert "export DRIPLINE_API_KEY=a\n" in said.output


async def test_what_the_first_start_makes_stands_in_the_change_log(database_url: str, tmp_path: Path) -> None:
    async with context_for(database_url, leases=False, data_dir=tmp_path) as context:
        keys = await make_credentials(context, URL)
        async with context.database.connection() as connection:
            rows = await connection.fetch("SELECT * FROM platform.change_log ORDER BY action, subject")
            key = await connection.fetchval("SELECT id FROM platform.api_key")
    assert keys is not None
    assert [(row["principal"], row["action"], row["subject"], row["after"]) for row in rows] == [
        ("first start", "api_key.create", "API key first start", {"keys": [str(key)], "scope": "admin"}),
        ("first start", "source.create", "source server", {"name": "server", "kind": "secret"}),
        ("first start", "source.create", "source site", {"name": "site", "kind": "public"}),
    ]
    said = str([tuple(row) for row in rows])
    assert not [name for name in ("site_write_key", "server_write_key", "api_key") if keys[name] in said]


REFUSE_AT_COMMIT = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now'; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON ingest.source DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION refuse();
"""
