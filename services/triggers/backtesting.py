"""Runs a backtest in a process of its own: `python -m services.triggers.backtesting`, the question as JSON on standard input,
the answer as JSON on standard output. It reads the store, decides in memory (`services.triggers.backtest`), writes nothing
but temporary tables, and ends by itself when its time is over."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from services.triggers import loading
from services.triggers.backtest import Someone, Tally, rules_of
from services.triggers.claims import united
from services.triggers.entries.schedule import ScheduleEntry
from services.triggers.rule import Rule
from services.triggers.steps.base import Happened, Version, World
from services.triggers.store import past
from services.triggers.store.past import Past
from services.triggers.versions import Rules
from shared import cdp, db
from shared.conditions import Moment, compile_sql
from shared.db import Tx
from shared.holidays import Holidays, read_holidays

PAGE = 100  # nodes that one transaction begins with
MICROSECOND = timedelta(microseconds=1)


class Question(msgspec.Struct, kw_only=True):
    """Which rule (its document has the ids of its steps) over which period (since, until], and how much may be spent.

    `rule`, `version`: under which ids its runs are counted; a saved rule's own, so that its runs and its control group are
    those that production drew. `people`: identifiers to begin with, at most; `seconds`: after which it stops.
    """

    url: str
    role: str | None
    member: str
    document: dict[str, Any]
    rule: UUID
    version: int
    since: datetime
    until: datetime
    zone: str
    country: str
    people: int
    seconds: float


async def backtest(question: Question) -> dict[str, Any]:
    """The answer: `Tally.report`, and whether all people of the period were looked at (`complete`)."""
    deadline = time.monotonic() + question.seconds
    connection = await db.connect(
        question.url, question.member, role=question.role, idle_in_transaction_session_timeout="60s"
    )
    try:
        await past.make(connection)
        return await _Backtest(question, connection, await read_holidays(connection), deadline).run()
    finally:
        await connection.close()


class _Backtest:
    def __init__(self, question: Question, connection: Tx, holidays: Holidays, deadline: float) -> None:
        self._question, self._connection = question, connection
        self._version = Version(rule=question.rule, number=question.version, document=Rule(question.document))
        self._rules: Rules = rules_of(self._version, question.since, holidays)
        self._world = self._rules.world(World(zone=ZoneInfo(question.zone), country=question.country))
        self._tally = Tally()
        self._seen: set[UUID] = set()
        self._deadline = deadline

    @property
    def _late(self) -> bool:
        return time.monotonic() > self._deadline

    async def run(self) -> dict[str, Any]:
        question, entry = self._question, self._version.document.enter
        limit = question.people + 1
        if isinstance(entry, ScheduleEntry):
            nodes = await past.all_nodes(self._connection, limit)
        else:
            nodes = await past.entering_nodes(
                self._connection, sorted(entry.names), question.since, question.until, limit
            )
        complete = len(nodes) < limit
        nodes = nodes[: question.people]
        for start in range(0, len(nodes), PAGE):
            if self._late:
                break
            async with self._connection.transaction(isolation="repeatable_read"):
                await self._page([node for node in nodes[start : start + PAGE] if node not in self._seen])
        return self._tally.report() | {"complete": complete and not self._late}

    async def _page(self, seeds: Sequence[UUID]) -> None:
        question = self._question
        if not seeds:
            return
        ever = [(node, datetime.min.replace(tzinfo=question.since.tzinfo), question.until) for node in seeds]
        everybody = united(await cdp.together(self._connection, ever))
        people = [Someone(nodes) for nodes in everybody if self._seen.isdisjoint(nodes)]
        self._seen.update(node for someone in people for node in someone.nodes)
        self._tally.people += len(people)
        tx = await past.fill(self._connection, sorted(node for someone in people for node in someone.nodes))
        await self._fill(tx, people)
        while busy := [(someone, items) for someone in people if (items := someone.due(question.until))]:
            if self._late:
                return
            await self._round(tx, busy)

    async def _fill(self, tx: Past, people: Sequence[Someone]) -> None:
        """Puts in what happened in the period."""
        question, document = self._question, self._version.document
        read = cast(Tx, tx)
        asked = [
            cdp.EventsQuestion(
                nodes=someone.nodes,
                names=document.names,
                learned_after=question.since,
                learned_until=question.until,
            )
            for someone in people
        ]
        found = await cdp.events_of(read, asked)
        moments = await loading.order_moments(read, [event for events in found for event in events])
        of_node = {node: someone for someone in people for node in someone.nodes}
        for someone, events in zip(people, found, strict=True):
            happened = [Happened(event=event, moment=moments.get(event.id, event.learned_at)) for event in events]
            someone.heard(happened, self._version)
        for node, at in await past.joinings(tx, sorted(of_node), question.since, question.until):
            of_node[node].joined(node, at)
        if isinstance(document.enter, ScheduleEntry):
            await self._expand(tx, document.enter, of_node)

    async def _expand(self, tx: Past, entry: ScheduleEntry, of_node: dict[UUID, Someone]) -> None:
        """Puts in whom each moment of the calendar may mean, by the condition's reading in SQL."""
        assert entry.condition is not None
        due = entry.next_after(self._question.since - MICROSECOND, self._world.zone)
        while due <= self._question.until and not self._late:
            moment = Moment(
                at=due,
                entered_at=due,
                zone=self._world.zone,
                topic=self._version.document.topic,
                holidays=self._world.holidays.at(due),
            )
            meant = compile_sql(entry.condition, moment)
            for row in await tx.fetch(meant.sql, *meant.params):
                of_node[row["node"]].meant(row["node"], due, self._version.rule)
            due = entry.next_after(due, self._world.zone)

    async def _round(self, tx: Past, busy: Sequence[tuple[Someone, list[Any]]]) -> None:
        """What is due next for these people: facts as of each moment are read at once, and then it is decided."""
        kind = self._version.document.kind
        groups = [
            loading.Group(nodes=someone.nodes, items=items, runs=[run for run in someone.runs.values() if run.open])
            for someone, items in busy
        ]
        material = await loading.load(cast(Tx, tx), groups, self._rules, self._world, kind)
        for someone, items in busy:
            before = len(someone.items), sum(run.number for run in someone.runs.values())
            changes = someone.decide(items, material, self._question.until, kind)
            self._tally.take(changes.decisions)
            if before == (len(someone.items), sum(run.number for run in someone.runs.values())) and not changes.moved:
                raise RuntimeError(f"nothing came of {items[0]!r}: a backtest that stands still")


def main() -> None:
    os.nice(10)  # what is live comes first
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    answer = asyncio.run(backtest(question))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
