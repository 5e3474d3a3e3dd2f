"""Death at the worst moments: the process kills itself at each named hook point in turn, under load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shared.hooks import POINTS
from tests.faults.books import Observer, assert_all_agree, catch_up
from tests.faults.client import Client
from tests.faults.conftest import BOTH, SEED
from tests.faults.deployment import ONE_PROCESS, Deployment
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

VISITORS_A_SECOND = 8
NTH = 3  # the process dies when it comes to the point for the third time
REACHED_WITHIN = 60.0  # seconds
# What happens at the other points has nothing to do with the bus: they are reached once, on the log table.
AT_THE_BUS = sorted(point for point in POINTS if point.startswith(("ingest.", "consumer.", "relay.")))


@pytest.mark.timeout(600)
@BOTH
async def test_a_process_that_dies_at_every_hook_point_loses_nothing_and_sends_nothing_twice(
    deploy: Callable[..., Deployment], kind: str, bus_url: str | None, smtp_peer: SmtpPeer, folder: Path
) -> None:
    deployment = deploy(ONE_PROCESS, bus_url)
    await deployment.set_up()
    process = deployment.processes[0]
    process.stop()
    client = Client([process.url], deployment.write_key, folder / "answers.jsonl", rate=VISITORS_A_SECOND, seed=SEED)
    client.start()
    async with Observer.of(deployment) as observer:
        for point in sorted(POINTS) if kind == "postgres" else AT_THE_BUS:
            process.start(fault=f"{point}:kill:{NTH}")
            await until(lambda: not process.is_running, limit=REACHED_WITHIN, what=f"the process dies at {point}")
            assert process.was_killed, f"at {point} it ended, but not by SIGKILL:\n{process.last_lines()}"
        process.start()
        await process.ready()
        await client.finish()
        await catch_up(observer, client)
        await assert_all_agree(deployment, observer, client, smtp_peer)
    deployment.stop()
