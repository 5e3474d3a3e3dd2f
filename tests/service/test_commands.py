"""Commands as an operator runs them, each a process of the installed program, against a real PostgreSQL: what they do, and
the one sentence that an ordinary mistake ends with, after which nothing has changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from shared.db import connect
from shared.embedded_postgres import EmbeddedPostgres
from tests.support.databases import on_database
from tests.support.program import Ended, dripline

KEY = "k" * 40


async def run(*arguments: str, **environment: str) -> Ended:
    return await asyncio.to_thread(dripline, *arguments, **environment)


async def sentences(commands: list[str], **environment: str) -> dict[str, str]:
    """What each of these commands ends with."""
    ended = await asyncio.gather(*(run(*command.split(), **environment) for command in commands))
    return {command: one.sentence for command, one in zip(commands, ended, strict=True)}


async def fetchval(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def is_empty(url: str) -> bool:
    return bool(await fetchval(url, "SELECT to_regnamespace('platform') IS NULL"))


@pytest.fixture
def told(tmp_path: Path, database_url: str) -> dict[str, str]:
    """What the operator sets."""
    return {"DATABASE_URL": database_url, "DATA_DIR": str(tmp_path / "data"), "SECRET_KEY": KEY}


async def test_a_backup_comes_back_and_every_mistake_before_that_changes_nothing(
    told: dict[str, str], empty_database_url: str, tmp_path: Path
) -> None:
    backup, empty = tmp_path / "monday", {**told, "DATABASE_URL": empty_database_url}
    made = await run("keys", "operator", "--scope", "admin", **told)
    assert made.out.startswith("dk_") and made.said == ""
    done = await run("backup", str(backup), **told)
    assert done.said == f"{backup} is complete. Keep it, and the erasure journal beside it, on another machine."
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in (backup, *backup.iterdir())}
    assert modes == {"monday": "0o700"} | dict.fromkeys(
        ("dripline.dump", "erasures.txt", "secrets.json", "backup.json"), "0o600"
    )

    assert await sentences([f"backup {backup}", f"restore {backup}"], **told) == {
        f"backup {backup}": f"{backup} exists; name a new folder for each backup.",
        f"restore {backup}": "The database is not empty; restore into a new one (another --data, or a new database in "
        "DATABASE_URL).",
    }
    (tmp_path / "packed.gz").write_bytes(b"\x1f\x8b\x08\x00")
    missing = [
        f"restore {tmp_path}/tuesday",
        f"restore {tmp_path}",
        f"restore {backup} --journal {tmp_path}/gone.txt",
        f"restore {backup} --journal {tmp_path}/packed.gz",
    ]
    assert await sentences(missing, **empty) == {
        missing[0]: f"{tmp_path}/tuesday is no backup: there is no such folder.",
        missing[1]: f"{tmp_path} is no backup: it has no backup.json.",
        missing[2]: f"The erasure journal {tmp_path}/gone.txt cannot be read (No such file or directory).",
        missing[3]: f"The erasure journal {tmp_path}/packed.gz is no text; unpack it first if it is packed.",
    }
    assert (await run("restore", str(backup), **{**empty, "SECRET_KEY": ""})).sentence.startswith(
        "SECRET_KEY is not the one under which the backup was made"
    )
    assert await is_empty(empty_database_url)

    restored = await run("restore", str(backup), **empty)
    assert restored.status == 0 and restored.said.startswith("Restored as of 20"), restored.said
    assert "Dispatch is held with 0 messages in the queue" in restored.said
    examined = await run("doctor", **empty)
    assert examined.status == 1 and "✗ dispatch is not held: nothing is sent; look at" in examined.out, examined.out
    books = await run("audit", **empty)
    assert books.status == 0, books.out
    revoked = await run("keys", "operator", "--revoke", **empty)
    assert revoked.said == "1 API key called operator revoked.", "what the backup held is there"


async def test_a_backup_of_another_program_and_a_torn_one_are_refused(
    told: dict[str, str], empty_database_url: str, tmp_path: Path
) -> None:
    backup, empty = tmp_path / "backup", {**told, "DATABASE_URL": empty_database_url}
    await run("backup", str(backup), **told)
    note = json.loads((backup / "backup.json").read_text())
    (backup / "secrets.json").rename(tmp_path / "secrets.json")
    assert (await run("restore", str(backup), **empty)).sentence.startswith(f"{backup}/secrets.json is not as it was")
    (backup / "backup.json").write_text(json.dumps({**note, "format": 2}))
    later = (await run("restore", str(backup), **empty)).sentence
    assert later == f"{backup} is no backup that this version can read (another format)."
    (backup / "backup.json").write_text(json.dumps(note))
    with open(backup / "dripline.dump", "ab") as dump:
        dump.truncate(dump.tell() // 2)
    torn = (await run("restore", str(backup), **empty)).sentence
    assert torn == f"{backup}/dripline.dump is not as it was written: take another backup."
    assert await is_empty(empty_database_url)


async def test_a_database_without_our_tables_becomes_no_deployment_by_mistake(
    empty_database_url: str, tmp_path: Path
) -> None:
    commands = [
        f"backup {tmp_path}/backup",
        "keys operator",
        "keys operator --revoke",
        "restored",
        "restored --nothing-lost",
        "bus move database kafka://127.0.0.1:1",
    ]
    said = await sentences(commands, DATABASE_URL=empty_database_url, DATA_DIR=str(tmp_path / "data"))
    assert set(said.values()) == {
        "The database has no tables of Dripline: mend DATABASE_URL, or run `dripline migrate` if it is to be a new one."
    }
    assert await is_empty(empty_database_url)
    assert list(tmp_path.iterdir()) == []


@asynccontextmanager
async def somebody(database_url: str, *grants: str) -> AsyncIterator[str]:
    """The URL of a user with a password and these rights."""
    connection = await asyncpg.connect(database_url)
    parts = urlsplit(database_url)
    rules = Path(await connection.fetchval("SHOW hba_file"))
    before = rules.read_text()
    try:
        await connection.execute("CREATE ROLE somebody LOGIN PASSWORD 'hunter2'")
        for grant in grants:
            await connection.execute(f"GRANT {grant} TO somebody")
        rules.write_text(f"host all somebody all scram-sha-256\n{before}")
        await connection.execute("SELECT pg_reload_conf()")
        yield urlunsplit(parts._replace(netloc=f"somebody:hunter2@{parts.netloc.rpartition('@')[2]}"))
    finally:
        rules.write_text(before)
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute("DROP OWNED BY somebody; DROP ROLE somebody")
        await connection.close()


async def test_a_backup_that_fails_says_why_and_leaves_nothing(told: dict[str, str], tmp_path: Path) -> None:
    rights = ("USAGE ON SCHEMA platform", "SELECT ON platform.deployment, platform.erasure")
    async with somebody(told["DATABASE_URL"], *rights) as url:
        wrong = await run(
            "backup", str(tmp_path / "backup"), **{**told, "DATABASE_URL": url.replace("hunter2", "guess")}
        )
        assert wrong.sentence == (
            'The database does not let us in: password authentication failed for user "somebody"; mend user or password in '
            "DATABASE_URL."
        )
        lacking = await run("backup", str(tmp_path / "backup"), **{**told, "DATABASE_URL": url})
    assert lacking.sentence.startswith("pg_dump failed: pg_dump: error: ") and "permission denied" in lacking.sentence
    assert "hunter2" not in lacking.sentence
    assert list(tmp_path.iterdir()) == []


async def test_what_needs_the_services_stopped_says_who_is_connected(told: dict[str, str]) -> None:
    process = await connect(told["DATABASE_URL"], "shop-1.4711.0a1b2c/notify")  # named as the services are
    try:
        said = await sentences(["restored", "restored --nothing-lost", "bus move database kafka://127.0.0.1:1"], **told)
    finally:
        await process.close()
    assert said == {
        "restored": "dripline restored needs the services stopped; connected is shop-1.4711.0a1b2c/notify.",
        "restored --nothing-lost": "dripline restored needs the services stopped; connected is shop-1.4711.0a1b2c/notify.",
        "bus move database kafka://127.0.0.1:1": "dripline bus move needs the services stopped; connected is "
        "shop-1.4711.0a1b2c/notify.",
    }


async def test_a_bus_that_cannot_be_moved_to_stays_where_it_is(
    told: dict[str, str], postgres_server: EmbeddedPostgres, empty_database_url: str
) -> None:
    nowhere = on_database(postgres_server.url, "nowhere")
    commands = [
        "bus move database kafka://127.0.0.1:1",
        f"bus move database {nowhere}",
        f"bus move database {empty_database_url}",
        "bus move database kafka://broker:port",
        "bus move database database",
    ]
    said = await sentences(commands, **told)
    assert said[commands[0]].startswith("The bus cannot be reached (") and said[commands[0]].endswith("mend TO.")
    assert said[commands[1]] == 'The database of the bus cannot be used: database "nowhere" does not exist; mend TO.'
    assert said[commands[2]].startswith("The database of the bus has no log table; run `dripline migrate`")
    assert said[commands[3]].startswith("The URL of a bus: must be host:port with a number from 1 to 65535 as the port")
    assert said[commands[4]] == "FROM and TO are one and the same bus; nothing was changed."
    assert await fetchval(told["DATABASE_URL"], "SELECT bus FROM platform.deployment") is None, "as before"
    lost = await run("bus", "move", f"{empty_database_url}", "database", "--lost", **told)
    assert lost.status == 0, lost.said
    moved = await fetchval(told["DATABASE_URL"], "SELECT bus FROM platform.deployment")
    assert moved is not None, "what is gone need not be reached"


async def test_a_database_that_cannot_be_reached_names_the_setting(tmp_path: Path) -> None:
    urls = {
        "postgresql://127.0.0.1:1/x": "The database cannot be reached: Connect call failed ('127.0.0.1', 1); start the server, "
        "or mend DATABASE_URL.",
        "postgresql://127.0.0.1:port/x": "Wrong setting. DATABASE_URL: must be host:port with a number from 1 to 65535",
        "postgresql://127.0.0.1:1/x?sslmode=perhaps": "DATABASE_URL cannot be used: `sslmode` parameter must be one of",
    }
    ended = await asyncio.gather(*(run("migrate", DATABASE_URL=url, DATA_DIR=str(tmp_path)) for url in urls))
    for one, wanted in zip(ended, urls.values(), strict=True):
        assert one.sentence.startswith(wanted)


async def test_rules_that_cannot_be_sent_say_why(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    commands = [
        f"rules apply {tmp_path}/rules --key k --url http://shop.example:port",
        f"rules apply {tmp_path}/nowhere --key k --url http://127.0.0.1:1",
    ]
    said = await sentences(commands)
    assert said[commands[0]].startswith("--url must be host:port with a number from 1 to 65535 as the port")
    assert f"{tmp_path}/nowhere" in said[commands[1]]
