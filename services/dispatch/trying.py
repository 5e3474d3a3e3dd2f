"""Test messages: one text to one address, through the adapter for real, without a rule, a person or a cap. They cost like
any other message, so they stand in the cost ledger; a row of their own says what came of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from uuid import UUID

import msgspec
import structlog

from services.dispatch.adapter_settings import SettingsReader, Unusable
from services.dispatch.answers import LATE
from services.dispatch.channels.base import Adapter, Exchange, Result, StartBy, TooLate
from services.dispatch.channels.registry import side_by_side, taking
from services.dispatch.feedback import publish
from services.dispatch.measures import TESTS
from services.dispatch.rendered import Rendered
from services.dispatch.reports import LONGEST_DETAIL, LONGEST_ID, Reports, plain
from services.dispatch.store import adapters as told
from services.dispatch.store import catalogue, claims, spending, tests
from services.dispatch.store.calls import MARGIN_SECONDS, START_SECONDS
from services.dispatch.store.looking import is_held, read_suppressions
from shared import wake as signals
from shared.db import Tx
from shared.errors import Problem, field_error
from shared.identifiers import Identifier
from shared.ids import uuid7
from shared.service import Context

log = structlog.get_logger(__name__)

# Of one channel: a key that got into the wrong hands must not become a free gateway.
MOST_AN_HOUR = 60


class Tried(msgspec.Struct, frozen=True):
    """What came of a test message. `cost`: what it costs, by the price or by the provider."""

    id: UUID
    adapter: str
    result: Result
    units: int


class Trials:
    """Sends test messages."""

    def __init__(
        self, context: Context, adapters: Mapping[str, Adapter], settings: SettingsReader, reports: Reports
    ) -> None:
        self._context, self._adapters, self._settings, self._reports = context, adapters, settings, reports

    async def send(self, channel: str, address: Identifier, wanted: str | None, text: str, by: str) -> Tried:
        """:raises Problem: nothing was sent, and why"""
        identity = uuid7(self._context.clock.now(), self._context.bits)
        rendered = Rendered(text=text, subject=self._context.settings.shop_name, urls={})
        begun = time.monotonic()
        adapter, exchange, units = await self._begin(identity, channel, address, wanted, rendered, by, begun)
        result = await _exchange(adapter, exchange)
        TESTS.labels(adapter.name, result.outcome).inc()
        await self._end(identity, adapter.name, result)
        return Tried(identity, adapter.name, result, units)

    async def _begin(
        self,
        identity: UUID,
        channel: str,
        address: Identifier,
        wanted: str | None,
        rendered: Rendered,
        by: str,
        begun: float,
    ) -> tuple[Adapter, Exchange, int]:
        """What must be so before the call, and the row that says that it was made."""
        now = self._context.clock.now()
        async with self._context.database.transaction() as tx:
            await claims.lock(tx, [("address", address.node), ("tests", channel)])
            row = await catalogue.read_channel(tx, channel)
            if row is None:
                raise Problem(404, "No such channel", f"There is no channel {channel!r}.")
            if await is_held(tx):
                raise Problem(409, "Dispatch is held", "After a restore nothing is sent until it is released.")
            suppressions = await read_suppressions(tx, [address.node])
            if found := suppressions.get((address.node, "*")) or suppressions.get((address.node, channel)):
                raise _not_now("address", f"is suppressed: {found.why}", "The address gets nothing")
            if await tests.count_since(tx, channel, now) >= MOST_AN_HOUR:
                raise Problem(429, "Too many test messages", f"A channel takes {MOST_AN_HOUR} an hour.")
            rows = await told.read_told(tx)
            kinds = {name: type(adapter) for name, adapter in self._adapters.items()}
            candidates = side_by_side(kinds, channel, wanted or row["adapter"], self._context.settings, rows)
            if not candidates:
                raise _not_now("adapter", "is not ready: it was not told its settings, or there is none such")
            kind = taking(candidates, address.value)
            if kind is None:
                raise _not_now("address", f"is none that {', '.join(k.name for k in candidates)} could send to")
            adapter = self._adapters[kind.name]
            price = adapter.price(rendered, row["unit_cost"])
            await self._check_spending(tx, channel, price.cost)
            # Before the row: what cannot be called must not look like a call of which nobody knows what came.
            exchange = self._exchange_of(identity, adapter, address, rendered, rows, begun)
            seconds = START_SECONDS + MARGIN_SECONDS + adapter.timeout.total_seconds()
            await tests.begin(tx, identity, channel, adapter.name, address.node, by, now, price, seconds)
        return adapter, exchange, price.units

    async def _check_spending(self, tx: Tx, channel: str, cost: Decimal) -> None:
        await claims.lock(tx, [("spending", channel)])
        day = spending.day_of(self._context.clock.now(), self._context.settings.shop_timezone)
        left = (await spending.read_left(tx, day)).get(channel)
        if left is not None and cost > left.amount:
            raise Problem(409, "The channel has spent what it may", f"{left.amount:f} of {left.ceiling:f} are left.")

    def _exchange_of(
        self,
        identity: UUID,
        adapter: Adapter,
        address: Identifier,
        rendered: Rendered,
        rows: Mapping[str, told.Told],
        begun: float,
    ) -> Exchange:
        settings = None
        if adapter.settings_type is not None and (row := rows.get(adapter.name)) is not None:
            try:
                settings = self._settings.read(row)
            except Unusable as problem:
                raise _not_now("adapter", str(problem)) from None
        return Exchange(
            message=identity,
            attempt=1,
            key=str(identity),
            address=address.value,
            rendered=rendered,
            purpose="transactional",
            sender=(self._context.settings.shop_name, self._context.settings.sender),
            at=self._context.clock.now(),
            start_by=StartBy(begun + START_SECONDS),
            settings=settings,
        )

    async def _end(self, identity: UUID, adapter: str, result: Result) -> None:
        """What came of it, its charge, and what the provider told before this was known."""
        now = self._context.clock.now()
        named = [(identity, adapter, plain(result.provider_id, LONGEST_ID))]
        async with self._context.database.transaction() as tx:
            await claims.lock(tx, self._reports.keys(named))
            await tests.end(tx, identity, result, plain(result.detail, LONGEST_DETAIL), named[0][2], now)
            await self._settle(tx, [identity])
            published = await publish(tx, await self._reports.apply_waiting(tx, named, now))
        if published:
            self._context.wake.signal(signals.outbox("dispatch"))

    async def reap(self) -> int:
        """Test messages whose process died in the call: nobody knows what came of them, so they are paid for."""
        async with self._context.database.transaction() as tx:
            silent = await tests.give_up(tx, self._context.clock.now())
            if silent:
                await self._settle(tx, silent)
        return len(silent)

    async def _settle(self, tx: Tx, identities: Sequence[UUID]) -> None:
        now = self._context.clock.now()
        day = spending.day_of(now, self._context.settings.shop_timezone)
        await spending.settle_tests(tx, identities, now, day)


async def _exchange(adapter: Adapter, exchange: Exchange) -> Result:
    try:
        async with asyncio.timeout(START_SECONDS + adapter.timeout.total_seconds()):
            return await adapter.send(exchange)
    except TooLate:
        return LATE
    except TimeoutError:
        return Result("unknown", "the provider did not answer in time")
    except Exception as problem:
        log.error("test.failed", adapter=adapter.name, message=str(exchange.message), exc_info=problem)
        return Result("unknown", f"the adapter failed: {type(problem).__name__}")


def _not_now(field: str, detail: str, title: str = "Cannot be tried") -> Problem:
    return Problem(422, title, errors=[field_error([field], detail)])
