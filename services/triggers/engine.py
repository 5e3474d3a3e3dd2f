"""The engine: pure decisions about one person and one rule version.

`enter` says whether somebody enters, `advance` what a run does when something happens to it. Both take everything they
may know as arguments and touch nothing, so that a decision can be derived again from what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from services.triggers import holdout, wording
from services.triggers.addresses import addressed_by
from services.triggers.guards import about_the_address, stops
from services.triggers.run import Decided, Known, Refused, Run, Snapshot
from services.triggers.steps.base import Answer, End, Happened, Here, Into, Next, Version, Wait, World
from shared.conditions import match_holds
from shared.durations import format_duration
from shared.events import MAX_HOPS, Outcome
from shared.facts.model import EventFact, Facts
from shared.ids import run_id

MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Asking:
    """Somebody may enter: `key` is the entry key (event id or due moment), `origin` the run's origin node."""

    version: Version
    at: datetime
    origin: UUID
    key: str
    event: EventFact | None = None

    @property
    def hops(self) -> int:
        """How far what it enters by is from an event of the shop; a calendar is the shop's own."""
        return self.event.hops if self.event is not None else 0


# ── what may happen to a run, besides events ──────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class StepDue:
    """The timer of its step."""


@dataclass(frozen=True)
class WindowClosed:
    """The end of the goal window."""


@dataclass(frozen=True)
class Removed:
    """It ends whatever its steps say. `how`: merged | edited | archived | purged | dropped; `window`: it is the timer of the
    goal window that was dropped, and only that closes, without an outcome."""

    how: str
    why: str
    window: bool = False


@dataclass(frozen=True)
class Moved:
    """An edit says `on_edit: move`: it goes on at the same step of the version that is given. `before`: its own so far."""

    before: Version


Stimulus = Happened | StepDue | WindowClosed | Removed | Moved


def enter(asking: Asking, known: Sequence[Known], facts: Facts, world: World) -> Decided | Refused:
    """Whether the person enters, and what the run does at once.

    :param known: all runs of this rule on the person's nodes as of `asking.at`
    :param facts: as of `asking.at`
    """
    try:
        return _enter(asking, known, facts, world)
    except Exception as error:  # whatever the rule made of these facts: it must not hold up the others
        return Refused(code="failed", why=wording.failure(error))


def _enter(asking: Asking, known: Sequence[Known], facts: Facts, world: World) -> Decided | Refused:
    rule, version = asking.version.document, asking.version
    run = Run(
        id=run_id(version.rule, asking.origin, asking.key),
        rule=version.rule,
        version=version.number,
        origin=asking.origin,
        entry_key=asking.key,
        entered_at=asking.at,
        draw=Decimal(0),
        number=1,
        event=_snapshot(asking.event),
        hops=asking.hops,
        closes_at=asking.at + rule.goal.within if rule.goal else None,
    )
    run.addressed, run.subject = addressed_by(asking.event, facts, world.country)
    if refused := _forbidden(asking, run, known):
        return refused
    here = Here(run, version, asking.at, facts, world)
    if rule.enter.condition is not None and not here.holds(rule.enter.condition):
        return Refused(
            code="condition", why=f"the condition of the entry was not met: {wording.unmet(here.seen)}", seen=here.seen
        )
    if why := _stop_condition(here):
        return Refused(code="stopped", why=f"stopped before entry: {why}", seen=here.seen)
    run.ghost, run.draw = holdout.arm(version.rule, asking.origin, rule.holdout, known)
    _walk(here, rule.flow.first())
    return Decided(run=run, effects=here.effects, seen=here.seen, what="entered", why=_entered(asking, run))


def advance(
    run: Run, stimulus: Stimulus, now: datetime, facts: Facts, version: Version, world: World, *, paused: bool = False
) -> Decided | None:
    """What the run does when `stimulus` reaches it at T = `now`; None when it does not concern it.

    The given run is not changed. A rule that fails ends the run with the reason.

    :param facts: as of `now`; only `Removed` needs none of it
    :param paused: the rule stands still: events may end the run, its next step waits
    """
    here = Here(run.copy(), version, now, facts, world, paused)
    here.run.number += 1
    try:
        concerned = _advance(here, stimulus)
    except Exception as error:  # see `enter`
        here = Here(run.copy(), version, now, facts, world, paused)
        here.run.number += 1
        concerned = _fail(here, stimulus, error)
    if not concerned:
        return None
    here.run.intents = [intent for intent in here.run.intents if here.run.live and intent.until > now]
    return Decided(
        run=here.run,
        effects=here.effects,
        seen=here.seen,
        what=_what(stimulus, run, here.run),
        why=here.run.ended_why or _why(stimulus, here),
    )


