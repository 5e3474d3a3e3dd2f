"""The clients as programs of their own: which they are, how they are started, what they need to be here."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from scripts.node_clients import ClientsUnavailable, fetch

FOLDER = Path(__file__).parent / "programs"
REQUIRED = "DRIPLINE_REQUIRE_CLIENTS"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
ENDING = 60.0  # seconds a client may take to send what it was told, with all its retries

Call = dict[str, Any]


@dataclass(frozen=True)
class Client:
    """`program`: the file in programs/; `public`: it runs in front of everybody, with the public key; `stays`: it has no
    end of its own, as a page has none; `heeds`: it waits as long as Retry-After says; `gzip`: it sends gzip; `calls`: what
    it can say."""

    name: str
    program: str
    module: str = ""
    public: bool = False
    stays: bool = False
    heeds: bool = True
    gzip: bool = False
    calls: tuple[str, ...] = ("identify", "track", "page", "screen", "group", "alias")

    def __str__(self) -> str:
        return self.name


SEGMENT_PYTHON = Client("segment-analytics-python", "segment_python.py", module="segment.analytics", gzip=True)
# Its back-off is its own: Retry-After is not read.
RUDDER_PYTHON = Client("rudder-sdk-python", "rudder_python.py", module="rudderstack.analytics", heeds=False, gzip=True)
SEGMENT_NODE = Client("@segment/analytics-node", "segment_node.cjs")
RUDDER_NODE = Client("@rudderstack/rudder-sdk-node", "rudder_node.cjs", gzip=True)
JITSU = Client("@jitsu/js", "jitsu.cjs", public=True, calls=("identify", "track", "page", "group"))
WEBSITE_CALLS = ("identify", "track", "page", "group", "alias")
JSDOM = Client("@segment/analytics-next in jsdom", "website_jsdom.cjs", public=True, stays=True, calls=WEBSITE_CALLS)
CHROMIUM = Client(
    "@segment/analytics-next in Chromium", "website_chromium.cjs", public=True, stays=True, calls=WEBSITE_CALLS
)
MODULE = Client("a module of a website in jsdom", "module_jsdom.cjs", public=True, stays=True)
SERVERS = (SEGMENT_PYTHON, RUDDER_PYTHON, SEGMENT_NODE, RUDDER_NODE)
ALL = (*SERVERS, JITSU, JSDOM, CHROMIUM)


@cache
def node_modules() -> Path | str:
    """The folder, or why there is none. npm is asked once a session."""
    try:
        return fetch()
    except ClientsUnavailable as reason:
        return str(reason)


@cache
def chromium() -> str | None:
    return next((found for name in CHROMIUMS if (found := shutil.which(name))), None)


def missing(client: Client) -> str | None:
    """What the client needs and is not here; None if all is."""
    if client.module:
        there = importlib.util.find_spec(client.module.partition(".")[0]) is not None
        return None if there else f"{client.name} is not installed."
    if isinstance(found := node_modules(), str):
        return found
    if client is CHROMIUM and chromium() is None:
        return "Chromium is missing: install it (on Debian: apt install chromium)."
    return None


def need(client: Client) -> None:
    """Skips the test if the client cannot run here, or fails if it must."""
    if reason := missing(client):
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{reason} {REQUIRED}=1 forbids to skip.", pytrace=False)
        pytest.skip(f"CLIENTS: {reason}")


@dataclass
class Running:
    """A started client."""

    client: Client
    process: asyncio.subprocess.Process

    async def gone(self) -> None:
        """Waits until it has ended, however."""
        await asyncio.wait_for(self.process.communicate(), ENDING)

    async def ended(self) -> str:
        """Waits until it has ended by itself, without an error. Returns what it wrote to standard error."""
        _, errors = await asyncio.wait_for(self.process.communicate(), ENDING)
        said = errors.decode(errors="replace")
        assert self.process.returncode == 0, f"{self.client} ended with {self.process.returncode}:\n{said[-3000:]}"
        return said


@asynccontextmanager
async def started(
    client: Client, url: str, key: str, calls: Sequence[Call], options: dict[str, Any] | None = None, **more: str
) -> AsyncIterator[Running]:
    """The client as a process that makes these calls. `more`: further environment; it is gone at the end."""
    need(client)
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    program = str(FOLDER / client.program)
    if client.module:
        command = [sys.executable, program]
    else:
        environment["NODE_PATH"] = str(node_modules())
        environment["CHROMIUM"] = chromium() or ""
        command = ["node", program]
    process = await asyncio.create_subprocess_exec(
        *command,
        url,
        key,
        json.dumps(calls),
        json.dumps(options or {}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**environment, **more},
    )
    running = Running(client, process)
    try:
        yield running
    finally:
        if process.returncode is None:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), 15)
    except TimeoutError:
        process.kill()
        await process.wait()
