"""Two versions side by side, as in a rolling upgrade: the later one has migrated first and writes what this one never heard
of; both read what both write, nothing is lost, doubled or put aside, and the old one can be put back."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.migrate import HISTORIES
from shared.events import EVENTS, PROFILE_EVENTS
from shared.settings import SERVICE_NAMES
from tests.faults.books import Observer, assert_all_agree, catch_up
from tests.faults.client import Client
from tests.faults.conftest import BOTH, SEED
from tests.faults.deployment import ONE_PROCESS, ROOT, Deployment, Process
from tests.support import histories, newer_version
from tests.support.newer_version import FIELD, VERSION
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

pytestmark = pytest.mark.timeout(240)
# What the later version's migrations may do while this one runs: add tables, and columns that may be absent. Each table is taken
# in a transaction of its own: whoever holds several at once and comes to others in another order than the services do waits for
# them while they wait for it.
EXPANDS = """\
op.execute("CREATE TABLE IF NOT EXISTS {schema}.table_of_a_later_version (id uuid PRIMARY KEY)")
tables = op.get_bind().exec_driver_sql(
    "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition"
    " AND c.relnamespace::regnamespace::text IN ({schemas}) AND c.relname <> 'alembic_version'"
).scalars().all()
with op.get_context().autocommit_block():
    for table in tables:
        op.execute(f"ALTER TABLE {{table}} ADD COLUMN IF NOT EXISTS column_of_a_later_version jsonb")
"""
EXPANDED = """
    SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE a.attname = 'column_of_a_later_version' AND c.relkind IN ('r', 'p') AND NOT c.relispartition"""


@BOTH
async def test_old_and_new_side_by_side(
    deploy: Callable[..., Deployment], bus_url: str | None, smtp_peer: SmtpPeer, folder: Path
) -> None:
    deployment = deploy((SERVICE_NAMES, SERVICE_NAMES), bus_url)
    old, new = deployment.processes
    new.module, new.tree = "newer_version", later_version(folder)
    await deployment.set_up()
    client = Client([old.url, new.url], deployment.write_key, folder / "answers.jsonl", rate=4, seed=SEED)
    async with Observer.of(deployment) as observer:
        client.start()
        await until(lambda: len(client.visitors) >= 4, limit=30, what="the old version is at work", every=0.1)
        await asyncio.to_thread(migrate_by, new)
        assert await fetchval(deployment, EXPANDED) > 40
        new.start()
        await new.ready()
        assert [await version_of(process) for process in (old, new)][1] == VERSION
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


async def test_a_database_of_the_first_release_is_taken_up(
    deploy: Callable[..., Deployment], smtp_peer: SmtpPeer, folder: Path
) -> None:
    deployment = deploy(ONE_PROCESS, None)
    [process] = deployment.processes
    await deployment.set_up()
    client = Client([process.url], deployment.write_key, folder / "answers.jsonl", rate=4, seed=SEED)
    client.start()
    await until(lambda: len(smtp_peer.letters()) >= 2, limit=60, what="letters go out", every=0.1)
    process.stop()
    await histories.put_back(deployment.database_url, folder / "first")
    assert await fetchval(deployment, "SELECT version_num FROM triggers.alembic_version") == histories.FIRST
    assert await fetchval(deployment, "SELECT count(*) FROM triggers.run") > 0, "with what was stored by then"
    async with Observer.of(deployment) as observer:
        deployment.command("migrate")
        process.start()
        await process.ready()
        seen = len(client.visitors)
        await until(lambda: len(client.visitors) >= seen + 4, limit=30, what="life goes on", every=0.1)
        await client.finish()
        await catch_up(observer, client)
        await assert_all_agree(deployment, observer, client, smtp_peer)
    assert process.logged("consumer.dead_letter") == 0
    deployment.stop()


def later_version(folder: Path) -> Path:
    """A copy of the source tree whose histories go on, as those of the next version will."""
    tree = folder / "later"
    for part in ("services", "shared", "demo", "rules"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(newer_version.__file__, tree)
    for history in HISTORIES:
        copied = dataclasses.replace(history, versions=tree / history.versions.relative_to(ROOT))
        schemas = "'platform', 'bus'" if history.schema == "platform" else f"'{history.schema}'"
        histories.add_migration(copied, EXPANDS.format(schema=history.schema, schemas=schemas))
    return tree


def migrate_by(process: Process) -> None:
    """`dripline migrate` of this process's version."""
    command = [sys.executable, "-m", process.module, "migrate"]
    ended = subprocess.run(
        command,
        cwd=process.tree,
        env={**os.environ, **process.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr[-4000:]}"


async def fetchval(deployment: Deployment, query: str) -> Any:
    connection = await asyncpg.connect(deployment.database_url)
    try:
        return await connection.fetchval(query)
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
