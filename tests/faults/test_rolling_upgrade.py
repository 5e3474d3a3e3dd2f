"""Two versions side by side, as in a rolling upgrade: the later one has migrated first and writes what this one never heard
of; both read what both write, nothing is lost, doubled or put aside, and the old one can be put back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import asyncpg
import httpx
import pytest

from shared.events import EVENTS, PROFILE_EVENTS
from shared.settings import SERVICE_NAMES
from tests.faults.books import Observer, assert_all_agree, catch_up
from tests.faults.client import Client
from tests.faults.conftest import BOTH, SEED
from tests.faults.deployment import Deployment, Process
from tests.support.newer_version import FIELD, VERSION
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

pytestmark = pytest.mark.timeout(240)
SCHEMAS = ["profile", "triggers", "dispatch", "ingest", "platform"]


@BOTH
async def test_old_and_new_side_by_side(
    deploy: Callable[..., Deployment], bus_url: str | None, smtp_peer: SmtpPeer, folder: Path
) -> None:
    deployment = deploy((SERVICE_NAMES, SERVICE_NAMES), bus_url)
    old, new = deployment.processes
    new.module = "tests.support.newer_version"
    await deployment.set_up()
    client = Client([old.url, new.url], deployment.write_key, folder / "answers.jsonl", rate=4, seed=SEED)
    async with Observer.of(deployment) as observer:
        await expand(deployment)
        new.start()
        await new.ready()
        assert [await version_of(process) for process in (old, new)][1] == VERSION
        client.start()
        await until(lambda: len(smtp_peer.letters()) >= 4, limit=60, what="letters go out", every=0.1)
        await until(lambda: both_wrote(observer), limit=20, what="both wrote", every=0.5)
        old.stop()
        seen = len(client.visitors)
        await until(lambda: len(client.visitors) >= seen + 4, limit=30, what="life goes on with the later version")
        old.start()  # a roll-back, or a process that was restarted in the midst of the upgrade
        await old.ready()
        assert old.logged("migrate.later_version") == 1
        await client.finish()
        await catch_up(observer, client)
        await assert_all_agree(deployment, observer, client, smtp_peer)
    assert old.logged("consumer.dead_letter") == 0
    deployment.stop()


async def expand(deployment: Deployment) -> None:
    """What the later version's migration may do while this one runs: add columns that may be absent, add tables."""
    connection = await asyncpg.connect(deployment.database_url)
    try:
        tables = await connection.fetch(
            """
            SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = ANY($1) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
            """,
            SCHEMAS,
        )
        for schema, table in tables:
            await connection.execute(f"ALTER TABLE {schema}.{table} ADD COLUMN column_of_a_later_version jsonb")
        await connection.execute("CREATE TABLE triggers.table_of_a_later_version (id uuid PRIMARY KEY)")
        for schema in SCHEMAS:
            await connection.execute(f"UPDATE {schema}.alembic_version SET version_num = 'of a later version'")
        assert len(tables) > 40
    finally:
        await connection.close()


async def version_of(process: Process) -> str:
    async with httpx.AsyncClient() as http:
        return str((await http.get(f"{process.url}/version")).json()["version"])


async def both_wrote(observer: Observer) -> bool:
    """Whether every bus topic that the rule needs has records of the later version and of this one."""
    for topic in (EVENTS, PROFILE_EVENTS):
        of_the_new = [FIELD in value for value in await observer.values(topic)]
        if all(of_the_new) or not any(of_the_new):
            return False
    return True
