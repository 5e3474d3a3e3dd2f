"""The queue at size: ten thousand timers, two workers, restarts, races, and statements that do not grow with the batch."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from services.triggers import claims
from services.triggers.queue import ItemKind
from services.triggers.service import world_of
from services.triggers.store import queue
from services.triggers.store.rules import RuleBook
from services.triggers.working import Worker
from shared.events import Intended, decode_message_record
from shared.hooks import InjectedFault
from shared.outbox import unpack
from tests.service.test_triggers_cart import CART
from tests.support.contexts import context_for
from tests.support.engine import at
from tests.support.triggers import Shop, open_shop

PEOPLE = 10_000


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with open_shop(database_url) as shop:
        yield shop


async def many_view(shop: Shop, people: int, name: str = "Product Viewed", batch: int = 1000) -> None:
    for first in range(0, people, batch):
        events = [shop.event(name, at(microseconds=n), f"user-{n}") for n in range(first, min(people, first + batch))]
        await shop.post(*events)


async def published(shop: Shop) -> list[Intended]:
    rows = await shop.fetch("SELECT records FROM triggers.outbox ORDER BY shard, number")
    records = [decode_message_record(record.value) for row in rows for record in unpack(row["records"])]
    return [record for record in records if isinstance(record, Intended)]


async def drain(worker: Worker) -> int:
    """Claims until nothing is due; how many claims did something."""
    count = 0
    while await worker.claim():
        count += 1
    return count


@pytest.mark.timeout(300)
async def test_ten_thousand_timers_fire_once_each_through_a_restart_and_two_workers(
    shop: Shop, database_url: str
) -> None:
    await shop.rule(steps=[{"wait": "1h"}, {"send": "letter"}])
    await many_view(shop, PEOPLE)
    await shop.watermark(at(minutes=1), work=False)
    await drain(shop.worker)
    assert Counter(item["kind"] for item in await shop.items()) == {ItemKind.STEP: PEOPLE}

    async def fails() -> None:
        raise InjectedFault("between writing and committing")

    await shop.watermark(at(hours=2), work=False)
    async with context_for(database_url, role="dripline_triggers", clock=shop.clock, leases=False) as other:
        other.hooks.arm("triggers.claimed", fails, nth=3)
        first_life = asyncio.create_task(drain(Worker(other, RuleBook(), world_of(other), 1)))
        mine = asyncio.create_task(drain(shop.worker))
        with pytest.raises(InjectedFault):
            await first_life
    # Nothing of the worker that failed goes on: connections, what it knew of rules, and the worker are new.
    async with context_for(database_url, role="dripline_triggers", clock=shop.clock, leases=False) as restarted:
        second_life = Worker(restarted, RuleBook(), world_of(restarted), 1)
        assert await drain(second_life) > 0, "the second worker found nothing to do after its restart"
        await mine
    intents = await published(shop)
    assert len(intents) == PEOPLE and len({intent.message for intent in intents}) == PEOPLE
    (counted,) = await shop.fetch(
        "SELECT count(*) AS runs, count(*) FILTER (WHERE number = 2 AND ended_as = 'finished') AS done FROM triggers.run"
    )
    assert tuple(counted) == (PEOPLE, PEOPLE)
    assert await shop.items() == []


async def plan(shop: Shop, sql: str, *arguments: Any) -> str:
    rows = await shop.fetch(f"EXPLAIN {sql}", *arguments)
    return "\n".join(row[0] for row in rows)


async def test_what_is_due_is_found_by_the_index(shop: Shop) -> None:
    await shop.fetch(
        """
        INSERT INTO triggers.item (node, id, kind, due)
        SELECT gen_random_uuid(), gen_random_uuid(), 4, $1::timestamptz + n * interval '1 minute' FROM generate_series(1, 20000) n
        """,
        at(),
    )
    async with shop.triggers.database.connection() as connection:
        await shop.watermark(at(minutes=5), work=False)
        seen: list[str] = []

        class Explained:
            """Asks for the plan of each statement before it is run."""

            async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
                seen.append("\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {sql}", *arguments)))
                return await connection.fetch(sql, *arguments)

            async def fetchrow(self, sql: str, *arguments: Any) -> Any:
                return (await self.fetch(sql, *arguments))[0]

        tx: Any = Explained()
        assert (await queue.claim_moment(tx))[1] is True
        nodes = await queue.candidates(tx, at(minutes=5), 200)
        assert len(nodes) == 5
        assert len(await queue.due_items(tx, list(nodes), at(minutes=5))) == 5
    moment, candidates, items = seen
    assert "item_due" in moment and "item_due" in candidates and "item_pkey" in items
    assert not any("Seq Scan on item" in one for one in seen), "\n\n".join(seen)


class Counting:
    """A transaction that counts the statements sent through it."""

    def __init__(self, tx: Any) -> None:
        self._tx, self.count = tx, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tx, name)
        if name in ("fetch", "fetchrow", "fetchval", "execute", "executemany"):
            self.count += 1
        return found


async def statements_for(shop: Shop, people: int, day: int) -> tuple[int, int]:
    """Statements of the consumer's batch and of the claim that handle one cart event each of so many people, entries and
    intents included."""
    for user in range(people):
        await shop.apply_one(
            shop.event(
                "Product Added",
                at(days=day),
                f"d{day}-{user}",
                properties={"product_id": "p", "quantity": 1, "price": 5},
            )
        )
    await shop.watermark(at(days=day))
    events = [shop.event("Product Viewed", at(days=day, seconds=1), f"d{day}-{user}") for user in range(people)]
    outgoing = [record for event in events for record in await shop.apply_one(event)]
    shop.clock.set(at(days=day, minutes=1))
    counts = []
    async with shop.triggers.database.transaction() as tx:
        counting = Counting(tx)
        await shop._triggers(counting, shop._batch("triggers", "profile-events", outgoing))  # type: ignore[arg-type]
        counts.append(counting.count)
    await shop.watermark(at(days=day, minutes=2), work=False)
    async with shop.triggers.database.transaction() as tx:
        counting = Counting(tx)
        claimed = await claims.claim(counting, shop.book, shop.world, shop.clock.now())  # type: ignore[arg-type]
        counts.append(counting.count)
    assert claimed.decisions == people
    return counts[0], counts[1]


async def test_the_number_of_statements_does_not_depend_on_the_number_of_people(shop: Shop) -> None:
    await shop.rule(**CART)
    await shop.rule(
        name="seen",
        enter={"on": "Product Viewed", "if": {"did": {"event": "Product Added", "at_least": 1, "within": "30d"}}},
        steps=[{"send": "letter"}, {"wait": "1d"}],
    )
    await shop.rule(name="at-once", kind="transactional", enter={"on": "Product Removed"})
    await statements_for(shop, 2, 1)  # documents are read once
    few = await statements_for(shop, 2, 2)
    many = await statements_for(shop, 60, 3)
    assert few == many
    assert few[0] <= 6 and few[1] <= 30, few


async def test_a_match_that_arrives_while_its_timer_fires_is_not_lost(shop: Shop) -> None:
    """The consumer arms a timer that a claim is just looking at: it waits, and arms anew what the claim took out."""
    await shop.rule(**CART)
    await shop.adds(at())
    await shop.watermark(at(hours=1), work=False)
    (timer,) = await shop.items(ItemKind.IDLE)
    shop.clock.set(at(hours=1, minutes=1))
    later = shop.event(
        "Product Added", at(hours=1, seconds=1), properties={"product_id": "p-2", "quantity": 1, "price": 1}
    )
    async with shop.triggers.database.transaction() as tx:
        (looked_at,) = await queue.due_items(tx, [timer["node"]], at(hours=1))
        # What the claim has read by now does not hold this event.
        arming = asyncio.create_task(shop.read(await shop.apply_one(later)))
        done, _ = await asyncio.wait([arming], timeout=0.3)
        assert not done, "the consumer did not wait for the claim that looks at the timer"
        await queue.drop_items(tx, [(looked_at.node, looked_at.id)])
    await arming
    (timer,) = await shop.items(ItemKind.IDLE)
    assert timer["due"] == at(hours=2, seconds=1)


async def test_two_claims_at_once_take_different_people(shop: Shop) -> None:
    await shop.rule(again="always")
    await many_view(shop, 40)
    await shop.watermark(at(minutes=1), work=False)
    async with shop.triggers.database.transaction() as one, shop.triggers.database.transaction() as two:
        first = await claims.claim(one, shop.book, shop.world, shop.clock.now(), limit=20)
        second = await claims.claim(two, shop.book, shop.world, shop.clock.now(), limit=20)
        assert len(first.nodes) == len(second.nodes) == 20
        assert not set(first.nodes) & set(second.nodes)


async def test_what_is_armed_within_a_backlog_keeps_the_one_order(shop: Shop) -> None:
    """After a standstill everything is due at once; a run sees its timers and events as if nothing had been late."""
    await shop.rule(
        steps=[{"wait": "1h"}, {"send": "one"}, {"wait": "1h"}, {"send": "two"}], stop=[{"event": "Order Completed"}]
    )
    await shop.post(shop.event("Product Viewed", at()))
    await shop.post(shop.event("Product Viewed", at(), "boris"))
    await shop.buys(at(minutes=90))
    await shop.buys(at(hours=3), "o-2", user="boris")
    await shop.watermark(at(days=1))
    anna, boris = shop.node("user_id", "anna"), shop.node("user_id", "boris")
    told = [(intent.origin, intent.template, intent.decided_at) for intent in shop.intents]
    assert sorted(told, key=lambda one: (one[0] != anna, one[2])) == [
        (anna, "one", at(hours=1)),
        (boris, "one", at(hours=1)),
        (boris, "two", at(hours=2)),
    ]


async def test_more_items_of_one_person_than_a_claim_takes_are_handled_in_order(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "PER_NODE", 3)
    await shop.rule(again="always", steps=[{"emit": {"event": "Ping"}}])
    shop.on_emit = lambda event: None
    for second in range(10):
        await shop.post(shop.event("Product Viewed", at(seconds=second)))
    await shop.watermark(at(minutes=1))
    rows = await shop.fetch("SELECT at FROM triggers.decision ORDER BY seq")
    assert [row["at"] - at() for row in rows] == [timedelta(seconds=second) for second in range(10)]


async def test_a_person_found_by_another_of_their_nodes_waits_for_the_claim_that_has_them(shop: Shop) -> None:
    await shop.rule(again="after 7d")
    await shop.post(shop.event("Identify", at(), ids=[("card", "c-1")]))
    await shop.post(shop.event("Product Viewed", at(seconds=1)))
    await shop.post(shop.event("Product Viewed", at(seconds=2), user="", ids=[("card", "c-1")]))
    await shop.watermark(at(minutes=1), work=False)

    async def another() -> claims.Claimed:
        async with shop.triggers.database.transaction() as tx:
            return await claims.claim(tx, shop.book, shop.world, shop.clock.now())

    async with shop.triggers.database.transaction() as tx:
        mine = await claims.claim(tx, shop.book, shop.world, shop.clock.now(), limit=1)
        theirs = asyncio.create_task(another())
        done, _ = await asyncio.wait([theirs], timeout=0.3)
        assert not done, "two claims decided about one person at the same time"
    assert mine.decisions == 1
    assert (await theirs).decisions == 0
    assert len(await shop.runs()) == 1


async def test_a_transactional_record_waits_for_a_claim_that_has_its_person(shop: Shop) -> None:
    await shop.rule(
        kind="transactional", again="never", steps=[{"wait": "1h"}, {"send": "receipt"}], stop=["Order Completed"]
    )
    await shop.post(shop.event("Product Viewed", at()))
    await shop.watermark(at(hours=1), work=False)
    order = await shop.apply_one(shop.event("Order Completed", at(hours=1), properties={"order_id": "o-1", "total": 1}))
    async with shop.triggers.database.transaction() as tx:
        claimed = await claims.claim(tx, shop.book, shop.world, shop.clock.now())
        reading = asyncio.create_task(shop.read(order))
        done, _ = await asyncio.wait([reading], timeout=0.3)
        assert not done, "the record was taken while a claim decided about its person"
    await reading
    assert claimed.decisions == 1
    (run,) = await shop.runs()
    assert (run["ended_as"], run["number"]) == ("finished", 2)
