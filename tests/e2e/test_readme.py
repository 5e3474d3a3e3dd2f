"""The README's first own event, typed as it stands there: a letter for a cart that is worth one, silence for one that is not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.kafka import Kafka
from tests.faults.deployment import ONE_PROCESS, ROOT, Process
from tests.support.wait import until

README = (ROOT / "README.md").read_text()
CHAPTER = re.search(r"^## Your first own event\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
LONGEST = 60.0  # seconds until the letter lies there; the README says half a minute


def blocks() -> list[str]:
    """What is to be typed, without the start of the server."""
    assert CHAPTER is not None
    start, *others = re.findall(r"```sh\n(.*?)```", CHAPTER[1], re.DOTALL)
    assert start.startswith("make up")
    program = str(Path(sys.executable).with_name("dripline"))
    return [block.replace(".venv/bin/dripline", program) for block in others]


@pytest.fixture(params=["log table", "kafka"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Process]:
    """`dripline up` with the database it brings along."""
    bus: Kafka | None = request.getfixturevalue("kafka") if request.param == "kafka" else None
    with tempfile.TemporaryDirectory(prefix="dripline-test-readme-") as place:
        folder = Path(place)
        folder.chmod(0o755)  # PostgreSQL does not run as root
        environment = {"BUS_URL": f"{bus.url}/readme"} if bus else {}
        process = Process(ONE_PROCESS[0], environment, folder)
        process.start()
        try:
            await process.ready()
            yield process
        finally:
            await asyncio.to_thread(process.stop)


async def typed(server: Process, *lines: str) -> str:
    """What a shell prints that got these lines, in the checkout."""
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=ROOT,
        env={**os.environ, "DATA_DIR": str(server.folder / "data")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(180)
async def test_a_letter_for_a_cart_that_is_worth_one_and_silence_for_one_that_is_not(server: Process) -> None:
    keys_and_rule, posts, questions = blocks()
    cheap = re.search(r"At (\d+) roubles instead of 1 500 there is silence", README)
    assert cheap is not None
    other = posts.replace('"u-1"', '"u-2"').replace("anna@", "vera@").replace('"price": 1500', f'"price": {cheap[1]}')
    answers = await typed(server, keys_and_rule, posts, other)
    assert answers.count('{"success": true}') == 6, answers

    async def decided() -> list[dict[str, Any]]:
        found = [one for one in await messages(server) if one["state"] in ("sent", "withheld")]
        return found if len(found) == 2 else []

    await until(decided, limit=LONGEST, what="both are decided", every=0.5)
    by_state = {one["state"]: one for one in await decided()}
    assert by_state["sent"]["channel"] == "email"
    assert by_state["withheld"]["reason"]["code"] == "not-worth-it"
    said = await typed(server, keys_and_rule.splitlines()[0], questions)
    assert [said.count(word) for word in ('"state": "sent"', '"state": "withheld"', '"user_id"')] == [1, 1, 1], said
    assert '"entered": true' in said


async def messages(server: Process) -> list[dict[str, Any]]:
    keys = json.loads((server.folder / "data" / "credentials.json").read_text())
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {keys['api_key']}"}) as client:
        answer = await client.get(f"{server.url}/v1/messages")
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]
