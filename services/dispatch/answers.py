"""What came of exchanges, written down: states, charges, suppressions, who is away, and the events that tell of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import structlog
from msgspec.structs import replace

from services.dispatch.channels.base import Adapter, Result
from services.dispatch.feedback import feedback, publish
from services.dispatch.measures import AWAY, COST, PAUSES, UNKNOWN
from services.dispatch.reports import LONGEST_DETAIL, LONGEST_ID, Reports, plain
from services.dispatch.store import adapters, calls, claims, spending
from services.dispatch.store.calls import Answered, Chosen
from services.dispatch.store.ledgers import suppress_bounced
from shared import wake as signals
from shared.db import Tx
from shared.errors import is_transient
from shared.events import Event
from shared.service import Context

log = structlog.get_logger(__name__)

# After the nth attempt that did not reach the provider; what is left of its validity decides besides. The first is short: a
# server that is being restarted is back by then. There is no most: what the shop has to mend (a password, a sender's name) may
# take it a day, and the message is kept as long as it is good.
BACK_OFF = (timedelta(seconds=10), *(timedelta(minutes=m) for m in (1, 5, 15, 60, 240)))
# A provider that says "at once" after refusing is not taken at its word.
LEAST_WAIT = timedelta(seconds=1)
# How often a message may be sent again although the former attempt is unknown: transactional, or over a repeatable adapter.
MOST_REPEATS = 3
LATE = Result("retry", "the moment to start had passed; nothing was sent")

# A message as it was before the attempt, the attempt's number, what came of it.
Answer = tuple[Chosen, int, Result]


class Answers:
    """Writes answers. `prefixes`: how events of a channel begin."""

    def __init__(
        self, context: Context, kinds: Mapping[str, type[Adapter]], prefixes: Mapping[str, str], reports: Reports
    ) -> None:
        self._context, self._kinds, self._prefixes, self._reports = context, kinds, prefixes, reports

    async def write_or_part(self, answers: Sequence[Answer]) -> None:
        """Writes them all. If the database refuses the batch for what is in it, each alone: the one at fault is left to
        the reaper, which takes it for unknown, and its neighbours are not held.

        :raises Exception: what is transient
        """
        try:
            await self.write(answers)
        except Exception as problem:
            if is_transient(problem) or len(answers) == 0:
                raise
            log.error("answers.refused", number=len(answers), exc_info=problem)
            if len(answers) > 1:
                for answer in answers:
                    await self.write_or_part([answer])

    async def write(self, answers: Sequence[Answer]) -> None:
        """Outcomes, charges, suppressions and the events that tell of them; and what providers told before this was known."""
        now = self._context.clock.now()
        answers = [(one, number, _clean(result)) for one, number, result in answers]
        results = {one.id: (number, result) for one, number, result in answers}
        named = [(one.id, one.adapter, result.provider_id) for one, _, result in answers]
        async with self._context.database.transaction() as tx:
            await claims.lock(tx, self._reports.keys(named))
            await calls.lock_messages(tx, list(results))
            answered = [self._judged(one, number, result, now) for one, number, result in answers]
            written = await calls.store_answers(tx, answered, now)
            done = [(one, *results[one.id]) for one in written]
            day = spending.day_of(now, self._context.settings.shop_timezone)
            await spending.settle(tx, [(one.id, number) for one, number, _ in answers], now, day)
            unreached = [one for one, _, result in done if result.outcome in ("retry", "bounced", "failed")]
            if unreached:
                await calls.uncount(tx, unreached)
            bounced = [(one, result.detail) for one, _, result in done if result.outcome == "bounced"]
            if bounced:
                await suppress_bounced(tx, bounced, self._address_kinds(), now, self._context.bits)
            told = await self._reports.apply_waiting(tx, named, now)
            recovered = await self._hold_against(tx, answers, now)
            published = await publish(tx, [*self._events(done, now), *told])
        self._after(done, answered, published, recovered)

    async def _hold_against(self, tx: Tx, answers: Sequence[Answer], now: datetime) -> bool:
        """Whose provider answered, whose was away, and who asks to be left alone. Returns whether one is back."""
        there, away, why, asked = judge_providers(answers, now)
        recovered = await adapters.recovered(tx, there) if there else False
        if away:
            await adapters.blame(tx, away, why, now)
            for name, number in away.items():
                AWAY.labels(name).inc(number)
        if asked:
            await adapters.leave_alone(tx, asked)
            for name in asked:
                PAUSES.labels(name).inc()
        return recovered

    def _address_kinds(self) -> dict[str, str]:
        return {name: kind.address_kind for name, kind in self._kinds.items()}

    def _after(self, done: Sequence[Answer], answered: Sequence[Answered], published: bool, recovered: bool) -> None:
        adapter_of = {one.id: one.adapter for one, _, _ in done}
        for one, _, result in done:
            if result.outcome in ("sent", "unknown"):
                COST.labels(one.channel).inc(float(result.charged if result.charged is not None else one.cost))
        for judged_one in answered:
            if judged_one.outcome == "unknown" and judged_one.message in adapter_of:
                UNKNOWN.labels(adapter_of[judged_one.message], judged_one.state).inc()
        if published:
            self._context.wake.signal(signals.outbox("dispatch"))
        self._context.wake.signal(signals.ANSWERED)
        if any(judged_one.state == "queued" for judged_one in answered):
            self._context.wake.signal(signals.DISPATCH_DUE)
        if recovered:
            self._context.wake.signal(signals.SENDER_DUE)

    def _judged(self, one: Chosen, number: int, result: Result, now: datetime) -> Answered:
        kind = self._kinds.get(one.adapter)
        answered = judged(one, number, result, now, repeatable=kind is not None and kind.repeatable)
        if kind is not None and answered.state == answered.outcome == "unknown":
            return replace(answered, settles=kind.settles.total_seconds())
        return answered

    def _events(self, done: Iterable[Answer], now: datetime) -> list[Event]:
        found = []
        for one, number, result in done:
            what = {"sent": "Sent", "bounced": "Bounced", "failed": "Failed"}.get(result.outcome)
            if what == "Failed" and one.pinned is not None:
                continue  # an earlier attempt may have arrived: a rule must not fall back on another channel
            if what is not None:
                prefix = self._prefixes.get(one.channel, one.channel.capitalize())
                detail = result.detail or None if what != "Sent" else None
                found.append(feedback(one, prefix, what, f"{number}/{what.lower()}", now, detail=detail))
        return found


def judge_providers(
    answers: Iterable[Answer], now: datetime
) -> tuple[list[str], dict[str, int], dict[str, str], dict[str, datetime]]:
    """(adapters whose provider answered, adapters → exchanges that found it away, why, adapters → left alone until). Pure.

    Who answers some is there: what it did not answer is then not held against it.
    """
    there: set[str] = set()
    away: Counter[str] = Counter()
    why: dict[str, str] = {}
    asked: dict[str, datetime] = {}
    for one, _, result in answers:
        if result.outcome in ("sent", "bounced", "failed"):
            there.add(one.adapter)
        elif result.for_one:
            continue
        elif result.retry_after is not None:
            there.add(one.adapter)
            wait = min(max(result.retry_after, timedelta(0)), adapters.LONGEST_PAUSE)
            asked[one.adapter] = max(asked.get(one.adapter, now), now + wait)
        elif result.detail != LATE.detail:
            away[one.adapter] += 1
            why[one.adapter] = result.detail
    held = {name: number for name, number in away.items() if name not in there}
    return sorted(there), held, {name: why[name] for name in held}, asked


def judged(one: Chosen, number: int, result: Result, now: datetime, *, repeatable: bool) -> Answered:
    """The message's next state after an attempt. Pure.

    *Unknown*: marketing is never tried again, unless the provider tells a repeat by its key; transactional mail is. Once
    an attempt is unknown the message stays with its channel, whatever the next ones come to: it may have arrived there.
    """
    base = Answered(
        one.id, number, result.outcome, "", detail=result.detail, provider_id=result.provider_id, pinned=one.pinned
    )
    match result.outcome:
        case "sent":
            return replace(base, state="sent", charged=result.charged, pinned=None)
        case "failed" if one.pinned is not None:
            return _perhaps_arrived(base, result.detail)
        case "bounced" | "failed":
            code = "bounced" if result.outcome == "bounced" else "refused"
            return replace(base, state="failed", reason_code=code, reason=result.detail)
        case "retry" if result.detail == LATE.detail:
            return replace(base, outcome="late", state="queued", due_at=now)
        case "retry":
            return _tried_later(base, one, number, result, now)
    awaited = "marketing" not in (one.kind, one.purpose)
    again = one.repeats < MOST_REPEATS and now <= one.valid_until and (repeatable or awaited)
    base = replace(base, charged=result.charged)
    if again:
        return replace(base, state="queued", due_at=now, pinned=one.channel, repeat=True)
    return replace(base, state="unknown", reason_code="unknown", reason=result.detail)


def _tried_later(base: Answered, one: Chosen, number: int, result: Result, now: datetime) -> Answered:
    """As long as the message is good; when the provider says, if it does, and then it is no failure."""
    if result.retry_after is not None:
        due = now + max(result.retry_after, LEAST_WAIT)
    else:
        due = now + BACK_OFF[min(number, len(BACK_OFF)) - 1]
    if due > one.valid_until:
        text = f"{number} attempts, the last: {result.detail}"
        if one.pinned is not None:
            return _perhaps_arrived(base, text)
        return replace(base, state="failed", reason_code="exhausted", reason=text)
    return replace(base, state="queued", due_at=due)


def _perhaps_arrived(base: Answered, what: str) -> Answered:
    """The end of a message of which this attempt did not arrive, and an earlier one may have."""
    reason = f"what came of an earlier attempt is not known; the last: {what}"
    return replace(base, state="unknown", reason_code="unknown", reason=reason)


def _clean(result: Result) -> Result:
    """What a provider said, as the database takes it: one text must not spoil the batch."""
    return replace(
        result, detail=plain(result.detail, LONGEST_DETAIL), provider_id=plain(result.provider_id, LONGEST_ID)
    )
