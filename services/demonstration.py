"""`dripline demo`: the simulated shop (a process of its own that uses the public HTTP API) in virtual time, then a report.

The shop and this process talk over a pipe, one JSON object a line: the shop says to which moment the clock is to go
before it posts (`at`), and up to when it has posted everything (`close`). No HTTP request sets the clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from services.demonstration_report import print_report
from services.first_start import make_credentials
from services.rules_files import SHIPPED, apply_directory
from services.run import Server, run
from services.virtual import VirtualTime
from services.welcome import welcome
from shared.clock import SystemClock, VirtualClock
from shared.errors import ConfigurationError
from shared.settings import Settings

STREAM_LIMIT = 1 << 20  # bytes of one line from the shop


def demonstrate(settings: Settings, database_url: str, *, days: int, stay: bool, customers: int, seed: int) -> bool:
    """Runs the demonstration; returns whether something went wrong (the books do not balance, the shop failed)."""
    demonstration = Demonstration(settings, days=days, stay=stay, customers=customers, seed=seed)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings, database_url, clock=demonstration.clock, ready=demonstration.ready))
    return demonstration.failed


class Demonstration:
    """One run of the demonstration. The clock begins `days` ago and is released at the present."""

    def __init__(self, settings: Settings, *, days: int, stay: bool, customers: int, seed: int) -> None:
        self._settings, self._stay, self._customers, self._seed = settings, stay, customers, seed
        present = SystemClock().now()
        self._end = present.replace(minute=0, second=0, microsecond=0)
        self._start = self._end - timedelta(days=days)
        self._repeated = settings.credentials_file.exists()
        self.clock = VirtualClock(present if self._repeated else self._start)
        self.failed = False
        self._console = Console(stderr=True)

    async def ready(self, server: Server) -> None:
        made = await make_credentials(server.context, server.origin)
        if made is None:
            self._tell_what_was_before()
        else:
            self._note("begun")
            await self._live(server, made)
            self._note("lived")
        if self._stay:
            # Not earlier: what then becomes due would be under way while the books are counted.
            self.clock.release()
            welcome(self._console, server, made)
            await asyncio.Event().wait()

    @property
    def _notes(self) -> Path:
        return self._settings.data_dir / "demo.json"

    def _note(self, what: Literal["begun", "lived"]) -> None:
        self._notes.write_text(json.dumps({"life": what, "from": f"{self._start}", "to": f"{self._end}"}) + "\n")

    def _tell_what_was_before(self) -> None:
        """A life that was broken off cannot be taken up: what its people would have done next is not known."""
        try:
            noted = json.loads(self._notes.read_text())
        except FileNotFoundError:
            noted = {"life": None}
        before = {
            None: "has been used without the simulated shop",
            "begun": "holds a shop whose life was broken off before its end",
            "lived": "holds a shop that has lived already",
        }[noted["life"]]
        self.failed = noted["life"] != "lived"
        self._console.print(
            f"{self._settings.data_dir} {before}: it is shown as it is. For a new one name another folder, with "
            "--data (make demo ARGS='--data …'), or delete this one.",
            soft_wrap=True,
            highlight=False,
        )

    async def _live(self, server: Server, made: dict[str, Any]) -> None:
        time = VirtualTime(server, self.clock)
        await asyncio.to_thread(
            apply_directory,
            SHIPPED,
            server.origin,
            made["api_key"],
            self._settings.data_dir,
            activate=True,
            console=self._console,
        )
        stats = await self._run_shop(server, time, made)
        report = await print_report(server, stats, time.slices, Console())
        self.failed = self.failed or not report

    async def _run_shop(self, server: Server, time: VirtualTime, made: dict[str, Any]) -> dict[str, Any]:
        environment = {
            **os.environ,
            "DEMO_URL": server.origin,
            "DEMO_SITE_WRITE_KEY": made["site_write_key"],
            "DEMO_SERVER_WRITE_KEY": made["server_write_key"],
            "DEMO_API_KEY": made["api_key"],
            "DEMO_START": self._start.isoformat(),
            "DEMO_END": self._end.isoformat(),
            "DEMO_CUSTOMERS": str(self._customers),
            "DEMO_SEED": str(self._seed),
        }
        shop = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "demo",
            env=environment,
            limit=STREAM_LIMIT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is ours to handle: a shop that ends by itself is a fault
        )
        try:
            return await self._talk(shop, time)
        finally:
            if shop.returncode is None:
                shop.kill()
            await shop.wait()

    async def _talk(self, shop: asyncio.subprocess.Process, time: VirtualTime) -> dict[str, Any]:
        assert shop.stdin is not None and shop.stdout is not None
        total = (self._end - self._start).total_seconds()
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[day]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task(
                "three weeks of a shop" if total > 20 * 86400 else "the shop lives", total=total, day=""
            )

            def moved(moment: datetime) -> None:
                done = (moment - self._start).total_seconds()
                progress.update(bar, completed=done, day=f"{moment:%d %b %H:%M}")

            while line := await shop.stdout.readline():
                said = json.loads(line)
                if "at" in said:
                    answer: dict[str, Any] = {
                        "ok": True,
                        "now": time.go_to(datetime.fromisoformat(said["at"])).isoformat(),
                    }
                elif "close" in said:
                    await time.close(datetime.fromisoformat(said["close"]), moved)
                    answer = {"closed": True}
                elif said.get("done"):
                    await time.close(self._end, moved)
                    return said.get("stats", {})
                else:
                    answer = {"ok": True}
                shop.stdin.write(json.dumps(answer).encode() + b"\n")
                await shop.stdin.drain()
        raise ConfigurationError(
            f"The simulated shop ended early (exit status {await shop.wait()}); its own words are above."
        )
