"""How many people a rule means now, before it is activated, and a few of them with the values that were looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from services.triggers import loading
from services.triggers.entries.schedule import ScheduleEntry
from services.triggers.rule import Rule
from services.triggers.steps.base import World
from services.triggers.store import preview as store
from shared.conditions import Condition, Moment, Verdict, explain, needs
from shared.db import Tx

JUDGED = 500  # people whom Python looks at, at most, where SQL cannot decide
AT_ONCE = 20  # of them between two waits for the database: no batch holds up the loop
SAMPLE = 10


@dataclass(frozen=True)
class Preview:
    """`at_least` and `at_most` people meet the condition; equal when all were looked at. `would_enter`: those of them whom
    `again` would let in (None where not all were looked at)."""

    at: datetime
    people: int
    at_least: int
    at_most: int
    would_enter: int | None
    next_moment: datetime | None
    samples: list[dict[str, Any]] = field(default_factory=list)


async def preview(tx: Tx, rule: Rule, stored: UUID | None, at: datetime, world: World) -> Preview:
    """Who meets `enter.if` or `among` at `at`. `stored`: the rule's id, if it is saved: its runs count for `again`.

    Raises services.triggers.store.preview.TooLong.
    """
    moment = Moment(at=at, entered_at=at, zone=world.zone, topic=rule.topic, holidays=world.holidays.at(at))
    subject = "" if rule.kind == "transactional" else None  # it answers each address anew, and none is at hand here
    resting = store.Resting(stored, not rule.again.allowed, rule.again.after, subject)
    entry = rule.enter
    next_moment = entry.next_after(at, world.zone) if isinstance(entry, ScheduleEntry) else None
    people = await store.count_people(tx, moment)
    if entry.condition is None:
        return Preview(at, people, people, people, None, next_moment)
    row = await store.count_members(tx, entry.condition, moment, resting)
    certain, free, undecided = row["certain"], row["certain"] - row["resting"], row["undecided"]
    looked: list[Any] = []
    if undecided:
        looked = await store.undecided(tx, entry.condition, moment, resting, JUDGED)
    verdicts = await _judged(tx, entry.condition, moment, [one["node"] for one in looked])
    met = [one for one in looked if (verdict := verdicts.get(one["node"])) and verdict.holds]
    unseen = max(0, undecided - len(looked))
    return Preview(
        at=at,
        people=people,
        at_least=certain + len(met),
        at_most=certain + len(met) + unseen,
        would_enter=None if unseen else free + sum(1 for one in met if not one["resting"]),
        next_moment=next_moment,
        samples=await _samples(tx, entry.condition, moment, met),
    )


async def _samples(tx: Tx, condition: Condition, moment: Moment, met: list[Any]) -> list[dict[str, Any]]:
    """A few who meet the condition, with what was looked at."""
    rows = [*met, *await store.some(tx, condition, moment, SAMPLE)]
    by_profile = {row["profile"]: row["node"] for row in rows[: 2 * SAMPLE]}
    verdicts = await _judged(tx, condition, moment, list(by_profile.values()))
    found = [
        {"profile": profile, "seen": verdicts[node].seen}
        for profile, node in by_profile.items()
        if node in verdicts and verdicts[node].holds
    ]
    return found[:SAMPLE]


async def _judged(tx: Tx, condition: Condition, moment: Moment, nodes: list[UUID]) -> dict[UUID, Verdict]:
    """What Python says of the people who have these nodes; nodes that nobody has are left out."""
    found: dict[UUID, Verdict] = {}
    for start in range(0, len(nodes), AT_ONCE):
        asked = {(node, moment.at): needs(condition) for node in nodes[start : start + AT_ONCE]}
        facts = await loading.facts_as_of(tx, asked)
        found |= {node: explain(condition, known, moment) for (node, _), known in facts.items()}
    return found