def _advance(here: Here, stimulus: Stimulus) -> bool:
    run = here.run
    match stimulus:
        case Happened():
            return _hear(here, stimulus)
        case WindowClosed():
            return _close(here)
        case Removed(window=True):
            run.closed_at = here.now if run.watching else run.closed_at
            return True
        case Removed(how, why):
            if run.live:
                _end(here, how, why)
                return True
            return False
        case Moved(before):
            return _move(here, before)
        case StepDue():
            if not run.live or run.due is None or run.due > here.now:
                return False
            if why := _stop_condition(here):
                _end(here, "stopped", why)
            elif not run.begun:
                _walk(here, run.path)
            else:
                _go_on(here, here.rule.flow.at(run.path).resume(here))
            return True


def _fail(here: Here, stimulus: Stimulus, error: Exception) -> bool:
    if isinstance(stimulus, WindowClosed):
        here.run.closed_at = here.now  # its outcome cannot be told; the run must not stay open for ever
    if here.run.live:
        _end(here, "failed", wording.failure(error))
    return True


# ── entering ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def _snapshot(event: EventFact | None) -> Snapshot | None:
    if event is None:
        return None
    return Snapshot(
        id=event.id,
        name=event.name,
        node=event.node,
        occurred_at=event.occurred_at,
        learned_at=event.learned_at,
        properties=event.properties,
    )


def _forbidden(asking: Asking, run: Run, known: Sequence[Known]) -> Refused | None:
    """What speaks against the entry before any condition is looked at."""
    rule = asking.version.document
    if any(one.id == run.id for one in known):
        return Refused(code="key_taken", why="this very event or moment has started a run already")
    counting = [one for one in known if one.ended_as != "merged" and not one.erased]
    before = [one for one in counting if rule.slot(one.subject) == rule.slot(run.subject)]
    if any(one.ended_at is None for one in before):
        return Refused(code="inside", why="the person is inside this rule already")
    if before and not rule.again.allowed:
        return Refused(code="again", why="the person has been through this rule, and it says again: never")
    if before and rule.again.after is not None:
        last = max(one.ended_at for one in before if one.ended_at is not None)
        if last + rule.again.after > asking.at:
            return Refused(
                code="again", why=f"the last run ended at {wording.clock(last)}; the rule says again: {rule.again}"
            )
    if asking.hops >= MAX_HOPS:
        return Refused(
            code="hops", why=f"the event is the product's own, {asking.hops} hops away from an event of the shop"
        )
    if asking.event is not None and (age := asking.at - asking.event.occurred_at) > rule.max_age:
        return Refused(
            code="too_old",
            why=f"the event was {wording.span(age)} old; the rule's max_age is {format_duration(rule.max_age)}",
        )
    return None


def _entered(asking: Asking, run: Run) -> str:
    by, at = (asking.event.name, asking.event.occurred_at) if asking.event else ("the schedule", asking.at)
    return f"entered by {by} of {wording.clock(at)}" + (", held out" if run.ghost else "")


# ── hearing of events ─────────────────────────────────────────────────────────────────────────────────────────────────
def _hear(here: Here, happened: Happened) -> bool:
    run, event = here.run, happened.event
    if event.history:
        return False
    concerned = False
    if _reaches_goal(here, happened):
        run.goal_at, concerned = happened.moment, True
        if run.live:
            _end(here, "goal", f"goal reached: {event.name} at {wording.clock(happened.moment)}")
    if run.live and happened.moment > run.entered_at and stops(here.rule, run, event):
        _end(here, "stopped", f"stopped by {event.name} at {wording.clock(happened.moment)}")
        concerned = True
    if run.live and (why := _stop_condition(here)):
        _end(here, "stopped", why)
        concerned = True
    if run.live and run.path and run.begun and (answer := here.rule.flow.at(run.path).hear(here, happened)):
        _go_on(here, answer)
        concerned = True
    return concerned


def _reaches_goal(here: Here, happened: Happened) -> bool:
    run, goal, event = here.run, here.rule.goal, happened.event
    if goal is None or not run.watching or run.goal_at is not None:
        return False
    in_window = run.entered_at < happened.moment <= run.entered_at + goal.within and event.occurred_at > run.entered_at
    return in_window and match_holds(goal.match, event.name, event.properties) and about_the_address(run, event)


