"""How long profile knows that it has seen an event, against a real database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from services.profile.seen import forget_old
from services.profile.store.locking import see
from shared.clock import VirtualClock
from tests.support.contexts import context_for

NOW = datetime(2026, 3, 10, 9, tzinfo=UTC)


async def test_an_event_is_known_for_thirteen_months_and_then_forgotten_in_small_batches(database_url: str) -> None:
    ages = {UUID(int=number): 30.5 * months for number, months in enumerate([14, 20, 14.5, 12, 12.9, 0])}
    events = [(id, b"hash", NOW - timedelta(days=days)) for id, days in ages.items()]
    async with context_for(database_url, role="dripline_profile", clock=VirtualClock(NOW), leases=False) as context:
        async with context.database.transaction() as tx:
            assert await see(tx, events) == {}
        forgotten = [await forget_old(context, batch=2) for _ in range(3)]
        async with context.database.transaction() as tx:
            seen_before = await see(tx, events)
    assert forgotten == [2, 1, 0]
    assert sorted(round(ages[id] / 30.5, 1) for id in seen_before) == [0, 12, 12.9]
