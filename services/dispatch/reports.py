"""What providers tell of messages after they took them: each report is applied once, whatever comes twice, late, out of
order, or before our own answer was stored.

A report is kept under the provider's id for it. It speaks of a message by our id, by the provider's own, or by the address.
As long as that message is being called it waits (what it says of the address counts at once): whoever writes the answer
down applies it, in the same transaction. So that neither overlooks the other, both hold the lock of the name that the
report uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from services.dispatch.channels.base import Adapter, Report
from services.dispatch.consents import is_out, standing
from services.dispatch.feedback import feedback, publish
from services.dispatch.measures import REPORTS
from services.dispatch.store import calls, claims, spending
from services.dispatch.store import reports as store
from services.dispatch.store.looking import read_address_nodes, read_consents
from services.dispatch.store.reports import Refusal, Row, Target
from shared import wake as signals
from shared.db import Tx
from shared.events import REMEMBERED, Event, internal_event
from shared.facts.consent import ALL
from shared.identifiers import BadIdentifier, Identifier, identifier
from shared.ids import uuid7
from shared.service import Context

# What proves that the person has the message, whatever we thought of it.
PROOFS = frozenset({"delivered", "opened", "clicked", "replied", "done"})
# What concerns the address, and so must not wait for anything.
ABOUT_THE_ADDRESS = frozenset({"bounced", "complained", "unsubscribed"})
# Reports about messages that nobody sent here are kept this long; those that were applied as long as events are known.
WAITING_KEPT = timedelta(days=7)
APPLIED_KEPT = REMEMBERED
LONGEST_ID = 500
LONGEST_DETAIL = 1_000


class Reports:
    """Applies reports. By channel: `prefixes` of events, and its name in the consent ledgers (`consents`)."""

    def __init__(
        self,
        context: Context,
        kinds: Mapping[str, type[Adapter]],
        prefixes: Mapping[str, str],
        consents: Mapping[str, str],
    ) -> None:
        self._context, self._kinds, self._prefixes, self._consents = context, kinds, prefixes, consents

    async def receive(self, adapter: str, reports: Sequence[Report]) -> Counter[str]:
        """Keeps and applies what a provider told; returns how many were applied, repeated, waiting and stray."""
        now = self._context.clock.now()
        rows = [self._row(adapter, report) for report in {report.id: report for report in reports}.values()]
        counted: Counter[str] = Counter()
        if not rows:
            return counted
        async with self._context.database.transaction() as tx:
            await claims.lock(tx, (key for row in rows for key in _keys(row)))
            new = await store.add(tx, rows, now)
            fresh = [row for row in rows if (row.adapter, row.report.id) in new]
            counted["repeated"] = len(reports) - len(fresh)
            published = False
            if fresh:
                outcome, events = await self._apply(tx, fresh, now)
                counted.update(outcome)
                published = await publish(tx, events)
        for result, number in counted.items():
            REPORTS.labels(adapter, result).inc(number)
        if published:
            self._context.wake.signal(signals.outbox("dispatch"))
        return counted

    def takes_reports(self, adapter: str) -> bool:
        """Whether the adapter's provider tells anything later: by calls, over a session, or when it is asked."""
        kind = self._kinds.get(adapter)
        return kind is not None and (
            kind.receive is not Adapter.receive
            or kind.attend is not Adapter.attend
            or kind.follow is not Adapter.follow
        )

    def keys(self, answered: Iterable[tuple[UUID, str, str]]) -> set[tuple[str, UUID | str]]:
        """The locks under which answers, (message, adapter, provider's id), must be written."""
        found: set[tuple[str, UUID | str]] = set()
        for message, adapter, provider_id in answered:
            if self.takes_reports(adapter):
                found.add(("report", str(message)))
                if provider_id:
                    found.add(("report", f"{adapter}/{provider_id}"))
        return found

    async def apply_waiting(self, tx: Tx, answered: Sequence[tuple[UUID, str, str]], now: datetime) -> list[Event]:
        """Applies reports that came before these answers, which are written by now; returns what is to be published."""
        concerned = [one for one in answered if self.takes_reports(one[1])]
        if not concerned:
            return []
        rows = await store.waiting(
            tx, [message for message, _, _ in concerned], [(name, other) for _, name, other in concerned if other]
        )
        return (await self._apply(tx, rows, now))[1] if rows else []

    def _row(self, adapter: str, report: Report) -> Row:
        kind = self._kinds[adapter]
        node = None
        if report.address:
            try:
                node = identifier(
                    self._context.node_namespace, kind.address_kind, report.address, self._context.settings.shop_country
                ).node
            except BadIdentifier:
                pass
        clean = msgspec.structs.replace(
            report,
            id=plain(report.id, LONGEST_ID),
            provider_id=plain(report.provider_id, LONGEST_ID),
            detail=plain(report.detail, LONGEST_DETAIL),
        )
        return Row(adapter, clean, node)

    async def _apply(self, tx: Tx, rows: Sequence[Row], now: datetime) -> tuple[Counter[str], list[Event]]:
        """A constant number of statements. Returns how many came to what, and what is to be published."""
        tests = await store.apply_to_tests(tx, rows)
        targets = await store.find(tx, rows)
        work = _Work(now)
        states: dict[tuple[str, str], tuple[str, UUID | None]] = {}
        for index, row in enumerate(rows):
            target = targets.get(index)
            state = "applied" if index in tests else self._take_in(work, row, target)
            states[row.adapter, row.report.id] = (state, target.message.id if target else None)
        await self._write(tx, work, list(tests.values()))
        events = [*work.events, *await self._hits(tx, work), *await self._refuse(tx, work)]
        await store.mark(tx, states)
        return Counter(state for state, _ in states.values()), events

    def _take_in(self, work: _Work, row: Row, target: Target | None) -> str:
        """What the report changes, without writing it; returns the report's state."""
        report = row.report
        about = report.what in ABOUT_THE_ADDRESS
        # Whoever refuses refuses at once. A bounce speaks of the message, too: that part waits for our answer as others
        # do, and when it is applied the address's part, which is done by then, changes nothing.
        refuses = about and report.what != "bounced"
        if target is None:
            known = about and row.node is not None
            if known:
                work.about.append((row, None))
            waits = report.message is None and report.provider_id != "" and not (known and refuses)
            return "waiting" if waits else "applied" if known else "stray"
        if target.state == "calling" and not refuses:
            if about:
                work.about.append((row, target))
            return "waiting"
        work.targets[target.message.id, target.number] = target
        if report.charged is not None:
            target.charged, target.changed = report.charged, True
        if report.what in PROOFS:
            self._prove(work, row, target)
        if report.what in ("delivered", "failed", "bounced"):
            self._deliver(work, row, target)
        elif report.what in ("opened", "clicked"):
            work.hits.append((row, target))
        elif report.what in ("replied", "done"):
            what = "Replied" if report.what == "replied" else "Done"
            self._tell(work, target, what, f"{target.number}/{report.what}/{report.id}", row)
        if about:
            work.about.append((row, target))
        return "applied"

    def _prove(self, work: _Work, row: Row, target: Target) -> None:
        """The person has it: it was sent, whatever became of our own exchange, and is not sent again."""
        if target.outcome != "sent":
            target.outcome, target.changed = "sent", True
            self._tell(work, target, "Sent", f"{target.number}/sent", None)
        if target.state != "sent":
            target.state, target.reason_code, target.reason = "sent", None, None
            target.recount, target.uncount, target.changed = True, False, True

    def _deliver(self, work: _Work, row: Row, target: Target) -> None:
        report = row.report
        told = target.was_told(report.what)
        if not target.delivers(report.what, _at(report, target, work.now)) or told:
            return
        code = {"failed": "undelivered", "bounced": "bounced"}.get(report.what)
        # A message that waits to be tried again goes on waiting: that this attempt did not arrive is why it is tried.
        if code is not None and target.state in ("sent", "unknown") and target.number == target.attempts:
            target.state, target.reason_code, target.reason = "failed", code, report.detail or None
            target.uncount = True
        if target.outcome == "unknown" and code is not None:
            target.outcome = "sent"  # the provider took it, or it could not tell
        what, key = {
            "delivered": ("Delivered", "delivered"),
            "failed": ("Failed", "undelivered"),
            "bounced": ("Bounced", "bounced"),
        }[report.what]
        self._tell(work, target, what, f"{target.number}/{key}", row)

    def _tell(self, work: _Work, target: Target, what: str, key: str, row: Row | None) -> None:
        if target.forgotten:
            return  # nobody is to be known by it any more
        more: dict[str, Any] = {}
        if row is not None:
            at = row.report.at.isoformat() if row.report.at else None
            more = {**row.report.properties, "detail": row.report.detail or None, "reported_at": at}
        prefix = self._prefixes.get(target.message.channel, target.message.channel.capitalize())
        work.events.append(feedback(target.message, prefix, what, key, work.now, **more))

    async def _write(self, tx: Tx, work: _Work, tests: Sequence[UUID]) -> None:
        """Attempts, messages, the cost ledger, what counts against caps."""
        changed = [target for target in work.targets.values() if target.changed]
        day = spending.day_of(work.now, self._context.settings.shop_timezone)
        if changed:
            await store.write_targets(tx, changed, work.now)
            await spending.settle(tx, [(target.message.id, target.number) for target in changed], work.now, day)
        if tests:
            await spending.settle_tests(tx, tests, work.now, day)
        if again := [target for target in changed if target.recount]:
            await store.recount(tx, again)
        if gone := [target.message for target in changed if target.uncount]:
            await calls.uncount(tx, gone)

    async def _hits(self, tx: Tx, work: _Work) -> list[Event]:
        """Opens and clicks that the provider saw; the same event as our own pixel's, so it is one however it was seen."""
        if not work.hits:
            return []
        kinds = {"opened": "open", "clicked": "click"}
        new = await store.add_hits(tx, [(t.message.id, kinds[row.report.what]) for row, t in work.hits], work.now)
        told = _Work(work.now)
        for row, target in work.hits:
            hit = (target.message.id, kinds[row.report.what])
            if hit in new:
                new.discard(hit)
                what, key = ("Opened", "opened") if hit[1] == "open" else ("Clicked", "clicked/0")
                self._tell(told, target, what, key, row)
        return told.events

    async def _refuse(self, tx: Tx, work: _Work) -> list[Event]:
        """Bounced, complained, unsubscribed: the address gets nothing more from the moment of this commit."""
        if not work.about:
            return []
        concerned = [
            (row, target, target.message.address_node if target else row.node or UUID(int=0))
            for row, target in work.about
        ]
        nodes = sorted({node for _, _, node in concerned})
        await claims.lock(tx, [("address", node) for node in nodes])
        consents = await read_consents(tx, nodes)
        known = await read_address_nodes(tx, nodes)
        refusals, events, done = [], [], set()
        for row, target, node in concerned:
            kind = self._kinds[row.adapter]
            ledger = self._consents.get(kind.channel, kind.channel)
            written = target.message.address if target and not target.forgotten else row.report.address
            state = {"complained": "complained", "unsubscribed": "withdrawn"}.get(row.report.what)
            rows = consents.get(node, [])
            if standing(rows, ledger, ALL).complained or (state == "withdrawn" and is_out(rows, ledger, ALL)):
                state = None  # the ledger says so already
            if (node, ledger, state) in done:
                state = None
            event = None
            if state is not None:
                done.add((node, ledger, state))
                event = self._about_address(row, target, node, kind, ledger, written or "", work.now)
                if node in known and not (target and target.forgotten):
                    events.append(event)
            detail = f": {row.report.detail}" if row.report.detail else ""
            refusals.append(
                Refusal(
                    node=node,
                    channel=kind.channel,
                    kind=kind.address_kind,
                    value=written or "",
                    by=row.adapter,
                    why=None if row.report.what == "unsubscribed" else f"{row.report.what}{detail}",
                    consent=ledger,
                    state=state,
                    event=event.id if event else None,
                    origin=node,
                    message=target.message.id if target else None,
                    proof={"by": row.adapter, "report": row.report.id},
                )
            )
        ids = [uuid7(work.now, self._context.bits) for _ in refusals]
        await store.write_refusals(tx, refusals, ids, work.now)
        return events

    def _about_address(
        self, row: Row, target: Target | None, node: UUID, kind: type[Adapter], ledger: str, address: str, now: datetime
    ) -> Event:
        """An event about the address itself: its origin is the address's node, which it names."""
        prefix = self._prefixes.get(kind.channel, kind.channel.capitalize())
        name = "Unsubscribed" if row.report.what == "unsubscribed" else f"{prefix} Complained"
        said: dict[str, Any] = {"channel": ledger, "address": address, "by": row.adapter}
        if target is not None:
            said |= {"message_id": str(target.message.id), "rule": target.message.rule_name}
        if name == "Unsubscribed":
            said["topics"] = [ALL]
        return internal_event(
            name,
            key=f"{node}/{ledger}/{row.report.what}/{row.adapter}/{row.report.id}",
            origin=node,
            at=now,
            ids=[Identifier(kind=kind.address_kind, value=address, node=node, strong=True)] if address else [],
            properties=said,
            hops=target.message.hops + 1 if target else 1,
        )

    async def forget(self, limit: int = 500) -> int:
        """One batch of reports that are too old to matter; returns how many."""
        now = self._context.clock.now()
        async with self._context.database.transaction() as tx:
            return await store.forget_reports(tx, now - WAITING_KEPT, now - APPLIED_KEPT, limit)


class _Work:
    """What a batch of reports changes, before it is written."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.targets: dict[tuple[UUID, int], Target] = {}
        self.events: list[Event] = []
        self.hits: list[tuple[Row, Target]] = []
        self.about: list[tuple[Row, Target | None]] = []


def plain(text: str, length: int) -> str:
    """What a provider said, as the database takes it."""
    return text.replace("\x00", "")[:length]


def _keys(row: Row) -> list[tuple[str, UUID | str]]:
    if row.report.message is not None:
        return [("report", str(row.report.message))]
    return [("report", f"{row.adapter}/{row.report.provider_id}")] if row.report.provider_id else []


def _at(report: Report, target: Target, now: datetime) -> datetime:
    """When it happened: what the provider says, as far as that can be."""
    at = report.at if report.at is not None and report.at.tzinfo is not None else now
    return min(max(at, target.attempt_at), now)
