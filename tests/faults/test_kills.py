"""kill -9 of services under load: nothing answered with 200 is lost, no marketing message is sent twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.settings import SERVICE_NAMES
from tests.faults.books import Observer, assert_all_agree, catch_up
from tests.faults.client import Client
from tests.faults.conftest import BOTH, KILLS, SEED
from tests.faults.deployment import FOUR_PROCESSES, Deployment, Process
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

VISITORS_A_SECOND = 12  # about 60 events
BUSY_LIMIT = 30.0  # seconds until a service must have been caught in the middle of something


@pytest.mark.timeout(180 + 60 * KILLS)
@BOTH
async def test_services_killed_under_load_lose_nothing_and_send_nothing_twice(
    deploy: Callable[..., Deployment], kind: str, bus_url: str | None, smtp_peer: SmtpPeer, folder: Path
) -> None:
    chance = random.Random(f"{SEED} {kind}")
    deployment = deploy(FOUR_PROCESSES, bus_url)
    await deployment.set_up()
    await deployment.start()
    client = Client(
        [process.url for process in deployment.of("ingest")],
        deployment.write_key,
        folder / "answers.jsonl",
        rate=VISITORS_A_SECOND,
        seed=SEED,
    )
    with_the_provider = 0
    async with Observer.of(deployment) as observer:
        client.start()
        for pause, service in drawn(chance):
            await asyncio.sleep(pause)  # to vary the moment; nothing waits for it
            process = deployment.of(service)[0]
            await freeze_in_the_middle(process, service, observer, client)
            if service == "dispatch":
                with_the_provider += (await observer.message_states())["calling"]
            process.kill()
            process.start()
            await process.ready()
        await client.finish()
        await catch_up(observer, client)
        await assert_all_agree(deployment, observer, client, smtp_peer, may_be_unknown=with_the_provider)
        assert client.visitors
    deployment.stop()


def drawn(chance: random.Random) -> list[tuple[float, str]]:
    """For each kill the pause before it in seconds, and the service; none comes again before all have come."""
    services: list[str] = []
    while len(services) < KILLS:
        services += chance.sample(SERVICE_NAMES, len(SERVICE_NAMES))
    return [(chance.uniform(0.5, 2.5), service) for service in services[:KILLS]]


async def freeze_in_the_middle(process: Process, service: str, observer: Observer, client: Client) -> None:
    """Stops the process at a moment at which it has something in flight: only then a kill counts."""

    async def caught() -> bool:
        process.freeze()
        if await observer.in_flight(service, client):
            return True
        process.thaw()
        return False

    await until(caught, limit=BUSY_LIMIT, what=f"{process} is caught with something in flight")
