"""A process that is told to stop under load: it says so, ends what is under way, and hands its work over at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from services.draining import BROKEN_OFF
from shared.embedded_postgres import EmbeddedPostgres
from shared.settings import SERVICE_NAMES
from tests.faults.books import Observer, assert_all_agree, catch_up
from tests.faults.client import Client
from tests.faults.conftest import BOTH, SEED
from tests.faults.deployment import ONE_PROCESS, Deployment
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

pytestmark = pytest.mark.timeout(180)
VISITORS_A_SECOND = 6
DRAIN_SECONDS = 1.0
LONGEST_END = 30.0
# Requests under way are answered within 5 s, the database gets 3 s; the rest is for a busy machine.
DATABASE_GONE = 15.0


@BOTH
async def test_a_process_that_is_told_to_stop_under_load_hands_over_at_once(
    deploy: Callable[..., Deployment], bus_url: str | None, smtp_peer: SmtpPeer, folder: Path
) -> None:
    deployment = deploy((SERVICE_NAMES, SERVICE_NAMES), bus_url)
    deployment.environment["DRAIN_SECONDS"] = str(DRAIN_SECONDS)
    await deployment.set_up()
    await deployment.start()
    leaving, staying = deployment.processes
    smtp_peer.behave(delay_seconds=0.5)
    urls = [process.url for process in deployment.processes]
    client = Client(urls, deployment.write_key, folder / "answers.jsonl", rate=VISITORS_A_SECOND, seed=SEED)
    async with Observer.of(deployment) as observer:
        client.start()

        async def calls_of_the_leaving_one() -> bool:
            return (await observer.message_states())["calling"] > 0

        await until(calls_of_the_leaving_one, limit=30, what="exchanges with the mail server are under way")
        told = time.monotonic()
        leaving.tell_to_stop()
        await until(lambda: is_not_ready(leaving.url), limit=DRAIN_SECONDS + 5, what="it says that it is leaving")
        await until(lambda: not leaving.is_running, limit=LONGEST_END, what="it ends by itself")
        assert time.monotonic() - told < LONGEST_END
        assert leaving.exit_status == 0
        assert await observer.leases_of_the_dead(staying) == 0, (
            "it gave its leases back, nobody waits for them to run out"
        )
        await client.finish()
        smtp_peer.behave(delay_seconds=0)
        await catch_up(observer, client)
        await assert_all_agree(deployment, observer, client, smtp_peer, may_be_unknown=0)
    assert staying.logged("leases.taken_over") == 0
    assert leaving.logged("leases.not_given_back") == 0
    deployment.stop()


@pytest.mark.parametrize("kind", ["postgres"])
async def test_a_process_whose_database_is_gone_ends_in_good_time(
    deploy: Callable[..., Deployment],
    bus_url: str | None,
    own_postgres: EmbeddedPostgres,
    smtp_peer: SmtpPeer,
    folder: Path,
) -> None:
    deployment = deploy(ONE_PROCESS, bus_url)
    await deployment.set_up()
    await deployment.start()
    [process] = deployment.processes
    smtp_peer.behave(delay_seconds=60)
    client = Client([process.url], deployment.write_key, folder / "answers.jsonl", rate=VISITORS_A_SECOND, seed=SEED)
    async with Observer.of(deployment) as observer:
        client.start()

        async def calls() -> bool:
            return (await observer.message_states())["calling"] > 0

        await until(calls, limit=30, what="exchanges with the mail server are under way")
    await client.finish()
    with silent(own_postgres):
        said_before = len(process.log.read_text())
        process.tell_to_stop()
        await until(lambda: not process.is_running, limit=DATABASE_GONE, what="it ends by itself", every=0.1)
        said = process.log.read_text()[said_before:]
    assert process.exit_status == BROKEN_OFF
    assert process.logged("drain.database_gone") == 1
    assert "most recent call first" not in said, "nobody has to read where each thread stood"


@contextmanager
def silent(server: EmbeddedPostgres) -> Iterator[None]:
    """Its machine is gone without a word: connections stay open, and nothing is answered."""
    assert server.pid is not None
    processes = [server.pid, *map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split())]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


async def is_not_ready(url: str) -> bool:
    """It still answers, and says that it was told to stop."""
    async with httpx.AsyncClient() as http:
        try:
            answer = await http.get(f"{url}/readyz", timeout=5)
        except httpx.TransportError:
            raise AssertionError("it stopped answering before it said that it is not ready") from None
        return answer.status_code == 503 and "drain" in answer.json()["failing"]
