"""Why somebody did not enter a rule: the engine is run again as of that moment, and says it in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from services.triggers import engine, idle, loading, wording
from services.triggers.entries.schedule import ScheduleEntry
from services.triggers.run import Known, Refused
from services.triggers.steps.base import Happened, Version, World
from services.triggers.store import people
from services.triggers.versions import Rules
from shared import cdp
from shared.db import Tx
from shared.facts.model import EventFact, Facts

A_YEAR = timedelta(days=366)  # how far back an event is looked for


@dataclass(frozen=True)
class Answer:
    """`entered`: there is, or would be, a run after all. `asked_at`: the T of the decision that the answer is about."""

    entered: bool
    code: str
    why: str
    asked_at: datetime | None = None
    run: UUID | None = None
    event: UUID | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """Why did not this person (by any of its nodes at the moment) enter this rule by `at`?"""

    rule: UUID
    node: UUID
    at: datetime


async def why_not(tx: Tx, question: Question, rules: Rules, world: World) -> Answer:
    """Derives the answer from what is stored; writes nothing."""
    change = rules.at(question.rule, question.at)
    if change is None:
        return Answer(False, "not_active", "the rule had not been activated by then")
    version = rules.active(question.rule, question.at)
    if version is None:
        return Answer(False, "not_active", f"the rule was {change.state} then")
    whose = (await loading.whose_were(tx, [(question.node, question.at)])).get((question.node, question.at))
    if whose is None:
        return Answer(False, "nobody", "nobody was known by this identifier then")
    asker = _Asker(tx, question, rules, rules.world(world), version, whose.nodes)
    entry = version.document.enter
    if isinstance(entry, ScheduleEntry):
        return await asker.by_schedule(entry)
    return await (asker.by_idle() if entry.idle is not None else asker.by_event())


class _Asker:
    def __init__(
        self, tx: Tx, question: Question, rules: Rules, world: World, version: Version, nodes: Sequence[UUID]
    ) -> None:
        self._tx, self._question, self._rules, self._world, self._version = tx, question, rules, world, version
        self._nodes = nodes
        self._entry = version.document.enter

    async def by_event(self) -> Answer:
        events = await self._events()
        matching = [event for event in events if self._entry.matches(event)]
        if not matching:
            return self._nothing_matched(events)
        last = matching[-1]
        if (before := self._before_the_rule(last.learned_at)) is not None:
            return before
        return await self._ask(last.learned_at, last.node, str(last.id), last)

    async def by_idle(self) -> Answer:
        document = self._version.document
        names = self._entry.names | {match.event for match in document.stop_matches}
        events = await self._events(names)
        counted = await loading.order_moments(self._tx, events)
        happened = [Happened(event=event, moment=counted.get(event.id, event.learned_at)) for event in events]
        matching = [event for event in events if self._entry.matches(event)]
        if not matching:
            return self._nothing_matched([event for event in events if event.name in self._entry.names])
        assert self._entry.idle is not None
        last = matching[-1]
        due = last.learned_at + self._entry.idle
        if due > self._question.at:
            why = f"the last {last.name} was at {wording.clock(last.learned_at)}; the question is put at {wording.clock(due)}"
            return Answer(False, "waiting", why, due, event=last.id)
        if (before := self._before_the_rule(last.learned_at)) is not None:
            return before
        answer = idle.ask(document, due, happened)
        if isinstance(answer, idle.StoppedBefore):
            return Answer(False, "stopped", answer.why, due, event=last.id)
        return await self._ask(due, last.node, str(last.id), last)

    async def by_schedule(self, entry: ScheduleEntry) -> Answer:
        due = last_moment(entry, self._question.at, self._world)
        if due is None or self._before_the_rule(due) is not None:
            return Answer(False, "waiting", "no moment of the schedule has come since the rule was activated")
        found = await self._tx.fetch(
            "SELECT id FROM triggers.run WHERE rule = $1 AND node = ANY($2::uuid[]) AND entered_at = $3",
            self._question.rule,
            list(self._nodes),
            due,
        )
        if found:
            return Answer(True, "entered", f"the person did enter at {wording.clock(due)}", due, found[0][0])
        return await self._ask(due, self._question.node, due.isoformat(), None)

    # ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _events(self, names: frozenset[str] | None = None) -> list[EventFact]:
        at = self._question.at
        (events,) = await cdp.events_of(
            self._tx,
            [
                cdp.EventsQuestion(
                    nodes=list(self._nodes),
                    names=names or self._entry.names,
                    learned_after=at - A_YEAR,
                    learned_until=at,
                )
            ],
        )
        return events

    def _nothing_matched(self, events: Sequence[EventFact]) -> Answer:
        names = " or ".join(sorted(self._entry.names))
        if not events:
            return Answer(
                False, "no_event", f"no {names} of this person was known by {wording.clock(self._question.at)}"
            )
        last = events[-1]
        if last.history:
            why = f"the last {last.name} came from an import, and history starts nothing"
        elif last.order_key is not None and not last.first:
            why = f"the last {last.name} repeats an order that was known, or its source may not state money"
        else:
            why = f"the last {last.name}, of {wording.clock(last.learned_at)}, does not meet `where`"
        return Answer(False, "no_match", why, last.learned_at, event=last.id)

    def _before_the_rule(self, moment: datetime) -> Answer | None:
        if self._rules.active(self._question.rule, moment) is not None:
            return None
        why = f"the rule was not active yet, or paused, at {wording.clock(moment)}; activating it does not reach back"
        return Answer(False, "not_active", why, moment)

    async def _ask(self, at: datetime, origin: UUID, key: str, event: EventFact | None) -> Answer:
        """Runs the engine as of `at`, with the version that was in force then."""
        version = self._rules.active(self._question.rule, at) or self._version
        facts: Facts | None = (await loading.facts_as_of(self._tx, {(origin, at): version.document.needs})).get(
            (origin, at)
        )
        if facts is None:
            return Answer(False, "nobody", "nobody was known by this identifier then", at)
        _, everything = await people.runs_of(self._tx, facts.nodes)
        asking = engine.Asking(version=version, at=at, origin=origin, key=key, event=event)
        mine = [one for one in everything if one.rule == version.rule]
        for one in mine:
            if event is not None and one.entered_at == at and one.origin == origin:
                return Answer(True, "entered", f"the person did enter at {wording.clock(at)}", at, one.id, event.id)
        found = engine.enter(asking, [_as_of(one, at) for one in mine if one.entered_at < at], facts, self._world)
        event_id = event.id if event else None
        if isinstance(found, Refused):
            return Answer(False, found.code, found.why, at, event=event_id, seen=found.seen)
        return Answer(True, "would_enter", "as far as is known the person enters", at, event=event_id, seen=found.seen)


def _as_of(known: Known, at: datetime) -> Known:
    """What was known of a run at a moment: an end that came later had not come."""
    if known.ended_at is None or known.ended_at <= at:
        return known
    fields = {name: getattr(known, name) for name in Known.__struct_fields__}
    return Known(**{**fields, "ended_at": None, "ended_as": None})


def last_moment(entry: ScheduleEntry, at: datetime, world: World) -> datetime | None:
    """The last moment of the schedule up to `at`; None if none came within a year."""
    for back in (timedelta(days=2), timedelta(days=40), A_YEAR):
        found, moment = None, at - back
        while (moment := entry.next_after(moment, world.zone)) <= at:
            found = moment
        if found is not None:
            return found
    return None
