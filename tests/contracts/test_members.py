"""Who reads a partition, on both buses: members share, the dead are replaced, and a stopped one cannot come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from shared.bus.base import Bus
from shared.events import EVENTS
from tests.contracts import probe
from tests.contracts.conftest import BOTH, World
from tests.contracts.test_bus import record
from tests.support.wait import until

pytestmark = BOTH
ROOT = Path(__file__).resolve().parents[2]


class Member:
    """A probe that runs as a process."""

    def __init__(self, database_url: str, bus_url: str, log: Path, fault: str = "") -> None:
        self.log = log
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.contracts.probe", database_url, bus_url],
                cwd=ROOT,
                env={**os.environ, "DRIPLINE_FAULT": fault},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith("member "), log.read_text()
        self.name = said.split()[1]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def is_stopped(self) -> bool:
        """Whether SIGSTOP holds it (state T in /proc)."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"

    @property
    def events(self) -> Counter[str]:
        """How often it logged what."""
        return Counter(part.split('"')[0] for part in self.log.read_text().split('"event": "')[1:]) or Counter(
            part.split('"')[0] for part in self.log.read_text().split('"event":"')[1:]
        )

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Crew:
    """The members of one test, and what they did."""

    def __init__(self, database_url: str, bus_url: str, folder: Path) -> None:
        self.database_url, self.bus_url, self.folder = database_url, bus_url, folder
        self.members: list[Member] = []

    def join(self, fault: str = "") -> Member:
        log = self.folder / f"member-{len(self.members)}.log"
        member = Member(self.database_url, self.bus_url, log, fault)
        self.members.append(member)
        return member

    async def ask(self, question: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetch(question)
        finally:
            await connection.close()

    async def shares(self) -> dict[str, int]:
        """Member → partitions it holds a valid lease for."""
        rows = await self.ask(
            "SELECT holder, count(*) FROM platform.lease "
            f"WHERE pool = 'probe:{EVENTS}' AND expires_at > clock_timestamp() GROUP BY 1"
        )
        return {holder: count for holder, count in rows if holder}

    async def effects(self) -> Counter[str]:
        """Value → how often it took effect."""
        return Counter(row["value"] for row in await self.ask("SELECT value FROM probe.effect"))


@pytest.fixture
async def crew(world: World, database_url: str, tmp_path: Path) -> AsyncIterator[Crew]:
    await probe.make_tables(database_url)
    crew = Crew(database_url, world.url, tmp_path)
    yield crew
    for member in crew.members:
        member.end()


@pytest.fixture
def values() -> Iterator[str]:
    return (f"value {number:05}" for number in range(100_000))


async def append(bus: Bus, values: Iterator[str], count: int) -> list[str]:
    taken = [next(values) for _ in range(count)]
    await bus.append([record(value, value) for value in taken])
    return taken


async def test_members_share_the_partitions_and_everything_takes_effect_once(
    crew: Crew, world: World, values: Iterator[str]
) -> None:
    bus = await world.open("writer")
    one = crew.join()
    sent = await append(bus, values, 200)
    two = crew.join()

    async def fair() -> bool:
        return await crew.shares() == {one.name: 2, two.name: 2}

    await until(fair, limit=15, what="each of the two holds half of the partitions")

    async def both_work() -> bool:
        sent.extend(await append(bus, values, 20))
        return {row["member"] for row in await crew.ask("SELECT DISTINCT member FROM probe.effect")} == {
            one.name,
            two.name,
        }

    await until(both_work, limit=15, what="each of the two has handled something", every=0.2)
    await until(lambda: _all_there(crew, sent), limit=15, what="everything took effect")
    assert await crew.effects() == Counter(sent)


async def test_the_partitions_of_a_killed_member_move_on(crew: Crew, world: World, values: Iterator[str]) -> None:
    bus = await world.open("writer")
    one, two = crew.join(), crew.join()
    await until(lambda: _holds_half(crew, one), limit=15, what="both hold partitions")
    sent = await append(bus, values, 100)
    one.send(signal.SIGKILL)
    sent += await append(bus, values, 100)
    await until(lambda: _all_there(crew, sent), limit=15, what="the other one has handled everything")
    assert await crew.effects() == Counter(sent)
    assert await crew.shares() == {two.name: probe.PARTITIONS}


@pytest.mark.parametrize("point", ["consumer.in_transaction", "consumer.fetched"])
async def test_a_stopped_member_is_replaced_and_refused_when_it_continues(
    crew: Crew, world: World, values: Iterator[str], point: str
) -> None:
    bus = await world.open("writer")
    zombie = crew.join(fault=f"{point}:stop")
    sent = await append(bus, values, 100)
    await until(lambda: zombie.is_stopped, limit=15, what="the member stopped itself")
    stopped_at = time.monotonic()
    assert await crew.effects() == Counter(), "nothing is committed yet"
    successor = crew.join()
    await until(lambda: _all_there(crew, sent), limit=15, what="another one has taken over and handled everything")
    assert time.monotonic() - stopped_at < 15
    zombie.send(signal.SIGCONT)
    # Its connections were ended by the successor, or else its compare-and-set finds the position moved.
    await until(
        lambda: zombie.events["consumer.fenced"] + zombie.events["consumer.retry"],
        limit=15,
        what="the zombie's batch is refused",
    )
    sent += await append(bus, values, 100)
    await until(lambda: _all_there(crew, sent), limit=15, what="both go on")
    assert await crew.effects() == Counter(sent)
    assert successor.process.poll() is None
    assert zombie.process.poll() is None


async def _all_there(crew: Crew, sent: list[str]) -> bool:
    return set(sent) <= set(await crew.effects())


async def _holds_half(crew: Crew, member: Member) -> bool:
    return (await crew.shares()).get(member.name) == probe.PARTITIONS // 2
