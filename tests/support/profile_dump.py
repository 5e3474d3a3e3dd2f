"""What profile has stored, in a form that two runs can be compared by: without profile ids and without learned-at."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from services.profile.derive import people_again
from shared import cdp
from shared.cdp_rows import read_rows
from shared.db import Database, Tx
from shared.facts.model import Facts, Order, Refund

TABLES = (
    "event_seen",
    "node",
    "node_seen_before",
    "profile",
    "membership",
    "profile_alias",
    "link",
    "cannot_link",
    "event",
    "trait",
    "cart_op",
    "orders",
    "order_report",
    "order_line",
    "refund",
    "consent",
    "purged",
)


async def empty(database: Database) -> None:
    """Takes all rows away."""
    async with database.transaction() as tx:
        await tx.execute(";".join(f"DELETE FROM profile.{table}" for table in TABLES))


async def people(tx: Tx) -> dict[UUID, list[UUID]]:
    """Profile → its nodes."""
    rows = await tx.fetch("SELECT id, nodes FROM profile.profile")
    return {row["id"]: list(row["nodes"]) for row in rows}


NOBODY, NEVER = UUID(int=0), datetime(1970, 1, 1, tzinfo=UTC)


def comparable(facts: Facts) -> Facts:
    """Facts without what depends on when they were learned, or on the name of the profile."""
    things: list[Order | Refund] = [*facts.orders, *facts.refunds]
    for thing in things:
        thing.learned_at, thing.history = NEVER, False
    return msgspec.structs.replace(facts, profile=NOBODY, as_of=None, last_learned_at=None)


async def dump(database: Database, at: datetime) -> dict[tuple[UUID, ...], Facts]:
    """Nodes of each person → their facts at `at`."""
    async with database.transaction(isolation="repeatable_read") as tx:
        persons = sorted(sorted(nodes) for nodes in (await people(tx)).values())
        facts = await cdp.facts(tx, [cdp.FactsQuestion(node=nodes[0], at=at) for nodes in persons])
        assert all(one is not None for one in facts)
        return {tuple(nodes): comparable(one) for nodes, one in zip(persons, facts, strict=True) if one is not None}


async def differences_to_rows(database: Database) -> list[Any]:
    """The people whose kept state is not what folding their rows gives, as pairs (kept, folded); and what the audit says of
    people who are not as their links, rows and events make them."""
    found: list[Any] = (await people_again(database)).differences
    async with database.transaction(isolation="repeatable_read") as tx:
        for profile, nodes in (await people(tx)).items():
            kept = (await cdp.facts(tx, [cdp.FactsQuestion(node=nodes[0], lines=False)]))[0]
            assert kept is not None
            assert kept.last_learned_at is not None
            rows = (await read_rows(tx, [(nodes, kept.last_learned_at)]))[0]
            folded = cdp.fold(rows, profile, nodes, kept.last_learned_at)
            things: list[Order | Refund] = [*folded.orders, *folded.refunds]
            for thing in things:
                thing.lines = []
            folded.last_learned_at, folded.as_of = kept.last_learned_at, None
            if kept != folded:
                found.append((kept, folded))
        return found


async def membership_faults(database: Database) -> list[str]:
    """What is wrong with the rows of memberships: they must be an unbroken chain for each node, and agree with the profiles."""
    async with database.transaction(isolation="repeatable_read") as tx:
        rows = await tx.fetch("SELECT node, from_at, to_at, profile FROM profile.membership ORDER BY node, from_at")
        present = {node: profile for profile, nodes in (await people(tx)).items() for node in nodes}
        homes = dict(await tx.fetch("SELECT id, profile FROM profile.node"))
    faults = []
    for before, after in zip(rows, rows[1:], strict=False):
        if before["node"] == after["node"] and before["to_at"] != after["from_at"]:
            faults.append(f"{before['node']}: a gap or an overlap at {before['to_at']}")
    faults += [f"{row['node']}: no time at {row['from_at']}" for row in rows if row["to_at"] == row["from_at"]]
    open_rows = {row["node"]: row["profile"] for row in rows if row["to_at"] is None}
    if not open_rows == present == homes:
        faults.append(f"present memberships {open_rows}, profiles {present}, nodes {homes}")
    return faults
