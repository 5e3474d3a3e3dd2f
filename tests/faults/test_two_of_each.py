"""Two processes of each service, eight in all, as a shop runs them for safety: they share the work, and one of each is enough.

On Kafka, as such a shop has it; two processes that run everything share the work of either bus in test_drain.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from shared.settings import SERVICE_NAMES
from tests.faults.books import Observer, assert_all_agree, catch_up
from tests.faults.client import Client
from tests.faults.conftest import SEED
from tests.faults.deployment import FOUR_PROCESSES, Deployment, Process
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

pytestmark = pytest.mark.timeout(300)
VISITORS_A_SECOND = 6
WHILE_ALL_WORK, WHILE_HALF_WORK = 12, 12  # visitors
# What a process of the service has counted if it did a part of the work.
WORK = {
    "ingest": "dripline_ingest_events_accepted_total",
    "profile": 'dripline_records_total{group="profile",result="applied"',
    "triggers": 'dripline_records_total{group="triggers",result="applied"',
    "dispatch": 'dripline_records_total{group="dispatch",result="applied"',
}


def did(process: Process) -> float:
    """How much of its service's work this process has done."""
    (service,) = process.services
    lines = httpx.get(f"{process.url}/metrics", timeout=10).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(WORK[service]))


@pytest.mark.parametrize("kind", ["kafka"])
async def test_two_of_each_service_share_the_work_and_one_of_each_goes_on_alone(
    deploy: Callable[..., Deployment], bus_url: str | None, smtp_peer: SmtpPeer, folder: Path
) -> None:
    deployment = deploy((*FOUR_PROCESSES, *FOUR_PROCESSES), bus_url)
    await deployment.set_up()
    await deployment.start()
    urls = [process.url for process in deployment.of("ingest")]
    client = Client(urls, deployment.write_key, folder / "answers.jsonl", rate=VISITORS_A_SECOND, seed=SEED)
    async with Observer.of(deployment) as observer:
        client.start()
        await until(lambda: len(client.visitors) >= WHILE_ALL_WORK, limit=30, what="visitors come")
        await until(
            lambda: all(did(process) for process in deployment.processes),
            limit=30,
            what=f"each of the {2 * len(SERVICE_NAMES)} processes has done a part of the work",
            every=0.5,
        )
        for process in deployment.processes[: len(SERVICE_NAMES)]:
            process.kill()
        after = len(client.visitors)
        await until(lambda: len(client.visitors) >= after + WHILE_HALF_WORK, limit=30, what="visitors come after it")
        await client.finish()
        await catch_up(observer, client)
        await assert_all_agree(deployment, observer, client, smtp_peer)
    deployment.stop()
