"""What the consent ledgers say about one address, one channel, one topic: profile's and dispatch's own folded together,
by the same fold as everywhere (`shared.facts.consent`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from services.dispatch.inputs import ConsentRow
from shared.facts.consent import ALL, RESTRICTION, WRITABLE, next_state


class Standing(msgspec.Struct, frozen=True):
    """`state`: what is true after all rows, None without any; `at`: the moment of the row that made it so."""

    state: str | None = None
    at: datetime | None = None

    @property
    def may_write(self) -> bool:
        return self.state in WRITABLE

    @property
    def opted_out(self) -> bool:
        return self.state in ("withdrawn", "complained")

    @property
    def complained(self) -> bool:
        return self.state == "complained"


def standing(rows: Iterable[ConsentRow], channel: str, topic: str) -> Standing:
    """The fold for one topic; rows of other channels and topics do not count, rows of all topics ("*") do.

    A row that stands in both ledgers, under the same id, counts once.
    """
    concerned = {(row.id, row.topic): row for row in rows if row.channel == channel and row.topic in (topic, ALL)}
    folded = Standing()
    for row in sorted(concerned.values(), key=lambda row: (row.at, RESTRICTION[row.state], row.id)):
        state = next_state(folded.state, row.state)
        if state != folded.state:
            folded = Standing(state, row.at)
    return folded


def topics_of(rows: Iterable[ConsentRow], channel: str) -> list[str]:
    """The topics that the address was ever asked about on this channel, sorted; without the "*" of all."""
    return sorted({row.topic for row in rows if row.channel == channel and row.topic != ALL})


def is_out(rows: Sequence[ConsentRow], channel: str, topic: str) -> bool:
    """Whether the topic was taken back already; all topics: whether none is left that may be written about. A topic that
    was confirmed after all of them were taken back is left."""
    if topic == ALL and any(standing(rows, channel, one).may_write for one in topics_of(rows, channel)):
        return False
    return standing(rows, channel, topic).opted_out
