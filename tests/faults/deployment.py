"""The real server as processes: one that runs all four services, or four that run one each, on either bus."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from shared.settings import SERVICE_NAMES, Settings, load
from tests.support.program import Ended, dripline
from tests.support.wait import until

ROOT = Path(__file__).resolve().parents[2]
ONE_PROCESS = (SERVICE_NAMES,)
FOUR_PROCESSES = tuple((name,) for name in SERVICE_NAMES)
PARTITIONS = 8
STARTING = 90.0  # seconds a process may take until it is ready, on a busy machine
RULE = """\
name: cart-under-fire
title: A cart left alone for two seconds, one letter
kind: marketing
enter: {on: [Product Added], idle: 2s, if: {cart: {not_empty: true}}}
again: never
stop: [{event: Order Completed}]
holdout: 0%
value: 900
steps:
  - send: {template: cart-reminder, channels: [email]}
"""
IDLE_SECONDS = 2.0  # as in the rule


@dataclass
class Process:
    """`dripline up` with some of the services, on a port that it keeps over restarts."""

    services: Sequence[str]
    environment: dict[str, str]
    folder: Path
    port: int = field(default_factory=lambda: free_port())
    starts: int = 0
    says: str = ""
    """What `readyz` answered last."""
    module: str = "services"
    """What is started: the program, or one that stands for another version of it."""
    tree: Path = ROOT
    """Where its source lies."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / f"{'-'.join(self.services)}-{self.port}.log"

    def start(self, fault: str = "") -> None:
        """Starts it; `fault` as DRIPLINE_FAULT takes it."""
        self.starts += 1
        environment = {**self.environment, "SERVICES": ",".join(self.services), "DRIPLINE_FAULT": fault}
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    self.module,
                    "up",
                    "--port",
                    str(self.port),
                    "--data",
                    str(self.folder / "data"),
                ],
                cwd=self.tree,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self._process is not None and self._process.poll() == -signal.SIGKILL

    @property
    def is_frozen(self) -> bool:
        """Whether SIGSTOP holds it (state T in /proc)."""
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"

    async def answers(self) -> bool:
        """Whether it is ready by its own account."""
        if not self.is_running:
            raise AssertionError(f"{self} ended by itself:\n{self.last_lines()}")
        try:
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"{self.url}/readyz", timeout=5)
        except httpx.TransportError as problem:
            self.says = repr(problem)
            return False
        self.says = answer.text
        return answer.status_code == 200

    async def ready(self) -> None:
        try:
            await until(self.answers, limit=STARTING, what=f"{self} is ready", every=0.2)
        except AssertionError as problem:
            raise AssertionError(f"{problem} {self.says}\n{self.last_lines()}") from None

    async def held(self) -> None:
        """Until only the hold after a restore keeps it from being ready."""

        async def is_held() -> bool:
            await self.answers()
            return self.says.startswith("{") and list(json.loads(self.says)["failing"]) == ["dispatch.open"]

        await until(is_held, limit=STARTING, what=f"{self} is held", every=0.2)

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and locks, and does nothing."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, frozen or not."""
        self._send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(20)

    def tell_to_stop(self) -> None:
        """SIGTERM, without waiting."""
        self._send(signal.SIGTERM)

    @property
    def exit_status(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    def stop(self, limit: float = 30) -> None:
        """An orderly end, which must come by itself."""
        if self._process is None or self._process.poll() is not None:
            return
        self._send(signal.SIGTERM)
        try:
            self._process.wait(limit)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
            raise AssertionError(f"{self} did not end within {limit:g} s of SIGTERM:\n{self.last_lines()}") from None

    def last_lines(self, count: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:]) if self.log.exists() else ""

    def logged(self, event: str) -> int:
        """How often it logged this event."""
        return sum(f'"{event}"' in line for line in self.log.read_text(errors="replace").splitlines())

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def __str__(self) -> str:
        return f"the process of {', '.join(self.services)} on port {self.port}"


class Deployment:
    """Processes over one database and one bus, with one rule that writes to who leaves a cart alone."""

    def __init__(
        self, folder: Path, *, database_url: str, bus_url: str | None, smtp_url: str, layout: Sequence[Sequence[str]]
    ) -> None:
        self.folder, self.database_url, self.bus_url = folder, database_url, bus_url or database_url
        self.environment = {
            "DATABASE_URL": database_url,
            "BUS_URL": self.bus_url,
            "SMTP_URL": smtp_url,
            "PARTITIONS": str(PARTITIONS),
            "PUBLIC_URL": "http://shop.example",
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "info",
        }
        self.processes = [Process(services, self.environment, folder) for services in layout]

    async def set_up(self) -> None:
        """The first start, by one process that runs all: tables, keys, template and rule."""
        complete = [process for process in self.processes if set(process.services) == set(SERVICE_NAMES)]
        first = complete[0] if complete else Process(SERVICE_NAMES, self.environment, self.folder)
        first.start()
        try:
            await first.ready()
            await until(
                (self.folder / "data" / "credentials.json").exists, what="the first start wrote its credentials"
            )
            rules = self.folder / "rules"
            (rules / "templates").mkdir(parents=True)
            for template in (ROOT / "rules" / "templates").glob("cart-reminder.*"):
                shutil.copy(template, rules / "templates")
            (rules / "cart-under-fire.yml").write_text(RULE)
            self.command("rules", "apply", str(rules), "--activate", "--url", first.url, "--key", self.api_key)
        finally:
            if not complete:
                first.stop()

    async def start(self) -> None:
        """Starts those that do not run yet."""
        for process in self.processes:
            if not process.is_running:
                process.start()
        for process in self.processes:
            await process.ready()

    async def start_held(self) -> None:
        """Starts them on a restored database: nothing but the hold keeps them from being ready."""
        for process in self.processes:
            process.start()
        for process in self.processes:
            await process.held()

    def stop(self) -> None:
        """Every process must end by itself when it is told to; all are gone afterwards."""
        failures = []
        for process in self.processes:
            if process.is_running and process.is_frozen:
                process.thaw()
            try:
                process.stop()
            except AssertionError as failure:
                failures.append(str(failure))
        assert not failures, "\n".join(failures)

    def of(self, service: str) -> list[Process]:
        """The processes that run this service."""
        return [process for process in self.processes if service in process.services]

    def settings(self) -> Settings:
        """What the processes are told, for what a test does beside them."""
        return load(
            database_url=self.database_url,
            bus_url=self.bus_url,
            partitions=PARTITIONS,
            data_dir=self.folder / "data",
        )

    @property
    def credentials(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / "data" / "credentials.json").read_text())
        return found

    @property
    def api_key(self) -> str:
        return self.credentials["api_key"]

    @property
    def write_key(self) -> str:
        """Of the secret source."""
        return self.credentials["server_write_key"]

    def command(self, *arguments: str) -> str:
        """What a `dripline` command prints; it must succeed."""
        ended = self.tried(*arguments)
        said = f"{ended.out}\n{ended.said}"
        assert ended.status == 0, f"dripline {' '.join(arguments[:2])} ended with {ended.status}:\n{said[-4000:]}"
        return said

    def tried(self, *arguments: str) -> Ended:
        """What comes of a `dripline` command that is told the same as the services."""
        return dripline(*arguments, **self.environment, DATA_DIR=str(self.folder / "data"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
