"""*Contact Purged*: the address of somebody who asked for letters and never confirmed is erased.

Unless anybody ever confirmed or asserted it. What stays is a hash with the date, so that for 30 days no second confirmation
mail goes out; and an opt-out or a complaint stays one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from services.profile.intake import Incoming
from shared.bus.base import Outgoing
from shared.db import Tx


def parts_between_purges(batch: list[Incoming]) -> Iterator[list[Incoming]]:
    """The batch in parts, so that what speaks of a purged address after the purge is applied after it."""
    part: list[Incoming] = []
    purged: set[UUID] = set()
    for one in batch:
        if purged and not purged.isdisjoint([one.origin, *(it.node for it in one.event.ids)]):
            yield part
            part, purged = [], set()
        part.append(one)
        if one.purges is not None:
            purged.add(one.purges)
    if part:
        yield part


async def purge(tx: Tx, secret: bytes, one: Incoming, now: datetime) -> list[Outgoing]:
    raise NotImplementedError
