"""A dead letter is taken again: its bytes, or what a person made of them.

What ingest refused is read again as it was read the first time: from the same source, in the same envelope, received
when it was received. What a consumer or a relay put aside goes to its bus topic again, without the header by which it
would be dropped as a repeat; it was not applied, so its event id is still free.

Nothing is locked while the bus writes: two who replay one letter at once, or a replay after a crash, write its events
twice, and under the same ids, so that they take effect once.
"""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from services.ingest import store
from services.ingest.intake import Intake, body_problem, refusal_problem
from services.ingest.parse import Arrival, Source
from services.ingest.reading import Envelope, Item, Reading, read_body
from services.ingest.refusal import Refusal, Refused
from shared.bus.base import Outgoing
from shared.errors import Problem
from shared.ids import derived_id
from shared.outbox import HEADER
from shared.service import Context


class Replaying:
    """Raises Problem 422 when the letter is refused again; what bus and database raise."""

    def __init__(self, context: Context, intake: Intake) -> None:
        self._context, self._intake = context, intake

    async def replay(self, letter: asyncpg.Record, mended: bytes | None) -> tuple[int, int]:
        """How many records were written, and how many items of a batch were refused again."""
        raw = letter["bytes"] if mended is None else mended
        if letter["service"] == "ingest" and letter["topic"] is None:
            return await self._take_again(letter, raw)
        if letter["topic"] is None or letter["key"] is None:
            raise Problem(
                422, "The letter cannot be replayed", "It does not say which bus topic and key it belongs to."
            )
        headers = {name: value.encode() for name, value in letter["headers"].items() if name != HEADER}
        await self._context.bus.append([Outgoing(letter["topic"], letter["key"], raw, headers)])
        return 1, 0

    async def _take_again(self, letter: asyncpg.Record, raw: bytes) -> tuple[int, int]:
        how: dict[str, Any] = letter["headers"]
        whole_batch = how.get("call") == "batch"
        envelope = msgspec.convert(how.get("envelope", {}), Envelope)
        try:
            reading = read_body(raw, "batch") if whole_batch else Reading([Item(raw, how.get("call"))], envelope)
        except Refusal as refusal:
            raise _still(body_problem(Refused.because(refusal))) from None
        for index, item in enumerate(reading.items):
            # The same bytes refused anew open the letter again, with another time: that is another event.
            item.id = derived_id("replayed", letter["id"], letter["at"].isoformat(), index)
        source = await self._source(letter)
        arrival = Arrival(source, letter["at"], reading.envelope, how.get("address"))
        understood = await self._intake.understand(reading, arrival)
        if not understood.good:
            raise _still(refusal_problem(understood))
        if understood.refused:
            await self._intake.keep_refused(understood, arrival)
        await self._intake.append(understood.good)
        return len(understood.good), len(understood.refused)

    async def _source(self, letter: asyncpg.Record) -> Source:
        async with self._context.database.connection() as tx:
            source = await store.read_source(tx, letter["source"])
        if source is None:
            raise Problem(422, "The letter cannot be replayed", "Its source is not known.")
        return source


def _still(problem: Problem) -> Problem:
    return Problem(422, "It is refused again", problem.detail, problem.errors)
