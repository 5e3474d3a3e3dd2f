"""Consent: the fold of the ledger, per address, channel and topic.

Rows count in the order of their time; of rows of one moment the more restrictive wins. Only a pressed button lifts an
opt-out; nothing lifts a complaint. A row of topic `*` speaks of every topic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

from shared.facts.model import Consent
from shared.facts.rows import ConsentRow

ALL = "*"
# From the least to the most restrictive, as ties are decided.
RESTRICTION = {"requested": 0, "confirmed": 1, "granted": 1, "withdrawn": 2, "complained": 3}
WRITABLE = frozenset({"granted", "confirmed"})


def next_state(state: str | None, row: str) -> str:
    """What is true after a ledger row `row`, if `state` was true before."""
    if state == "complained" or row == "complained":
        return "complained"
    if row in ("withdrawn", "confirmed"):
        return row
    if row == "granted":
        return state if state in ("withdrawn", "confirmed") else "granted"
    return state or row


def order_of(row: ConsentRow) -> tuple:
    """The order in which rows count."""
    return row.at, RESTRICTION[row.state], row.id


def fold_consent(rows: Iterable[ConsentRow], addresses: Mapping[UUID, str]) -> list[Consent]:
    """The consents of all addresses in `rows`, one for every (channel, address, topic) that a row names.

    `addresses`: the value of each address's node. `at` is the time of the row that made the state what it is.
    """
    by_address: dict[tuple[str, UUID], list[ConsentRow]] = {}
    for row in rows:
        by_address.setdefault((row.channel, row.node), []).append(row)
    consents = []
    for (channel, node), ledger in sorted(by_address.items()):
        ledger.sort(key=order_of)
        for topic in sorted({row.topic for row in ledger}):
            state, at = None, ledger[0].at
            for row in ledger:
                if row.topic in (topic, ALL):
                    after = next_state(state, row.state)
                    if after != state:
                        state, at = after, row.at
            assert state is not None
            consents.append(
                Consent(
                    channel=channel,
                    node=node,
                    address=addresses.get(node, ""),
                    topic=topic,
                    state=state,
                    at=at,
                    may_write=state in WRITABLE,
                )
            )
    return consents
