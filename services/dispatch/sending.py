"""From a choice to the person: the step to *calling*, the exchange with the provider, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from msgspec.structs import replace

from services.dispatch.channels.base import Adapter, Exchange, Result, StartBy, TooLate
from services.dispatch.consents import standing
from services.dispatch.feedback import feedback, publish
from services.dispatch.inputs import Switch
from services.dispatch.measures import CALL_SECONDS, CALLS, COST, UNKNOWN
from services.dispatch.rendered import Rendered
from services.dispatch.store import calls, claims
from services.dispatch.store.calls import START_SECONDS, Answered, Chosen
from services.dispatch.store.ledgers import suppress_bounced
from services.dispatch.store.looking import read_consents, read_stops, read_suppressions
from shared import wake as signals
from shared.clock import pause
from shared.db import Tx
from shared.errors import is_transient
from shared.events import Event
from shared.service import Context

log = structlog.get_logger(__name__)

# After the nth attempt that did not reach the provider; what is left of its validity decides besides.
BACK_OFF = tuple(timedelta(minutes=m) for m in (1, 5, 15, 60, 240))
MOST_ATTEMPTS = 8
# How often a message may be sent again although the former attempt is unknown: transactional, or over a repeatable adapter.
MOST_REPEATS = 3


class Sender:
    """Calls providers for what is chosen. Exchanges in progress are bounded for each adapter."""

    def __init__(
        self,
        context: Context,
        adapters: Mapping[str, Adapter],
        prefixes: Mapping[str, str],
        consents: Mapping[str, str],
    ) -> None:
        """:param prefixes: how events of a channel begin; :param consents: its name in the consent ledgers"""
        self._context, self._adapters, self._prefixes, self._consents = context, adapters, prefixes, consents
        self._calling: dict[str, int] = dict.fromkeys(adapters, 0)
        self._answers: list[tuple[Chosen, int, Result]] = []
        self._answered = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def loop(self) -> None:
        """Steps messages to *calling* and starts their exchanges, as long as there is room. When it is stopped it lets
        the exchanges in progress end, so that nothing stays unknown without need."""
        listener = self._context.wake.listen([signals.SENDER_DUE])
        answering = asyncio.create_task(self._write_as_they_come())
        try:
            while not answering.done():
                if await self.start_calls() == 0:
                    await listener.wait(1.0)
            answering.result()
        finally:
            listener.close()
            await self._finish(answering)

    async def _finish(self, answering: asyncio.Task[None]) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=START_SECONDS)
        for task in self._tasks:
            task.cancel()
        answering.cancel()
        await asyncio.gather(*self._tasks, answering, return_exceptions=True)
        answers, self._answers = self._answers, []
        if answers:
            try:
                await self.write_answers(answers)
            except BaseException:
                self._answers = answers + self._answers  # what the providers said is known: the next run writes it
                self._answered.set()
                raise

    async def start_calls(self) -> int:
        """One short transaction for those whose calls start now; returns how many messages it moved."""
        free = {
            name: a.sessions - self._calling[name]
            for name, a in self._adapters.items()
            if a.sessions > self._calling[name]
        }
        if not free:
            return 0
        begun = time.monotonic()
        async with self._context.database.transaction() as tx:
            chosen = await calls.lock_chosen(tx, free)
            if not chosen:
                return 0
            now = self._context.clock.now()
            await claims.lock(tx, {("address", one.address_node) for one in chosen})
            stops = await read_stops(tx)
            if stops.held:
                return 0
            forbidden = await _forbidden(tx, chosen, self._consents, stops.switches)
            going = [one for one in chosen if one.id not in {message for message, _, _ in forbidden}]
            if forbidden:
                await calls.withhold(tx, forbidden, now)
                await calls.uncount(tx, [one for one in chosen if one not in going])
            if going:
                await calls.to_calling(
                    tx, going, {n: a.timeout.total_seconds() for n, a in self._adapters.items()}, now
                )
        await self._context.hooks.reach("dispatch.calling")
        for one in going:
            self._calling[one.adapter] += 1
            task = asyncio.create_task(self._call(one, StartBy(begun + START_SECONDS)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(chosen)

    async def _call(self, one: Chosen, start_by: StartBy) -> None:
        adapter = self._adapters[one.adapter]
        begun = time.monotonic()
        try:
            result = await self._exchange(adapter, one, start_by)
        finally:
            self._calling[one.adapter] -= 1
        outcome = result.outcome if result is not None else "late"
        CALLS.labels(one.adapter, outcome).inc()
        CALL_SECONDS.labels(one.adapter).observe(time.monotonic() - begun)
        await self._context.hooks.reach("dispatch.answered")
        self._answers.append((one, one.attempts + 1, result or _LATE))
        self._answered.set()
        self._context.wake.signal(signals.SENDER_DUE, remote=False)

    async def _exchange(self, adapter: Adapter, one: Chosen, start_by: StartBy) -> Result | None:
        """The provider's answer; None when the moment to start has passed and nothing was sent."""
        exchange = Exchange(
            message=one.id,
            attempt=one.attempts + 1,
            key=str(one.id),
            address=one.address,
            rendered=Rendered(text=one.body, subject=one.subject, html=one.html, urls=one.urls),
            purpose=one.purpose,
            sender=(self._context.settings.shop_name, self._context.settings.sender),
            at=self._context.clock.now(),
            start_by=start_by,
        )
        try:
            async with asyncio.timeout(START_SECONDS + adapter.timeout.total_seconds()):
                return await adapter.send(exchange)
        except TooLate:
            return None
        except TimeoutError:
            return Result("unknown", "the provider did not answer in time")
        except Exception as problem:
            log.error("call.failed", adapter=one.adapter, message=str(one.id), exc_info=problem)
            return Result("unknown", f"the adapter failed: {type(problem).__name__}")

    async def _write_as_they_come(self) -> None:
        """Writes what came of exchanges, all that is there in one transaction."""
        while True:
            await self._answered.wait()
            self._answered.clear()
            answers, self._answers = self._answers, []
            if not answers:
                continue
            try:
                await self.write_answers(answers)
            except BaseException as problem:
                self._answers = answers + self._answers
                self._answered.set()
                if not is_transient(problem):
                    raise
                log.warning("answers.retried", problem=type(problem).__name__)
                await pause(0.2)

    async def write_answers(self, answers: Sequence[tuple[Chosen, int, Result]]) -> None:
        """Outcomes, charges, suppressions and the events that tell of them."""
        now = self._context.clock.now()
        results = {one.id: (one, number, result) for one, number, result in answers}
        async with self._context.database.transaction() as tx:
            answered = [self._judged(one, number, result, now) for one, number, result in answers]
            written = await calls.store_answers(tx, answered, now)
            done = [(one, *results[one.id][1:]) for one in written]
            charges = [
                (one, number, result.charged if result.charged is not None else one.cost)
                for one, number, result in done
                if result.outcome in ("sent", "unknown")  # what may have been taken is paid for: spending has a ceiling
            ]
            if charges:
                await calls.charge(tx, charges, now)
            unreached = [one for one, _, result in done if result.outcome in ("retry", "bounced", "failed")]
            if unreached:
                await calls.uncount(tx, unreached)
            bounced = [(one, result.detail) for one, _, result in done if result.outcome == "bounced"]
            if bounced:
                await suppress_bounced(tx, bounced, self._kinds(), now, self._context.bits)
            events = [
                event for one, number, result in done if (event := self._event(one, number, result, now)) is not None
            ]
            published = await publish(tx, events)
        self._after(done, answered, published)

    def _kinds(self) -> dict[str, str]:
        return {name: adapter.address_kind for name, adapter in self._adapters.items()}

    def _after(self, done: Sequence[tuple[Chosen, int, Result]], answered: Sequence[Answered], published: bool) -> None:
        for one, _, result in done:
            if result.outcome in ("sent", "unknown"):
                COST.labels(one.channel).inc(float(result.charged if result.charged is not None else one.cost))
        for judged in answered:
            if judged.outcome == "unknown":
                UNKNOWN.labels("", judged.state).inc()
        if published:
            self._context.wake.signal(signals.outbox("dispatch"))
        self._context.wake.signal(signals.DISPATCH_DUE)
        self._context.wake.signal(signals.SENDER_DUE)

    def _judged(self, one: Chosen, number: int, result: Result, now: datetime) -> Answered:
        adapter = self._adapters.get(one.adapter)
        return judged(one, number, result, now, repeatable=adapter is not None and adapter.repeatable)

    def _event(self, one: Chosen, number: int, result: Result, now: datetime) -> Event | None:
        what = {"sent": "Sent", "bounced": "Bounced", "failed": "Failed"}.get(result.outcome)
        if what is None:
            return None
        detail = result.detail or None if what != "Sent" else None
        return feedback(
            one,
            self._prefixes.get(one.channel, one.channel.capitalize()),
            what,
            f"{number}/{what.lower()}",
            now,
            detail=detail,
        )

    async def reap_loop(self) -> None:
        """Calls that never told are unknown: their provider is asked, where it can be."""
        while True:
            await self.reap()
            await pause(1.0)

    async def reap(self) -> int:
        """Returns how many calls were given up."""
        async with self._context.database.transaction() as tx:
            silent = await calls.silent_calls(tx, 100)
        answers: list[tuple[Chosen, int, Result]] = []
        for one in silent:
            # The row's attempts already count the one that is open; `Chosen.attempts` means those before it.
            answers.append((one, one.attempts, await self._ask(one)))
        if answers:
            await self.write_answers(answers)
        return len(answers)

    async def _ask(self, one: Chosen) -> Result:
        adapter = self._adapters.get(one.adapter)
        unknown = Result("unknown", "no answer was stored in its time")
        if adapter is None:
            return unknown
        exchange = Exchange(
            message=one.id,
            attempt=one.attempts,
            key=str(one.id),
            address=one.address,
            rendered=Rendered(text=one.body, subject=one.subject, html=one.html, urls=one.urls),
            purpose=one.purpose,
            sender=(self._context.settings.shop_name, self._context.settings.sender),
            at=self._context.clock.now(),
            start_by=StartBy(0.0),
        )
        try:
            async with asyncio.timeout(adapter.timeout.total_seconds()):
                return await adapter.ask(exchange) or unknown
        except Exception as problem:
            log.warning("ask.failed", adapter=one.adapter, message=str(one.id), problem=type(problem).__name__)
            return unknown


