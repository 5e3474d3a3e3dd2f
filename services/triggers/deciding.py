"""Decisions about people whose material is at hand: items in their order, runs, facts as of each moment. Pure.

Claims use it for everything that waits for the watermark, the consumer for transactional rules, and it is derived again
with it. One `Person` here is everybody who may be one person within the time that is looked at: nodes that were together
at some moment, so that merges and splits fall into the one order too.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from services.triggers import engine, idle
from services.triggers.changes import Changes, Decision
from services.triggers.effects import CONTACT_PURGED
from services.triggers.material import Material, Whose
from services.triggers.queue import Item, ItemKind, happened_of, timers_of
from services.triggers.run import Decided, Known, Refused, Run
from services.triggers.steps.base import Happened, Version
from services.triggers.versions import concerns
from shared.events import Event
from shared.facts.model import Facts


class Person:
    """The items of one person (see the module) and the state they change, in memory."""

    def __init__(
        self,
        items: Iterable[Item],
        runs: Iterable[Run],
        known: Iterable[Known],
        material: Material,
        changes: Changes,
        kind: str,
    ) -> None:
        """:param kind: marketing: items that waited for the watermark; transactional: records taken at once"""
        self._waiting = [(item.order, item) for item in items]
        heapq.heapify(self._waiting)
        self._runs = {run.id: run for run in runs}
        self._known = {one.id: one for one in known}
        self._material, self._changes, self._kind = material, changes, kind
        self._rules = material.rules

    def decide(self, until: datetime) -> None:
        """Handles the items in order. What is armed meanwhile and due by `until` waits for the next claim together with all
        that comes behind it: its facts are not at hand."""
        stop: tuple[Any, ...] | None = None
        while self._waiting:
            order, item = heapq.heappop(self._waiting)
            if stop is not None and stop < order:
                return
            for armed in self._handle(item):
                if armed.due <= until and (stop is None or armed.order < stop):
                    stop = armed.order

    def _handle(self, item: Item) -> list[Item]:
        """Handles one item; returns the timers that were armed."""
        whose = self._material.whose.get((item.node, item.due))
        armed = []
        if whose is None:  # nobody had the node then
            self._changes.handled.append((item.node, item.id))
            return []
        match item.kind:
            case ItemKind.EVENT:
                armed = self._event(item, whose)
            case ItemKind.MERGED:
                armed = self._merged(item, whose)
            case ItemKind.IDLE:
                armed = self._idle(item, whose)
            case ItemKind.SCHEDULE:
                armed = self._schedule(item, whose)
            case _:
                armed = self._timer(item, whose)
        return armed

    # ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _event(self, item: Item, whose: Whose) -> list[Item]:
        self._changes.handled.append((item.node, item.id))
        facts = self._material.facts.get((item.node, item.due))
        if facts is None:
            return []
        happened, armed = happened_of(item), []
        cause = {"kind": "event", "event": str(happened.event.id), "name": happened.event.name}
        if happened.moment != happened.event.learned_at:
            cause["moment"] = happened.moment.isoformat()
        inside = self._open_runs(whose, item.due)
        entering = {
            version.rule: version
            for version in self._rules.all_active(item.due, self._kind)
            if version.document.enter.idle is None and version.document.enter.matches(happened.event)
        }
        for rule in sorted({run.rule for run in inside} | entering.keys()):
            for run in [run for run in inside if run.rule == rule]:
                armed += self._tell(run, happened, item.due, whose, cause)
            if rule in entering:
                asking = engine.Asking(
                    version=entering[rule],
                    at=item.due,
                    origin=happened.event.node,
                    key=str(happened.event.id),
                    event=happened.event,
                )
                armed += self._enter(asking, facts, whose, cause)
        return armed

    def _tell(self, run: Run, happened: Happened, at: datetime, whose: Whose, cause: dict[str, Any]) -> list[Item]:
        armed = self._follow_edit(run, at, whose, happened.event.node)
        run = self._runs[run.id]
        version = self._rules.version(run.rule, run.version)
        removed = self._removed(run, at)
        if not run.open or (removed is None and not concerns(version.document.forward_names, happened.event.name)):
            return armed
        return armed + self._advance(run, removed or happened, at, whose, cause, happened.event.node)

    def _follow_edit(self, run: Run, at: datetime, whose: Whose, node: UUID | None = None) -> list[Item]:
        """An edit that says `on_edit: move` takes the run along before anything else happens to it, if its step is there."""
        target = self._rules.mover(run.rule, run.version, at) if run.live else None
        if target is None or target.document.flow.find(run.path[-1]) is None:
            return []
        before = self._rules.version(run.rule, run.version)
        cause = {"kind": "moved", "from": before.number}
        return self._advance(run, engine.Moved(before), at, whose, cause, node, target)

    def _open_runs(self, whose: Whose, at: datetime) -> list[Run]:
        """The person's runs of this kind of rule at a moment, in order of rule and run."""
        found = []
        for run in self._runs.values():
            if run.origin in whose.nodes and run.open and run.entered_at <= at and self._is_ours(run):
                found.append(run)
        return sorted(found, key=lambda run: (run.rule, run.id))

    def _is_ours(self, run: Run) -> bool:
        return self._readable(run) and self._rules.version(run.rule, run.version).document.kind == self._kind

    def _merged(self, item: Item, whose: Whose) -> list[Item]:
        """Two people became one: of two live runs of one rule the earlier stays."""
        self._changes.handled.append((item.node, item.id))
        first: dict[tuple[UUID, str], Run] = {}
        live = [
            run for run in self._runs.values() if run.live and run.origin in whose.nodes and run.entered_at <= item.due
        ]
        for run in sorted(live, key=lambda run: (run.entered_at, run.id)):
            earlier = first.setdefault((run.rule, self._slot(run)), run)
            if earlier is not run and self._readable(run):
                why = engine.Removed("merged", "two people became one, and the earlier of their runs stays")
                self._advance(run, why, item.due, whose, {"kind": "merged"})
        return []

    def _slot(self, run: Run) -> str:
        if not self._readable(run):
            return run.subject
        return self._rules.version(run.rule, run.version).document.slot(run.subject)

    # ── timers ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _timer(self, item: Item, whose: Whose) -> list[Item]:
        """The timer of a run: its step, its goal window, or its removal."""
        run, key = (self._runs.get(item.run) if item.run else None), (item.node, item.id)
        if run is None or not run.open:
            self._changes.handled.append(key)
            return []
        if not self._readable(run):
            self._changes.held.append(key)  # until a version of the program comes that reads its rule
            return []
        armed = self._follow_edit(run, item.due, whose)
        run = self._runs[run.id]
        stimulus, kind = self._stimulus(item, run)
        if isinstance(stimulus, engine.StepDue):
            if run.due is None or run.due > item.due:  # later is well: it was held while its rule was paused
                if run.id not in self._changes.runs:
                    self._changes.handled.append(key)
                return armed  # overtaken by what came before it in this claim: its row follows the run
            if self._paused(run.rule, item.due):
                self._changes.held.append(key)
                return armed
        armed += self._advance(run, stimulus, item.due, whose, {"kind": kind}) if stimulus else []
        if item.kind == ItemKind.REMOVED or self._runs[run.id] is run:
            self._changes.handled.append(key)
        return armed

    def _paused(self, rule: UUID, at: datetime) -> bool:
        change = self._rules.at(rule, at)
        return change is not None and change.state == "paused"

    def _readable(self, run: Run) -> bool:
        try:
            return self._rules.version(run.rule, run.version) is not None
        except KeyError:
            return False

    def _stimulus(self, item: Item, run: Run) -> tuple[engine.Stimulus | None, str]:
        removed = self._removed(run, item.due)
        match item.kind:
            case ItemKind.GOAL:
                return engine.WindowClosed(), "goal"
            case ItemKind.STEP:
                return removed or engine.StepDue(), "step"
        return removed, "removed"

    def _removed(self, run: Run, at: datetime) -> engine.Removed | None:
        found = self._rules.removal(run.rule, run.version, at) if run.live else None
        return engine.Removed(*found) if found else None

    def _held(self, item: Item) -> bool:
        """Lets it wait for a program that reads its rule."""
        if item.rule is None or not self._rules.unreadable(item.rule, item.due):
            return False
        self._changes.held.append((item.node, item.id))
        return True

    def _idle(self, item: Item, whose: Whose) -> list[Item]:
        if self._held(item):
            return []
        version = self._rules.active(item.rule, item.due) if item.rule else None
        happened = self._material.happened.get((item.node, item.id), ())
        if version is None or version.document.enter.idle is None:
            return self._rearm(item, happened)
        answer = idle.ask(version.document, item.due, happened)
        if isinstance(answer, idle.Moves):
            return self._move(item, answer.due)
        armed: list[Item] = []
        if isinstance(answer, idle.Quiet):
            facts = self._material.facts.get((item.node, item.due))
            if facts is not None:
                last = answer.last
                asking = engine.Asking(version=version, at=item.due, origin=last.node, key=str(last.id), event=last)
                armed = self._enter(asking, facts, whose, {"kind": "idle", "event": str(last.id), "name": last.name})
        return armed + self._rearm(item, happened)

    def _rearm(self, item: Item, happened: Sequence[Happened]) -> list[Item]:
        """The timer fired or ended: the first match since then arms it anew."""
        due = idle.rearmed(item.due, happened, partial(self._rules.entered_by, item.rule))
        if due is not None:
            return self._move(item, due)
        self._changes.handled.append((item.node, item.id))
        return []

    def _move(self, item: Item, due: datetime) -> list[Item]:
        moved = Item(node=item.node, id=item.id, kind=item.kind, due=due, rule=item.rule)
        self._changes.moved.append(moved)
        return [moved]

    def _schedule(self, item: Item, whose: Whose) -> list[Item]:
        if self._held(item):
            return []
        self._changes.handled.append((item.node, item.id))
        version = self._rules.active(item.rule, item.due) if item.rule else None
        facts = self._material.facts.get((item.node, item.due))
        if version is None or facts is None or version.document.enter.trigger != "schedule":
            return []
        asking = engine.Asking(version=version, at=item.due, origin=item.node, key=item.due.isoformat())
        return self._enter(asking, facts, whose, {"kind": "schedule", "moment": item.due.isoformat()})

    # ── deciding ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _enter(self, asking: engine.Asking, facts: Facts, whose: Whose, cause: dict[str, Any]) -> list[Item]:
        known = [one for one in self._known.values() if one.rule == asking.version.rule and one.origin in whose.nodes]
        found = engine.enter(asking, known, facts, self._material.world)
        if isinstance(found, Refused):
            if found.code == "failed":
                self._note(asking.version, asking.at, 0, found, whose, cause, asking.origin)
            return []
        run = found.run
        self._changes.runs[run.id] = (run, 0)
        self._runs[run.id], self._known[run.id] = run, Known.of(run)
        cause = {**cause, "hops": asking.hops} if asking.hops else cause
        self._note(asking.version, asking.at, 0, found, whose, cause, run.origin)
        return timers_of(run)

    def _advance(
        self,
        run: Run,
        stimulus: engine.Stimulus,
        at: datetime,
        whose: Whose,
        cause: dict[str, Any],
        node: UUID | None = None,
        version: Version | None = None,
    ) -> list[Item]:
        """Tells a run; returns the timers that are new.

        :param node: under whose question the facts were loaded, if not the run's own
        :param version: by which it decides, if not by its own
        """
        version = version or self._rules.version(run.rule, run.version)
        if isinstance(stimulus, engine.Removed):
            facts = Facts(profile=whose.profile, nodes=list(whose.nodes), as_of=at)
        else:
            facts = self._material.facts[node or run.origin, at]
        paused = self._paused(run.rule, at)
        found = engine.advance(run, stimulus, at, facts, version, self._material.world, paused=paused)
        if found is None:
            return []
        first = self._changes.runs.get(run.id, (run, run.number))[1]
        self._changes.runs[run.id] = (found.run, first)
        self._runs[run.id], self._known[run.id] = found.run, Known.of(found.run)
        cause = {**cause, "paused": True} if paused else cause
        self._note(version, at, run.number, found, whose, cause, run.origin)
        before = {(timer.id, timer.due) for timer in timers_of(run)}
        armed = [timer for timer in timers_of(found.run) if (timer.id, timer.due) not in before]
        if any(isinstance(effect, Event) and effect.name == CONTACT_PURGED for effect in found.effects):
            self._purge(found.run, at, whose)
        return armed

    def _purge(self, run: Run, at: datetime, whose: Whose) -> None:
        """The address is to be forgotten: every other run about it ends."""
        self._changes.purged.append((run.subject, whose.nodes))
        others = [
            other for other in self._runs.values() if other.live and other.subject == run.subject and other.id != run.id
        ]
        for other in sorted(others, key=lambda other: (other.rule, other.id)):
            if self._readable(other):
                why = engine.Removed("purged", "the contact was purged")
                self._advance(other, why, at, whose, {"kind": "purged"})

    def _note(
        self,
        version: Version,
        at: datetime,
        before: int,
        found: Decided | Refused,
        whose: Whose,
        cause: dict[str, Any],
        node: UUID,
    ) -> None:
        """Keeps a decision; of a refusal only that the rule failed. `before`: the version of the run until then."""
        decided = found if isinstance(found, Decided) else None
        self._changes.decisions.append(
            Decision(
                at=at,
                version=version,
                before=before,
                decided=decided,
                whose=whose,
                cause=cause,
                node=node,
                what=decided.what if decided else "failed",
                why=found.why,
                seen=found.seen,
            )
        )
