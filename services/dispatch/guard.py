"""Is it still right to send? The guard of an intent, judged on the facts of now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec

from services.dispatch.inputs import GuardVerdict
from services.dispatch.reasons import Reason
from shared.conditions import (
    Condition,
    ConditionError,
    EventMatch,
    Moment,
    Needs,
    explain,
    match_holds,
    needs,
    parse,
    parse_match,
)
from shared.events import Guard
from shared.facts.model import EventFact, Facts

ORDER_COMPLETED = "Order Completed"


class Parsed(msgspec.Struct, frozen=True):
    """A guard, read. `needs`: what facts its conditions look at; `names`: the events that stand against it.

    `fault`: the guard cannot be read (it comes from another version of the product): nothing is sent then.
    """

    matches: tuple[EventMatch, ...] = ()
    conditions: tuple[Condition, ...] = ()
    needs: Needs = Needs()
    fault: str = ""

    @property
    def names(self) -> frozenset[str]:
        return frozenset(match.event for match in self.matches)


def read(guard: Guard) -> Parsed:
    """The guard with its documents parsed; the same documents are parsed once."""
    return _read(msgspec.json.encode([guard.until, guard.conditions]))


@lru_cache(maxsize=4_096)
def _read(documents: bytes) -> Parsed:
    until, conditions = msgspec.json.decode(documents)
    try:
        matches = tuple(parse_match(document) for document in until)
        parsed = tuple(parse(document) for document in conditions)
    except ConditionError as problem:
        return Parsed(fault=str(problem))
    wanted = Needs()
    for condition in parsed:
        wanted |= needs(condition)
    return Parsed(matches, parsed, wanted)


def look_back(guard: Guard, parsed: Parsed, now: datetime) -> datetime | None:
    """From when on events must be read for the conditions; None: from the beginning."""
    if parsed.needs.look_back is None:
        return None
    since = now - parsed.needs.look_back
    return min(since, guard.since) - timedelta(microseconds=1)


def judge(guard: Guard, parsed: Parsed, facts: Facts, events: Sequence[EventFact], moment: Moment) -> GuardVerdict:
    """Whether the guard holds.

    :param events: the person's events of `parsed.names` learned after `guard.since`
    :param facts: as of now, with the events that `parsed.needs` names
    """
    if parsed.fault:
        return GuardVerdict(holds=False, reason=Reason("guard", f"the guard cannot be read: {parsed.fault}"))
    against = _first_against(guard, parsed, facts, events)
    if against is not None:
        event, at = against
        order = f" {event.order_key}" if event.order_key else ""
        text = f"{event.name}{order} at {at:%Y-%m-%d %H:%M:%S} UTC, after the rule was entered"
        return GuardVerdict(
            holds=False, reason=Reason("guard", text), seen=[{"event": str(event.id), "name": event.name}]
        )
    seen: list[dict[str, Any]] = []
    for condition in parsed.conditions:
        verdict = explain(condition, facts, moment)
        seen += verdict.seen
        if not verdict.holds:
            return GuardVerdict(holds=False, reason=Reason("guard", _no_longer(verdict.seen)), seen=seen)
    return GuardVerdict(holds=True, seen=seen)


def _first_against(
    guard: Guard, parsed: Parsed, facts: Facts, events: Sequence[EventFact]
) -> tuple[EventFact, datetime] | None:
    first_known = {order.key: order.learned_at for order in facts.orders}
    for event in events:
        # An order happened when any source first reported it: a later report of the same one stands against nothing.
        again = event.name == ORDER_COMPLETED and event.order_key is not None
        at = first_known.get(event.order_key or "", event.learned_at) if again else event.learned_at
        if event.history or at <= guard.since:
            continue
        if any(match_holds(match, event.name, event.properties) for match in parsed.matches):
            return event, at
    return None


def _no_longer(seen: list[dict[str, Any]]) -> str:
    """The condition's leaves with what they saw, as the rule writes them."""
    parts = [
        f"{json.dumps(leaf['condition'], ensure_ascii=False, sort_keys=True)} "
        f"(is {'true' if leaf['holds'] else 'false'}: {json.dumps(leaf['looked_at'], ensure_ascii=False, sort_keys=True)})"
        for leaf in seen[:3]
    ]
    return ("no longer as it was at the entry: " + "; ".join(parts))[:1_000]
