"""Ctrl-C at the terminal, with the embedded database and nothing else: it ends in good time and without a word of an error,
nothing is left running, and the next start goes on where this one stopped.

A terminal sends SIGINT to all processes in the foreground, so these tests send it to the whole group.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from shared.postmaster_file import PostmasterFile
from tests.faults.deployment import free_port
from tests.support.program import PROGRAM
from tests.support.wait import until_blocking

STARTING = 60.0  # seconds, on a busy machine
OUTSIDE = ("DATABASE_URL", "BUS_URL", "SMTP_URL", "DATA_DIR", "SERVICES")  # what would lead it elsewhere
IN_GOOD_TIME = 20.0  # seconds, on a busy machine

pytestmark = pytest.mark.timeout(180)


@dataclass
class Program:
    """`dripline …` in the foreground of a terminal of its own."""

    process: subprocess.Popen[bytes]
    port: int
    data: Path
    said: Path

    @property
    def output(self) -> str:
        return self.said.read_text(errors="replace")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys(self) -> dict[str, Any]:
        keys: dict[str, Any] = json.loads((self.data / "credentials.json").read_text())
        return keys

    def ready(self) -> None:
        """Until it answers and its first keys are written."""

        def answers() -> bool:
            assert self.process.poll() is None, self.output
            try:
                ready = httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
            except httpx.TransportError:
                return False
            return ready and (self.data / "credentials.json").exists()

        until_blocking(answers, STARTING, "it is ready", every=0.1)

    @property
    def complaints(self) -> list[str]:
        """Lines that somebody at the terminal would take for an error."""
        return [line for line in self.output.splitlines() if "Traceback" in line or '"level": "error"' in line]

    def family(self) -> list[psutil.Process]:
        """What it has started, PostgreSQL included."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def ctrl_c(self) -> int:
        """The exit status; all that it had started must be gone with it."""
        family = self.family()
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            status = self.process.wait(IN_GOOD_TIME)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"it did not end within {IN_GOOD_TIME:g} s of Ctrl-C:\n{self.output[-3000:]}"
            ) from None
        assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
        return status


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dripline-test-ctrl-c-"))
    made.chmod(0o755)  # the embedded database is another user when the tests run as root
    yield made
    shutil.rmtree(made, ignore_errors=True)


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[Program]:
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name not in OUTSIDE}
    said = folder / f"said-{port}.txt"
    with open(said, "wb") as output:
        process = subprocess.Popen(
            [PROGRAM, *arguments, "--port", str(port), "--data", str(folder / "data")],
            env={**environment, "PARTITIONS": "2"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Program(process, port, folder / "data", said)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def post(program: Program) -> None:
    event = {"messageId": "m-1", "userId": "u-1", "event": "Product Viewed", "properties": {"product_id": "p-1"}}
    answer = httpx.post(f"{program.url}/v1/track", json=event, auth=(program.keys["server_write_key"], ""), timeout=10)
    assert answer.status_code == 200, answer.text


def test_ctrl_c_ends_up_and_the_next_start_goes_on_where_it_stopped(folder: Path) -> None:
    with started(folder, "up") as first:
        first.ready()
        cluster = next(path.parent for path in first.data.rglob("postmaster.pid"))
        post(first)
        # At once: whether anything but ingest has seen the event is open.
        assert first.ctrl_c() == 0, first.output
        assert first.complaints == []
        assert PostmasterFile.of(cluster).lines == (), "PostgreSQL ended as it should, too"

    with started(folder, "up") as second:
        second.ready()
        assert second.keys == first.keys
        owner = {"Authorization": f"Bearer {second.keys['api_key']}"}

        def events() -> list[dict[str, Any]]:
            found = httpx.get(f"{second.url}/v1/profiles", params={"user_id": "u-1"}, headers=owner, timeout=10)
            if not (items := found.json()["items"]):
                return []
            (person,) = items
            told = httpx.get(f"{second.url}/v1/profiles/{person['id']}/events", headers=owner, timeout=10)
            return [event for event in told.json()["items"] if event["name"] == "Product Viewed"]

        until_blocking(events, 20, "the event that was answered before the end is applied")
        post(second)  # by a client that never heard the answer
        repeated = 'dripline_records_total{group="profile",result="repeated",topic="events"} 1.0'
        until_blocking(
            lambda: repeated in httpx.get(f"{second.url}/metrics", timeout=10).text, 20, "the repeat is known"
        )
        assert len(events()) == 1
        assert second.ctrl_c() == 0, second.output
        assert second.complaints == []


def test_ctrl_c_while_it_is_starting_says_no_more_than_that(folder: Path) -> None:
    with started(folder, "up") as program:
        until_blocking(lambda: list(program.data.rglob("postmaster.pid")), STARTING, "PostgreSQL is starting")
        program.ctrl_c()
        assert program.complaints == []


def test_ctrl_c_ends_the_demonstration_and_its_shop(folder: Path) -> None:
    with started(folder, "demo", "--days", "60") as program:
        program.ready()

        def shop_lives() -> bool:
            return any(one.cmdline()[-2:] == ["-m", "demo"] for one in program.family())

        until_blocking(shop_lives, STARTING, "the shop lives")
        assert program.ctrl_c() == 0, program.output
        assert program.complaints == [] and "ended early" not in program.output, program.output
