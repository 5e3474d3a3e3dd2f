"""An idle timer is a question: at T, as of T and over all the person's nodes, was there a time without a match?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.triggers import wording
from services.triggers.rule import Rule
from services.triggers.steps.base import Happened
from shared.conditions import match_holds
from shared.facts.model import EventFact


@dataclass(frozen=True)
class Moves:
    """Another match came: the timer is due later."""

    due: datetime


@dataclass(frozen=True)
class Quiet:
    """The time has passed; `last` is the match that the person enters by."""

    last: EventFact


@dataclass(frozen=True)
class StoppedBefore:
    """An event named in `stop` came between the last match and T: nobody enters."""

    last: EventFact
    by: Happened

    @property
    def why(self) -> str:
        """For a marketer."""
        order = f" (order {self.by.event.order_key})" if self.by.event.order_key else ""
        return f"stopped before entry: {self.by.event.name}{order} at {wording.clock(self.by.moment)}"


@dataclass(frozen=True)
class NoMatch:
    """There is no match as of T (its node has left the person)."""


Answer = Moves | Quiet | StoppedBefore | NoMatch


def ask(rule: Rule, at: datetime, happened: Sequence[Happened]) -> Answer:
    """Answers the question at T = `at`.

    :param happened: events of the person, live and history, of the rule's entry and stop, in order of learned-at; those
        learned after T are not looked at
    """
    idle = rule.enter.idle
    assert idle is not None
    known = [one for one in happened if one.event.learned_at <= at]
    matches = [one.event for one in known if rule.enter.matches(one.event)]
    if not matches:
        return NoMatch()
    last = matches[-1]
    if last.learned_at + idle > at:
        return Moves(last.learned_at + idle)
    for one in known:
        if last.learned_at < one.moment <= at and not one.event.history and _is_stop(rule, one.event):
            return StoppedBefore(last, one)
    return Quiet(last)


def rearmed(at: datetime, happened: Sequence[Happened], in_force: Callable[[datetime], Rule | None]) -> datetime | None:
    """When the timer is due again after it fired or ended at T = `at`: counted from the first match learned after T, which is
    a match by the rule as it was in force when it was learned; None if there is none.

    :param in_force: the rule by which people entered at a moment
    """
    for one in happened:
        event = one.event
        rule = in_force(event.learned_at) if event.learned_at > at else None
        if rule is not None and rule.enter.idle is not None and rule.enter.matches(event):
            return event.learned_at + rule.enter.idle
    return None


def _is_stop(rule: Rule, event: EventFact) -> bool:
    return any(match_holds(match, event.name, event.properties) for match in rule.stop_matches)
