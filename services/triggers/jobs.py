"""Backtests, each in a process of its own and one at a time: they take seconds of CPU, and no job holds up the loop."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import structlog

from services.triggers.backtesting import Question
from services.triggers.rule import Rule
from services.triggers.steps.base import World
from shared.errors import Problem
from shared.service import Context

log = structlog.get_logger(__name__)

SECONDS = 60.0  # that a backtest decides before it answers with what it has
GRACE = 30.0  # seconds more until it is killed
PEOPLE = 10_000


class Backtests:
    """What the management API asks for."""

    def __init__(self, context: Context, world: World) -> None:
        self._context, self._world = context, world
        self._free = asyncio.Semaphore(1)

    async def run(
        self, rule: Rule, id: UUID, version: int, since: datetime, until: datetime, people: int
    ) -> dict[str, Any]:
        """What the rule would have done in (since, until]. Raises Problem 429 while another is running here, 503 if it fails."""
        if self._free.locked():
            detail = "A backtest is running in this process: try again when it is done."
            raise Problem(429, "One backtest at a time", detail, headers={"Retry-After": "5"})
        database = self._context.database
        question = Question(
            url=database.url,
            role=database.role,
            member=f"{self._context.member}/backtest",
            document=rule.document,
            rule=id,
            version=version,
            since=since,
            until=until,
            zone=self._world.zone.key,
            country=self._world.country,
            people=people,
            seconds=SECONDS,
        )
        async with self._free:
            return await _answered(question)


async def _answered(question: Question) -> dict[str, Any]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.triggers.backtesting",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(question.seconds + GRACE):
            out, complaint = await child.communicate(msgspec.json.encode(question))
    except TimeoutError:
        detail = "The backtest did not end in time and was stopped; ask for a shorter period or fewer people."
        raise Problem(503, "The backtest takes too long", detail, headers={"Retry-After": "60"}) from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        log.error("triggers.backtest_failed", code=child.returncode, error=_last_line(complaint))
        raise Problem(503, "The backtest failed", "The log of the server says why.", headers={"Retry-After": "60"})
    answer: dict[str, Any] = msgspec.json.decode(out)
    return answer


def _last_line(complaint: bytes) -> str:
    """The kind of the error alone: its text may tell of people."""
    lines = complaint.decode(errors="replace").strip().splitlines()
    return lines[-1].partition(":")[0][:200] if lines else ""
