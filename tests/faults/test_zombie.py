"""A process stopped inside a transaction, with people's rows locked: the others go on, and it is refused afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.settings import SERVICE_NAMES
from tests.faults.books import Observer, assert_all_agree, catch_up
from tests.faults.client import Client
from tests.faults.conftest import BOTH, SEED
from tests.faults.deployment import Deployment, Process
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

MOVES_ON_WITHIN = 15.0  # seconds


def refused(process: Process) -> int:
    """How many of its batches did not commit: its position had been moved, or its connection was ended by the successor (that
    the position alone refuses it, with the connection as it was, is shown by tests/service/test_fencing.py)."""
    return process.logged("consumer.fenced") + process.logged("consumer.retry")


@pytest.mark.timeout(300)
@BOTH
async def test_a_process_stopped_inside_a_transaction_is_replaced_and_refused(
    deploy: Callable[..., Deployment], bus_url: str | None, smtp_peer: SmtpPeer, folder: Path
) -> None:
    deployment = deploy((SERVICE_NAMES, SERVICE_NAMES), bus_url)
    await deployment.set_up()
    successor, zombie = deployment.processes
    zombie.start(fault="consumer.in_transaction:stop:30")
    await zombie.ready()
    before = Client([successor.url], deployment.write_key, folder / "before.jsonl", rate=12, seed=SEED)
    async with Observer.of(deployment) as observer:
        before.start()
        await until(lambda: zombie.is_frozen, limit=60, what="the process has stopped itself")
        stopped_at = time.monotonic()
        await before.finish()

        async def moved_on() -> bool:
            return not any([await observer.lag(service) for service in ("profile", "triggers", "dispatch")])

        left = MOVES_ON_WITHIN - (time.monotonic() - stopped_at)
        await until(moved_on, limit=left, what="the other process has handled what the stopped one held", every=0.1)
        await catch_up(observer, before)
        refused_before = refused(zombie)  # of its own, while it lived: an ordinary retry is none that we wait for
        zombie.thaw()
        await until(
            lambda: refused(zombie) > refused_before, limit=15, what="its batch is refused when it continues", every=0.1
        )
        await assert_all_agree(deployment, observer, before, smtp_peer)
        await zombie.ready()
    deployment.stop()