_LATE = Result("retry", "the moment to start had passed; nothing was sent")


def judged(one: Chosen, number: int, result: Result, now: datetime, *, repeatable: bool) -> Answered:
    """The message's next state after an attempt. Pure.

    *Unknown*: marketing is never tried again, unless the provider tells a repeat by its key; transactional mail is.
    """
    base = Answered(one.id, number, result.outcome, "", detail=result.detail, provider_id=result.provider_id)
    match result.outcome:
        case "sent":
            return replace(base, state="sent", charged=result.charged)
        case "bounced" | "failed":
            code = "bounced" if result.outcome == "bounced" else "refused"
            return replace(base, state="failed", reason_code=code, reason=result.detail)
        case "retry" if result is _LATE:
            return replace(base, outcome="late", state="queued", due_at=now)
        case "retry":
            due = now + BACK_OFF[min(number, len(BACK_OFF)) - 1]
            if number >= MOST_ATTEMPTS or due > one.valid_until:
                text = f"{number} attempts, the last: {result.detail}"
                return replace(base, state="failed", reason_code="exhausted", reason=text)
            return replace(base, state="queued", due_at=due)
    again = one.repeats < MOST_REPEATS and now <= one.valid_until and (repeatable or one.kind == "transactional")
    if again:
        return replace(base, state="queued", due_at=now, pinned=one.channel, repeat=True)
    return replace(base, state="unknown", reason_code="unknown", reason=result.detail)


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
