"""From a choice to the provider: last looks, the step to *calling*, the exchange, and what came of it.

Calls are made by whoever has room; the row says who may. A process that dies in a call leaves a row in *calling*, and
everybody's reaper takes it up when its time is over.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from services.dispatch.adapter_settings import SettingsReader, Unusable
from services.dispatch.answers import LATE, Answer, Answers
from services.dispatch.channels.base import Adapter, Exchange, Result, StartBy, TooLate
from services.dispatch.consents import standing
from services.dispatch.inputs import Switch
from services.dispatch.measures import CALL_SECONDS, CALLS
from services.dispatch.rendered import Rendered
from services.dispatch.store import adapters, calls, claims
from services.dispatch.store.calls import START_SECONDS, Chosen, Silent
from services.dispatch.store.looking import read_consents, read_stops, read_suppressions
from shared import wake as signals
from shared.clock import pause
from shared.db import Tx
from shared.errors import is_transient
from shared.service import Context

log = structlog.get_logger(__name__)
# How long a sender that is stopped lets its exchanges go on: a process may take 28 s to end (services/draining.py).
FINISH_SECONDS = 20.0


class Sender:
    """Calls providers for what is chosen. Exchanges in progress are bounded for each adapter."""

    def __init__(
        self,
        context: Context,
        adapters: Mapping[str, Adapter],
        consents: Mapping[str, str],
        settings: SettingsReader,
        answers: Answers,
    ) -> None:
        """:param consents: a channel's name in the consent ledgers"""
        self._context, self._adapters, self._consents = context, adapters, consents
        self._settings, self._writer = settings, answers
        self._calling: dict[str, int] = dict.fromkeys(adapters, 0)
        self._answers: list[Answer] = []
        self._answered = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._settling: set[str] = set()
        # Adapters of which messages may wait for room.
        self._full: set[str] = set()

    async def loop(self) -> None:
        """Steps messages to *calling* and starts their exchanges, as long as there is room. When it is stopped it lets
        the exchanges in progress end, so that nothing stays unknown without need."""
        listener = self._context.wake.listen([signals.SENDER_DUE])
        answering = asyncio.create_task(self._write_as_they_come())
        try:
            while not answering.done():
                await self._start_wholly()
                await listener.wait(1.0)
            answering.result()
        finally:
            listener.close()
            await self._finish(answering)

    async def _finish(self, answering: asyncio.Task[None]) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FINISH_SECONDS)
        for task in self._tasks:
            task.cancel()
        answering.cancel()
        await asyncio.gather(*self._tasks, answering, return_exceptions=True)
        answers, self._answers = self._answers, []
        if answers:
            try:
                await self._writer.write_or_part(answers)
            except BaseException:
                self._answers = answers + self._answers  # what the providers said is known: the next run writes it
                self._answered.set()
                raise

    async def _start_wholly(self) -> None:
        """`start_calls` to its end, even when the loop is stopped meanwhile: what is *calling* has its exchange."""
        starting = asyncio.create_task(self.start_calls())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting], timeout=START_SECONDS)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            raise

    async def start_calls(self) -> int:
        """One short transaction for those whose calls start now; returns how many messages it moved."""
        free = {
            name: a.sessions - self._calling[name]
            for name, a in self._adapters.items()
            if a.sessions > self._calling[name]
        }
        # All, until this look is over: a call that ends meanwhile makes room that the look does not know of.
        self._full = set(self._adapters)
        if not free:
            return 0
        begun = time.monotonic()
        async with self._context.database.transaction() as tx:
            now = self._context.clock.now()
            chosen = await calls.lock_chosen(tx, free, now, adapters.MOST_FAILURES)
            taken = Counter(one.adapter for one in chosen)
            self._full = {name for name in self._adapters if taken[name] >= free.get(name, 0)}
            if not chosen:
                return 0
            await claims.lock(tx, {("address", one.address_node) for one in chosen})
            stops = await read_stops(tx)
            if stops.held:
                return 0
            settings, unusable = await self._told(tx, {one.adapter for one in chosen})
            untold = [one for one in chosen if one.adapter not in settings]
            forbidden = await _forbidden(tx, chosen, self._consents, stops.switches)
            stopped = {message for message, _, _ in forbidden}
            going = [one for one in chosen if one.id not in stopped and one not in untold]
            if forbidden:
                await calls.withhold(tx, forbidden, now)
            await self._return(tx, [one for one in untold if one.id not in stopped], unusable, now)
            if len(going) < len(chosen):
                await calls.uncount(tx, [one for one in chosen if one not in going])
            if going:
                await calls.to_calling(
                    tx, going, {n: a.timeout.total_seconds() for n, a in self._adapters.items()}, now
                )
        if any(one.adapter not in unusable for one in untold):
            self._context.wake.signal(signals.DISPATCH_DUE)
        await self._context.hooks.reach("dispatch.calling")
        for one in going:
            self._calling[one.adapter] += 1
            task = asyncio.create_task(self._call(one, StartBy(begun + START_SECONDS), settings[one.adapter]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(chosen)

    async def _return(self, tx: Tx, untold: Sequence[Chosen], unusable: Mapping[str, str], now: datetime) -> None:
        """To the queue. Whose adapter's settings were taken away meanwhile is chosen anew at once. An adapter whose settings
        cannot be read is left alone like one whose provider is away, until it is told them again."""
        if gone := [one.id for one in untold if one.adapter not in unusable]:
            await claims.give_back(tx, gone)
        waiting = [one for one in untold if one.adapter in unusable]
        if waiting:
            why = {name: unusable[name] for name in {one.adapter for one in waiting}}
            await adapters.blame(tx, dict.fromkeys(why, adapters.MOST_FAILURES), why, now)
            pauses = await adapters.read_pauses(tx)
            await claims.put_off(tx, {one.id: pauses[one.adapter].until or now for one in waiting})

    async def _told(self, tx: Tx, names: set[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """What these adapters were told, by name: None for one that needs nothing; and why that of others cannot be read.
        One whose settings are gone is in neither."""
        rows = await adapters.read_told(tx, sorted(names))
        found: dict[str, Any] = {}
        unusable: dict[str, str] = {}
        for name in names:
            adapter = self._adapters[name]
            if (told := rows.get(name)) is not None and adapter.settings_type is not None:
                try:
                    found[name] = self._settings.read(told)
                except Unusable as problem:
                    unusable[name] = str(problem)
                    log.error("adapter.unusable", adapter=name, problem=str(problem))
            elif adapter.serves_untold(self._context.settings):
                found[name] = None
        return found, unusable

    async def _call(self, one: Chosen, start_by: StartBy, settings: Any) -> None:
        adapter = self._adapters[one.adapter]
        begun = time.monotonic()
        try:
            exchange = self._exchange_of(one, one.attempts + 1, start_by, settings)
            result = await self._exchange(adapter, exchange)
            if result is not None and result.outcome == "unknown" and _can_be_asked(adapter):
                result = await self._ask(adapter, exchange, result)
        finally:
            self._calling[one.adapter] -= 1
        outcome = result.outcome if result is not None else "late"
        CALLS.labels(one.adapter, outcome).inc()
        CALL_SECONDS.labels(one.adapter).observe(time.monotonic() - begun)
        await self._context.hooks.reach("dispatch.answered")
        self._answers.append((one, one.attempts + 1, result or LATE))
        self._answered.set()
        if one.adapter in self._full:
            self._context.wake.signal(signals.SENDER_DUE, remote=False)

    def _exchange_of(self, one: Chosen, attempt: int, start_by: StartBy, settings: Any) -> Exchange:
        return Exchange(
            message=one.id,
            attempt=attempt,
            key=str(one.id),
            address=one.address,
            rendered=Rendered(text=one.body, subject=one.subject, html=one.html, urls=one.urls),
            purpose=one.purpose,
            sender=(self._context.settings.shop_name, self._context.settings.sender),
            at=one.called_at or self._context.clock.now(),
            start_by=start_by,
            settings=settings,
            provider_id=one.provider_id,
            valid_until=one.valid_until,
        )

    async def _exchange(self, adapter: Adapter, exchange: Exchange) -> Result | None:
        """The provider's answer; None when the moment to start has passed and nothing was sent."""
        try:
            async with asyncio.timeout(START_SECONDS + adapter.timeout.total_seconds()):
                return await adapter.send(exchange)
        except TooLate:
            return None
        except TimeoutError:
            return Result("unknown", "the provider did not answer in time")
        except Exception as problem:
            log.error("call.failed", adapter=adapter.name, message=str(exchange.message), exc_info=problem)
            return Result("unknown", f"the adapter failed: {type(problem).__name__}")

    async def _write_as_they_come(self) -> None:
        """Writes what came of exchanges, all that is there in one transaction: those that end soon after another, too."""
        linger = 0 if self._context.clock.virtual else self._context.settings.linger_ms / 1000
        while True:
            await self._answered.wait()
            if linger:
                await pause(linger)
            self._answered.clear()
            answers, self._answers = self._answers, []
            if not answers:
                continue
            try:
                await self._writer.write_or_part(answers)
            except BaseException as problem:
                self._answers = answers + self._answers
                self._answered.set()
                if not is_transient(problem):
                    raise
                log.warning("answers.retried", problem=type(problem).__name__)
                await pause(0.2)

    async def reap_loop(self) -> None:
        """Calls that never told are unknown: their provider is asked, where it can be. One that does not answer keeps
        nobody else's waiting."""
        rounds: set[asyncio.Task[int]] = set()
        try:
            while True:
                for done in [task for task in rounds if task.done()]:
                    rounds.discard(done)
                    done.result()
                rounds.add(asyncio.create_task(self.reap()))
                await pause(1.0)
        finally:
            for task in rounds:
                task.cancel()
            await asyncio.gather(*rounds, return_exceptions=True)

    async def reap(self) -> int:
        """Returns how many calls were given up, or asked about once more."""
        async with self._context.database.transaction() as tx:
            settles = {name: adapter.settles.total_seconds() for name, adapter in self._adapters.items()}
            silent = [
                *await calls.silent_calls(tx, 100, self._settling),
                *await calls.doubtful_calls(tx, 100, self._settling, settles),
            ]
            settings, _ = await self._told(
                tx, {one.call.adapter for one in silent if one.call.adapter in self._adapters}
            )
        by_adapter: dict[str, list[Silent]] = {}
        for one in silent:
            by_adapter.setdefault(one.call.adapter, []).append(one)
        self._settling |= set(by_adapter)
        try:
            await asyncio.gather(*(self._settle(name, these, settings.get(name)) for name, these in by_adapter.items()))
        finally:
            self._settling -= set(by_adapter)
        return len(silent)

    async def _settle(self, name: str, silent: Sequence[Silent], settings: Any) -> None:
        """Asks about one adapter's silent calls, as many at a time as it holds, and writes what came of them."""
        adapter = self._adapters.get(name)
        room = asyncio.Semaphore(adapter.sessions if adapter is not None else 1)
        read_at = time.monotonic()

        async def settled(of: Silent) -> Answer:
            # The row's attempts already count the one that is open; `Chosen.attempts` means those before it.
            one = of.call
            result = Result("unknown", of.detail, for_one=of.again)  # held against the provider when it was silent
            if adapter is not None and _can_be_asked(adapter):
                async with room:
                    exchange = self._exchange_of(one, one.attempts, StartBy(read_at + of.start_in), settings)
                    result = await self._ask(adapter, exchange, result)
            return one, one.attempts, result

        await self._writer.write_or_part(await asyncio.gather(*(settled(one) for one in silent)))

    async def _ask(self, adapter: Adapter, exchange: Exchange, unknown: Result) -> Result:
        """What the provider says became of it; `unknown` if it does not know either."""
        try:
            async with asyncio.timeout(adapter.timeout.total_seconds()):
                return await adapter.ask(exchange) or unknown
        except Exception as problem:
            log.warning(
                "ask.failed", adapter=adapter.name, message=str(exchange.message), problem=type(problem).__name__
            )
            return unknown


def _can_be_asked(adapter: Adapter) -> bool:
    return type(adapter).ask is not Adapter.ask


async def _forbidden(
    tx: Tx, chosen: Sequence[Chosen], channels: Mapping[str, str], switches: Sequence[Switch]
) -> list[tuple[UUID, str, str]]:
    """Consent, suppression and kill switches once more, under the addresses' locks: (message, code, reason)."""
    nodes = [one.address_node for one in chosen]
    consents = await read_consents(tx, nodes)
    suppressions = await read_suppressions(tx, nodes)
    found: list[tuple[UUID, str, str]] = []
    for one in chosen:
        suppression = suppressions.get((one.address_node, "*")) or suppressions.get((one.address_node, one.channel))
        state = standing(consents.get(one.address_node, []), channels.get(one.channel, one.channel), one.topic)
        if (switch := next((s for s in switches if _switches_off(s, one)), None)) is not None:
            what = switch.name or "everything"
            found.append((one.id, "switched-off", f"somebody switched off {what} just before the call"))
        elif suppression is not None:
            found.append((one.id, "suppressed", f"suppressed just before the call: {suppression.why}"))
        elif one.purpose == "marketing" and not state.may_write:
            when = f" at {state.at:%Y-%m-%d %H:%M:%S} UTC" if state.at else ""
            code = "opted-out" if state.opted_out else "no-consent"
            found.append((one.id, code, f"{state.state or 'no consent'}{when}, just before the call"))
    return found


def _switches_off(switch: Switch, one: Chosen) -> bool:
    names = {"all": {""}, "channel": {one.channel}, "rule": {one.rule_name, str(one.rule)}}[switch.scope]
    return switch.scope == "all" or switch.name in names
