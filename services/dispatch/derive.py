"""Decisions computed again from their stored inputs, and compared with what was stored: differences should be none."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.dispatch.choice import Alternative
from services.dispatch.decision import decide
from services.dispatch.inputs import Decision, Inputs
from services.dispatch.store.reading import decisions_between, stored_alternatives
from shared.db import Database

_BATCH = 500


class Difference(msgspec.Struct, frozen=True):
    """A decision that does not come out as it was stored: `field` was `stored`, computed again it is `again`."""

    message: UUID
    number: int
    field: str
    stored: Any
    again: Any


@dataclass
class ChosenAgain:
    """`count` decisions of dispatch were computed again, with `alternatives` rows in their tables."""

    count: int = 0
    alternatives: int = 0
    differences: list[Difference] = field(default_factory=list)


async def choose_again(database: Database, since: datetime, until: datetime) -> ChosenAgain:
    """Computes every choice made in [since, until) (business time) again. No differences: all came out the same."""
    found = ChosenAgain()
    after: tuple[UUID, int] | None = None
    while True:
        async with database.transaction("repeatable_read") as tx:
            rows = await decisions_between(tx, since, until, after, _BATCH)
            alternatives = await stored_alternatives(tx, [row["message"] for row in rows])
        for row in rows:
            table = alternatives.get((row["message"], row["number"]), {})
            found.differences += _differences(row, table)
            found.alternatives += len(table)
        found.count += len(rows)
        if len(rows) < _BATCH:
            return found
        after = (rows[-1]["message"], rows[-1]["number"])


def _differences(row: asyncpg.Record, alternatives: dict[str, asyncpg.Record]) -> list[Difference]:
    try:
        again = decide(msgspec.convert(row["inputs"], Inputs))
    except msgspec.ValidationError as problem:
        return [Difference(row["message"], row["number"], "inputs", "unreadable", str(problem))]
    found = _unequal(_of_decision(again), {name: row[name] for name in _of_decision(again)})
    found += _of_alternatives(again, alternatives)
    return [Difference(row["message"], row["number"], *one) for one in found]


def _of_decision(decision: Decision) -> dict[str, Any]:
    return {
        "act": decision.act,
        "channel": decision.channel,
        "address_node": decision.address,
        "reason_code": decision.reason.code if decision.reason else None,
        "reason": decision.reason.text if decision.reason else None,
        "until": decision.until,
        "cost": decision.cost,
        "probability": decision.probability,
        "explored": decision.explored,
    }


def _of_alternatives(again: Decision, stored: dict[str, asyncpg.Record]) -> list[tuple[str, Any, Any]]:
    computed = {row.channel: row for row in again.alternatives}
    if computed.keys() != stored.keys():
        return [("alternatives", sorted(stored), sorted(computed))]
    found = []
    for channel, row in computed.items():
        values = _of_alternative(row)
        found += [
            (f"alternatives/{channel}/{name}", was, now)
            for name, was, now in _unequal(values, {name: stored[channel][name] for name in values})
        ]
    return found


def _of_alternative(row: Alternative) -> dict[str, Any]:
    names = ("reach", "act", "base", "effect", "value", "cost", "units", "erosion", "net")
    return {
        **{name: getattr(row, name) for name in names},
        "reason_code": row.reason.code if row.reason else None,
        "reason": row.reason.text if row.reason else None,
    }


def _unequal(again: dict[str, Any], stored: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, stored[name], value) for name, value in again.items() if stored[name] != value]
