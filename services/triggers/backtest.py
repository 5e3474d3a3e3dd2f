"""A backtest: what a rule would have done, by the loop that decides in production, over what is stored.

Pure: a queue in memory in place of the table, the same `Person` that decides about claims, the same engine. Facts and
events come in from outside (`services.triggers.backtesting` reads them, with imported events as if they had come when
they occurred). What a rule emits is not applied: its own events are in the store if it was active then.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from services.triggers.changes import Changes, Decision, timer_changes
from services.triggers.deciding import Person
from services.triggers.material import Key, Material
from services.triggers.queue import Item, ItemKind, idle_item
from services.triggers.run import Known, Run
from services.triggers.steps.base import Happened, Version
from services.triggers.versions import Change, Rules, concerns
from shared.events import Intended, Outcome
from shared.holidays import Holidays
from shared.ids import derived_id

SAMPLES = 20
AT_ONCE = 100  # items of one person that one round looks at


def rules_of(version: Version, since: datetime, holidays: Holidays) -> Rules:
    """The rule alone, active from `since` on."""
    change = Change(rule=version.rule, number=1, state="active", version=version.number, valid_from=since)
    return Rules([change], {(version.rule, version.number): version}, holidays)


@dataclass
class Someone:
    """Everybody who may be one person within the period, with what waits for them and the runs they are in."""

    nodes: list[UUID]
    items: dict[Key, Item] = field(default_factory=dict)
    runs: dict[UUID, Run] = field(default_factory=dict)
    profile: UUID | None = None

    def put(self, item: Item) -> None:
        """As in the table: of two with one key the earlier counts."""
        known = self.items.get((item.node, item.id))
        if known is None or item.due < known.due:
            self.items[item.node, item.id] = item

    def due(self, until: datetime) -> list[Item]:
        """What is due next, in order; as much as one round looks at."""
        found = sorted((item for item in self.items.values() if item.due <= until), key=lambda item: item.order)
        return found[:AT_ONCE]

    def heard(self, happened: Iterable[Happened], version: Version) -> None:
        """Puts in what events of the period ask for: themselves where they concern the rule, and idle timers."""
        document = version.document
        names = document.forward_names if document.enter.idle is not None else document.names
        for one in happened:
            event = one.event
            if concerns(names, event.name):
                payload = {"event": event, "moment": one.moment}
                self.put(Item(node=event.node, id=event.id, kind=ItemKind.EVENT, due=event.learned_at, payload=payload))
            if document.enter.idle is not None and document.enter.matches(event):
                self.put(idle_item(version.rule, event, document.enter.idle))

    def joined(self, node: UUID, at: datetime) -> None:
        """Puts in that the node came to others."""
        self.put(Item(node=node, id=derived_id("joined", node, at), kind=ItemKind.MERGED, due=at))

    def meant(self, node: UUID, due: datetime, rule: UUID) -> None:
        """Puts in that a moment of the calendar may mean this person."""
        id = derived_id("schedule", rule, due.isoformat())
        self.put(Item(node=node, id=id, kind=ItemKind.SCHEDULE, due=due, rule=rule))

    def decide(self, items: Sequence[Item], material: Material, until: datetime, kind: str) -> Changes:
        """One round over these items; what it says is applied to the queue and the runs. `kind`: of the rule."""
        changes = Changes()
        known = [Known.of(run) for run in self.runs.values()]
        Person(items, [run for run in self.runs.values() if run.open], known, material, changes, kind).decide(until)
        for run, _ in changes.runs.values():
            self.runs[run.id] = run
        put, gone = timer_changes(changes)
        for key in gone:
            self.items.pop(key, None)
        for item in put:
            self.items[item.node, item.id] = item
        return changes


@dataclass
class Tally:
    """What came of it. Intents are counted by step and template, for those treated and those held out."""

    people: int = 0
    entered: Counter[str] = field(default_factory=Counter)
    days: Counter[str] = field(default_factory=Counter)
    intents: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    stood: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    goals: Counter[str] = field(default_factory=Counter)
    revenue: defaultdict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    runs: dict[UUID, dict[str, Any]] = field(default_factory=dict)

    def take(self, decisions: Iterable[Decision]) -> None:
        """Counts what was decided, in its order."""
        for decision in decisions:
            if decision.decided is None:
                self.failed += 1
                continue
            self._take(decision, decision.decided.run)

    def _take(self, decision: Decision, run: Run) -> None:
        arm = "held_out" if run.ghost else "treated"
        if decision.before == 0:
            self.entered[arm] += 1
            self.days[decision.at.date().isoformat()] += 1
            self._sample(decision, run)
        if run.live:
            self.stood[run.path[-1]] += 1
        elif decision.what == run.ended_as or decision.before == 0:  # and not what came of it afterwards
            self.ended[run.ended_as or ""] += 1
        for effect in decision.effects:
            if isinstance(effect, Intended):
                self.intents[effect.step, effect.template, run.ghost] += 1
                if run.id in self.runs:
                    told = {"step": effect.step, "template": effect.template, "at": effect.decided_at}
                    self.runs[run.id]["messages"].append(told)
            if isinstance(effect, Outcome):
                self.goals[arm] += int(effect.goal_at is not None)
                self.revenue[arm] += effect.revenue
        if run.id in self.runs:
            self.runs[run.id] |= {"ended_at": run.ended_at, "ended_as": run.ended_as, "ended_why": run.ended_why}

    def _sample(self, decision: Decision, run: Run) -> None:
        if len(self.runs) >= SAMPLES:
            return
        self.runs[run.id] = {
            "run": run.id,
            "profile": decision.whose.profile,
            "entered_at": run.entered_at,
            "event": {"id": run.event.id, "name": run.event.name} if run.event else None,
            "ghost": run.ghost,
            "messages": [],
        }

    def report(self) -> dict[str, Any]:
        """As the API tells it. `revenue` and `goals` are of runs whose goal window closed within the period."""
        by_step: dict[tuple[str, str], dict[str, int]] = {}
        for (step, template, ghost), count in sorted(self.intents.items()):
            row = by_step.setdefault((step, template), {"treated": 0, "held_out": 0})
            row["held_out" if ghost else "treated"] += count
        return {
            "people": self.people,
            "entered": {arm: self.entered[arm] for arm in ("treated", "held_out")},
            "intents": [{"step": step, "template": template, **row} for (step, template), row in by_step.items()],
            "steps": [{"step": step, "stood": count} for step, count in self.stood.items()],
            "inside": self.entered.total() - self.ended.total(),
            "ended": dict(self.ended),
            "failed": self.failed,
            "goals": {arm: self.goals[arm] for arm in ("treated", "held_out")},
            "revenue": {arm: float(round(self.revenue[arm], 2)) for arm in ("treated", "held_out")},
            "days": dict(sorted(self.days.items())),
            "samples": list(self.runs.values()),
        }