def _stop_condition(here: Here) -> str:
    """Why a condition of `stop` ends the run; empty if none holds."""
    for condition, document in zip(here.rule.stop_conditions, here.rule.stop_documents, strict=True):
        seen = len(here.seen)
        if here.holds(condition):
            return f"a condition of stop holds: {', '.join(document)}"
        del here.seen[seen:]  # what did not stop it explains nothing
    return ""


# ── going on ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def _go_on(here: Here, answer: Answer) -> None:
    path = _follow(here, answer)
    if here.run.live and here.run.due is None:
        _walk(here, path)


def _walk(here: Here, path: list[str] | None) -> None:
    """From step to step until one waits, ends the run, or there is none left."""
    run, flow = here.run, here.rule.flow
    while path is not None:
        run.path, run.since, run.due, run.begun = path, here.now, None, not here.paused
        if here.paused:
            run.due = here.now + MICROSECOND  # its timer will be held until the rule goes on
            return
        path = _follow(here, flow.at(path).begin(here))
        if not run.live or run.due is not None:
            return
    _end(here, "finished", "")


def _follow(here: Here, answer: Answer) -> list[str] | None:
    """Where the answer leads; sets `due` for a wait, ends the run for an end."""
    run, flow = here.run, here.rule.flow
    run.due = None
    match answer:
        case Next():
            return flow.after(run.path)
        case Into(branch):
            return flow.into(run.path, branch)
        case Wait(due):
            run.due = max(due, here.now + MICROSECOND)
        case End(why):
            _end(here, "stop_step", why)
    return None


def _move(here: Here, before: Version) -> bool:
    """To the step of the same id. What it waits for is counted anew from when it came there; a step of another kind begins
    at once. The goal window is the new version's; what was asked for already stays asked for."""
    run, flow = here.run, here.rule.flow
    path = flow.find(run.path[-1]) if run.live and run.path else None
    if path is None:
        return False
    same = type(flow.at(path)) is type(before.document.flow.at(run.path))
    run.version = here.version.number
    if here.rule.goal is not None and run.closed_at is None:
        run.closes_at = max(run.entered_at + here.rule.goal.within, here.now + MICROSECOND)
    if same:
        run.path = path
    if not same:
        _walk(here, path)
    elif run.begun:
        _go_on(here, flow.at(path).moved(here))
    return True


def _end(here: Here, how: str, why: str) -> None:
    """Ends the run. What it has asked for and what may still wait to be sent is cancelled, unless its own steps ended it."""
    run = here.run
    run.ended_at, run.ended_as, run.ended_why = here.now, how, why or None
    run.path, run.since, run.due, run.begun = [], None, None, True
    if how not in ("finished", "stop_step"):
        here.cancel_intents(why or how)


def _close(here: Here) -> bool:
    """The goal window is over: tells what came of the run, once, of ghosts alike."""
    run = here.run
    if not run.watching or run.closes_at is None or run.closes_at > here.now:
        return False
    run.closed_at = here.now
    here.effects.append(
        Outcome(
            run=run.id,
            run_version=run.number,
            rule=run.rule,
            ghost=run.ghost,
            entered_at=run.entered_at,
            closed_at=here.now,
            goal_at=run.goal_at,
            revenue=_revenue(run, here.facts),
        )
    )
    return True


def _revenue(run: Run, facts: Facts) -> Decimal:
    """What the orders of the goal window brought, less refunds known by now."""
    assert run.closes_at is not None
    return sum(
        (
            order.total - order.refunded
            for order in facts.orders
            if order.total is not None
            and not order.cancelled
            and not order.history
            and order.at > run.entered_at
            and run.entered_at < order.learned_at <= run.closes_at
        ),
        Decimal(0),
    )


# ── for the record ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _what(stimulus: Stimulus, before: Run, after: Run) -> str:
    if isinstance(stimulus, Removed):
        return stimulus.how
    if isinstance(stimulus, Moved) and after.live:
        return "moved"
    if before.live and not after.live:
        return after.ended_as or ""
    if before.closed_at is None and after.closed_at is not None:
        return "outcome"
    return "goal" if before.goal_at is None and after.goal_at is not None else "advanced"


def _why(stimulus: Stimulus, here: Here) -> str:
    if isinstance(stimulus, Moved):
        return f"goes on by version {here.version.number} at the step {here.run.path[-1]}" if here.run.path else ""
    return ""
