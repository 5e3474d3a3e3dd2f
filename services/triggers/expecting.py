"""What has to be in the queue, worked out from what is stored and from nothing in the queue itself.

It is asked at the watermark: what was learned by then has been read and handled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from services.triggers.queue import idle_item_id
from services.triggers.steps.base import Version
from services.triggers.store import expected as store
from services.triggers.versions import Rules
from shared.db import Tx
from shared.facts.model import EventFact

PAGE = 2000  # events read at once
Key = tuple[UUID, UUID]  # rule and node
Asking = Sequence[tuple[Version, datetime]]


async def idle_timers(tx: Tx, rules: Rules, until: datetime) -> tuple[int, list[tuple[UUID, UUID, UUID]]]:
    """How many idle timers the events known at `until` ask for; and (rule, node, event) of those that are not there.

    A match has armed its node's timer for `idle` after it, or found it armed for an earlier moment; and when that fires
    before, the last match moves it on, or the first one since arms it anew. So there is one until `idle` after each match, as
    long as nothing is said about the rule: what was matched before its last change is not looked at.
    """
    asking = _asking(rules, until)
    asked: set[Key] = set()
    missing: dict[Key, UUID] = {}
    after: store.Place | None = None
    while asking:
        events = await store.live_events(tx, _names(asking), until, after, PAGE)
        armed = {(version.rule, event.node): event.id for event in events for version in _armed_by(asking, event)}
        there = await store.items_there(tx, [(node, idle_item_id(rule)) for rule, node in armed])
        asked |= armed.keys()
        missing |= {key: event for key, event in armed.items() if (key[1], idle_item_id(key[0])) not in there}
        if len(events) < PAGE:
            break
        after = (events[-1].node, events[-1].learned_at, events[-1].id)
    return len(asked), await _unexplained(tx, missing)


def _asking(rules: Rules, until: datetime) -> Asking:
    """The versions in force that wait for an idle time, and since when a match counts that may still have its timer."""
    found = []
    for version in rules.all_active(until, "marketing"):
        change, idle = rules.at(version.rule, until), version.document.enter.idle
        if idle is not None and change is not None:
            found.append((version, max(change.valid_from, until - idle)))
    return found


def _names(asking: Asking) -> list[tuple[str, datetime]]:
    return [(name, since) for version, since in asking for name in sorted(version.document.enter.names)]


def _armed_by(asking: Asking, event: EventFact) -> list[Version]:
    return [version for version, since in asking if event.learned_at > since and version.document.enter.matches(event)]


async def _unexplained(tx: Tx, missing: Mapping[Key, UUID]) -> list[tuple[UUID, UUID, UUID]]:
    """Without the timers that somebody dropped by hand, and those of events whose record was put aside."""
    if not missing:
        return []
    dropped = await store.dropped_by_hand(tx, [(node, idle_item_id(rule)) for rule, node in missing])
    unread = await store.never_read(tx, list(missing.values()))
    return [
        (rule, node, event)
        for (rule, node), event in sorted(missing.items())
        if (node, idle_item_id(rule)) not in dropped and event not in unread
    ]


async def calendars(tx: Tx, rules: Rules, until: datetime) -> tuple[int, list[UUID]]:
    """How many rules in force at `until` have a calendar, and those of them that have no moment to come."""
    scheduled = [
        version.rule
        for kind in ("marketing", "transactional")
        for version in rules.all_active(until, kind)
        if version.document.enter.trigger == "schedule"
    ]
    there = await store.moments_to_come(tx, scheduled)
    return len(scheduled), [rule for rule in scheduled if rule not in there]
