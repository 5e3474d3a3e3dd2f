"""From a body that was read to durable events: parse, keep what is refused, append what is good.

Used by the collecting endpoints and by the replay of what they refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from services.ingest import metrics
from services.ingest.gate import RubbishAllowance
from services.ingest.parse import Arrival, Parsed, Shop, parse_item
from services.ingest.reading import Item, Reading
from services.ingest.refusal import Refused
from services.ingest.store import Letter
from shared.bus.base import Bus, Outgoing
from shared.errors import Problem, field_error
from shared.events import EVENTS, HISTORY, Event, cloud_headers, encode
from shared.hooks import Hooks
from shared.ids import RandomBits, derived_id
from shared.log import get_logger

IN_A_THREAD = 64 * 1024  # bytes of a body from which reading and parsing leave the event loop
APPEND_TIMEOUT = 10.0  # seconds
MOST_ERRORS = 20  # listed in one answer

log = get_logger(__name__)


class RefusedItem(msgspec.Struct, frozen=True):
    """An item that is not taken: its place in the batch, and why."""

    index: int
    item: Item
    why: Refused


class Understood(msgspec.Struct):
    """What a body means."""

    good: list[Event]
    refused: list[RefusedItem]
    batch: bool


class Intake:
    """`keep` stores letters for a person to look at. Raises what bus and database raise."""

    def __init__(
        self,
        bus: Bus,
        shop: Shop,
        hooks: Hooks,
        bits: RandomBits,
        keep: Callable[[Sequence[Letter]], Awaitable[None]],
        allowance: RubbishAllowance | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus, self._shop, self._hooks, self._bits, self._keep = bus, shop, hooks, bits, keep
        self._allowance, self._monotonic = allowance or RubbishAllowance(), monotonic
        self._accepted = {trust: metrics.ACCEPTED.labels(trust) for trust in ("public", "signed", "secret")}

    async def understand(self, reading: Reading, arrival: Arrival) -> Understood:
        """Parses all items, outside the event loop when there is much to parse."""
        if sum(len(item.raw) for item in reading.items) < IN_A_THREAD:
            return self._understand(reading, arrival)
        return await asyncio.to_thread(self._understand, reading, arrival)

    def _understand(self, reading: Reading, arrival: Arrival) -> Understood:
        understood = Understood([], [], reading.batch)
        for index, item in enumerate(reading.items):
            parsed = parse_item(item, arrival, self._shop, self._bits)
            if isinstance(parsed, Refused):
                understood.refused.append(RefusedItem(index, item, parsed))
            else:
                understood.good.append(parsed.event)
                if parsed.bad_ids or parsed.removed or parsed.badly_signed:
                    _count(parsed)
        return understood

    async def append(self, events: Sequence[Event]) -> None:
        """Returns when all events are durable."""
        if not events:
            return
        begun = self._monotonic()
        async with asyncio.timeout(APPEND_TIMEOUT):
            await self._bus.append([outgoing(event) for event in events])
        metrics.SECONDS.observe(self._monotonic() - begun)
        for event in events:
            self._accepted[event.trust].inc()
        await self._hooks.reach("ingest.appended")

    async def keep_refused(self, understood: Understood, arrival: Arrival) -> None:
        """Keeps every refused item with its reason. Raises Problem 429 when a public source sends too much of that."""
        if understood.refused:
            await self._keep_letters(
                [
                    _letter(entry.item.raw, entry.item.type, understood.batch, entry.why, arrival)
                    for entry in understood.refused
                ],
                arrival,
            )
            for entry in understood.refused:
                metrics.REFUSED.labels(entry.why.kind).inc()

    async def keep_body(self, raw: bytes, call: str, why: Refused, arrival: Arrival) -> None:
        """Keeps a whole body that could not be read."""
        await self._keep_letters([_letter(raw, call, call == "batch", why, arrival)], arrival)
        metrics.REFUSED.labels(why.kind).inc()

    async def _keep_letters(self, letters: list[Letter], arrival: Arrival) -> None:
        source = arrival.source
        size = sum(len(letter.raw) for letter in letters)
        if source.kind == "public" and not self._allowance.take(source.id, size, self._monotonic()):
            raise Problem(
                429,
                "Too many refused events",
                "This public source sends more events that are refused than are kept; the last: " + letters[-1].reason,
                headers={"Retry-After": "30"},
            )
        await self._keep(letters)
        log.info("ingest.refused", source=source.name, count=len(letters), reason=letters[0].reason)


def outgoing(event: Event) -> Outgoing:
    """The event as a record of the bus, keyed by its origin node."""
    origin = str(event.origin)
    return Outgoing(
        HISTORY if event.history else EVENTS,
        origin.encode(),
        encode(event),
        cloud_headers(event.id, f"/sources/{event.source}", f"dripline.{event.type}", event.occurred_at, origin),
    )


def _count(parsed: Parsed) -> None:
    for candidate in parsed.bad_ids:
        metrics.BAD_IDENTIFIERS.labels(candidate.kind).inc()
    if parsed.removed:
        metrics.REMOVED.inc(len(parsed.removed))
    if parsed.badly_signed:
        metrics.BADLY_SIGNED.inc()


def _letter(raw: bytes, call: str | None, batch: bool, why: Refused, arrival: Arrival) -> Letter:
    """`headers` holds what a replay needs to read the bytes as they were read the first time."""
    headers: dict[str, Any] = {"call": call, "batch": batch, "kind": why.kind}
    if arrival.envelope.context or arrival.envelope.integrations or arrival.envelope.sent_at:
        headers["envelope"] = msgspec.to_builtins(arrival.envelope)
    if arrival.address:
        headers["address"] = arrival.address
    identity = derived_id("refused", arrival.source.id, hashlib.sha256(raw).hexdigest())
    return Letter(identity, arrival.source.id, why.reason, why.pointer, raw, headers, arrival.received_at)


def refused_errors(understood: Understood) -> list[dict[str, str]]:
    """The refused items as a problem's `errors`, the first 20."""
    errors = []
    for entry in understood.refused[:MOST_ERRORS]:
        pointer = f"#/batch/{entry.index}{entry.why.pointer}" if understood.batch else f"#{entry.why.pointer}"
        errors.append({"pointer": pointer, "detail": entry.why.reason})
    return errors


def refusal_problem(understood: Understood) -> Problem:
    """The answer when nothing in a body could be taken."""
    if not understood.refused:
        return Problem(
            400, "The batch is empty", "A batch needs at least one event.", [field_error(["batch"], "is empty")]
        )
    errors = refused_errors(understood)
    too_large = all(entry.why.kind == "size" for entry in understood.refused)
    first = f"{errors[0]['pointer']}: {errors[0]['detail']}"
    return Problem(413 if too_large else 400, "No event could be taken", first, errors)


def body_problem(why: Refused) -> Problem:
    """The answer to a body that could not be read."""
    status = 413 if why.kind == "count" else 400
    detail = f"#{why.pointer}: {why.reason}"
    return Problem(status, "The body cannot be read", detail, [{"pointer": f"#{why.pointer}", "detail": why.reason}])
