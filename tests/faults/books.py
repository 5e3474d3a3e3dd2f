"""Comparing what the client and the SMTP server wrote down with what the product says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from shared.bus import open_bus
from shared.bus.base import Bus
from shared.events import EVENTS, HISTORY, MESSAGES, PROFILE_EVENTS
from shared.wake import Wake
from tests.faults.client import Client, Visitor
from tests.faults.deployment import IDLE_SECONDS, PARTITIONS, Deployment, Process
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

READERS = (("profile", EVENTS), ("profile", HISTORY), ("triggers", PROFILE_EVENTS), ("dispatch", MESSAGES))
CATCHING_UP = 30.0  # seconds, as promised
UNSETTLED = ("queued", "claimed")
# A call whose sender died with it is known to be unknown once no answer can come any more.
AFTER_CALLS = 10.0  # seconds beyond that moment


class Observer:
    """Looks into database and bus from outside, with connections of its own."""

    def __init__(self, database: asyncpg.Connection, bus: Bus) -> None:
        self._database, self._bus = database, bus

    @classmethod
    @asynccontextmanager
    async def of(cls, deployment: Deployment) -> AsyncIterator[Observer]:
        database = await asyncpg.connect(deployment.database_url)
        bus = await open_bus(deployment.bus_url, member="observer", partitions=PARTITIONS, wake=Wake())
        try:
            yield cls(database, bus)
        finally:
            await bus.close()
            await database.close()

    async def lag(self, service: str) -> int:
        """Records that this service has not handled, and outbox rows that it has not published."""
        waiting: int = await self._database.fetchval(f"SELECT count(*) FROM {service}.outbox")
        for schema, topic in READERS:
            if schema == service:
                rows = await self._database.fetch(
                    f"SELECT partition, next FROM {schema}.position WHERE topic = $1 AND epoch = $2",
                    topic,
                    self._bus.epoch(topic),
                )
                handled = {row["partition"]: row["next"] for row in rows}
                beginnings = await self._bus.beginnings(topic)
                ends = await self._bus.ends(topic)
                waiting += sum(end - handled.get(partition, beginnings[partition]) for partition, end in ends.items())
        return waiting

    async def values(self, topic: str) -> list[bytes]:
        """What every record on a bus topic says, as it stands there."""
        positions, ends = await self._bus.beginnings(topic), await self._bus.ends(topic)
        found: list[bytes] = []
        while behind := {partition: place for partition, place in positions.items() if place < ends[partition]}:
            fetched = await self._bus.fetch(topic, behind, limit=1000, wait=1.0)
            read = {partition: records for partition, records in fetched.items() if records}
            if not read:  # numbers may have gaps: nothing stands before the end
                break
            found += [record.value for records in read.values() for record in records]
            positions |= {partition: records[-1].number + 1 for partition, records in read.items()}
        return found

    async def in_flight(self, service: str, client: Client) -> int:
        """What a kill of this service would hit now."""
        if service == "ingest":
            return client.unanswered
        if service == "dispatch":
            states = await self.message_states()
            return states["claimed"] + states["calling"] + await self.lag(service)
        return await self.lag(service)

    async def message_states(self) -> Counter[str]:
        rows = await self._database.fetch("SELECT state, count(*) FROM dispatch.message WHERE intended GROUP BY 1")
        return Counter({row["state"]: row["count"] for row in rows})

    async def seconds_until_calls_end(self) -> float:
        """Until the last moment at which an open call may still be answered."""
        seconds = await self._database.fetchval(
            "SELECT extract(epoch FROM max(call_until) - clock_timestamp())::float8 FROM dispatch.message "
            "WHERE state = 'calling'"
        )
        return max(0.0, seconds or 0.0)

    async def no_call_is_open(self) -> bool:
        return not (await self.message_states())["calling"]

    async def messages(self) -> dict[str, tuple[str, str | None]]:
        """User id → state and reason of the one message that was wanted for this person."""
        rows = await self._database.fetch(
            """
            SELECT n.value, m.state, m.reason FROM dispatch.message m
            JOIN profile.node n ON n.id = m.origin AND n.kind = 'user_id' WHERE m.intended
            """
        )
        found = {row["value"]: (row["state"], row["reason"]) for row in rows}
        assert len(found) == len(rows), "somebody has two messages of a rule that is entered once"
        return found

    async def events(self) -> Counter[str]:
        """Message id → how many event rows it has."""
        rows = await self._database.fetch(
            "SELECT message_id, count(*) FROM profile.event WHERE message_id LIKE 'm-%' GROUP BY 1"
        )
        return Counter({row["message_id"]: row["count"] for row in rows})

    async def leases_of_the_dead(self, *living: Process) -> int:
        """Leases whose holder is none of these processes."""
        count: int = await self._database.fetchval(
            "SELECT count(*) FROM platform.lease WHERE holder IS NOT NULL AND split_part(holder, '.', -2) <> ALL($1::text[])",
            [str(process.pid) for process in living],
        )
        return count

    async def dead_letters(self) -> list[dict[str, Any]]:
        return [
            dict(row) for row in await self._database.fetch("SELECT service, topic, reason FROM platform.dead_letter")
        ]


async def catch_up(observer: Observer, client: Client, limit: float = CATCHING_UP) -> None:
    """Within 30 s everything that was posted is handled and every message is with its provider, or has its end; calls
    that were cut off have theirs when no answer can come any more."""
    abandoned = {visitor.user_id for visitor in client.visitors if not visitor.is_buyer}
    left: dict[str, Any] = {}

    async def nothing_left() -> bool:
        lags = {service: await observer.lag(service) for service in ("profile", "triggers", "dispatch")}
        messages = await observer.messages()
        unsettled = [user for user, (state, _) in messages.items() if state in UNSETTLED]
        states = dict(await observer.message_states())
        left.update(lags=lags, missing=len(abandoned - set(messages)), states=states)
        return not any(lags.values()) and abandoned <= set(messages) and not unsettled

    try:
        await until(nothing_left, limit=limit, what="everything is handled and no message waits", every=0.3)
        calls_end = await observer.seconds_until_calls_end() + AFTER_CALLS
        await until(observer.no_call_is_open, limit=calls_end, what="no call is open any more", every=0.3)
    except AssertionError as problem:
        lost = sorted(set(client.answered) - set(await observer.events()))
        dead = await observer.dead_letters()
        raise AssertionError(f"{problem} {left}; answered and lost: {lost[:5]}; dead letters: {dead[:5]}") from None


async def assert_all_agree(
    deployment: Deployment, observer: Observer, client: Client, smtp: SmtpPeer, *, may_be_unknown: int | None = None
) -> None:
    """The client's log, the SMTP server's ledger and the audit tell the same story.

    :param may_be_unknown: how many messages were with the provider when something died; None: that was not counted
    """
    events = await observer.events()
    answered = set(client.answered)
    lost = answered - set(events)
    assert not lost, f"answered with 200 and lost: {sorted(lost)[:10]} of {len(answered)}"
    doubled = {message_id: count for message_id, count in events.items() if count > 1}
    assert not doubled, f"took effect more than once: {doubled}"
    assert await observer.dead_letters() == []
    letters = Counter(recipient for letter in smtp.letters() for recipient in letter.recipients)
    twice = {recipient: count for recipient, count in letters.items() if count > 1}
    assert not twice, f"a marketing message was sent twice: {twice}"
    messages = await observer.messages()
    for visitor in client.visitors:
        _assert_told_the_same(visitor, letters[visitor.email], messages.get(visitor.user_id))
    unknown = {user: reason for user, (state, reason) in messages.items() if state == "unknown"}
    assert may_be_unknown is None or len(unknown) <= may_be_unknown, f"unknown without a cause: {unknown}"
    deployment.command("audit")


def _assert_told_the_same(visitor: Visitor, letters: int, message: tuple[str, str | None] | None) -> None:
    if visitor.is_buyer:
        ordered_in_time = visitor.posts["order"].answered < visitor.posts["cart"].first_sent + IDLE_SECONDS
        if ordered_in_time:
            assert letters == 0, f"{visitor.email} had ordered in time and was written to all the same"
            assert message is None, f"{visitor.email} had ordered in time, and a message was wanted: {message}"
        return
    assert message is not None, f"{visitor.email} left a cart and no message was wanted"
    state, reason = message
    if state == "sent":
        assert letters == 1, f"{visitor.email}: the product says sent, the SMTP server took {letters}"
    elif state == "unknown":
        assert letters <= 1
    else:
        raise AssertionError(f"{visitor.email}: {state} ({reason}), {letters} letters")
