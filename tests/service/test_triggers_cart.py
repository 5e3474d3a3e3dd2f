"""The cart rule on real profile and triggers tables: one order per person, and the idle timer as a question."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.triggers.derive import derive
from services.triggers.queue import ItemKind
from tests.support.engine import at
from tests.support.triggers import MARKETER, Shop, open_shop

CART = {
    "name": "abandoned-cart",
    "enter": {"on": ["Product Added", "Product Removed"], "idle": "1h", "if": {"cart": {"not_empty": True}}},
    "again": "after 7d",
    "stop": [{"event": "Order Completed"}],
    "goal": {"event": "Order Completed", "within": "3d"},
    "value": {"cart_total": 0.3},
    "steps": [{"send": "cart-reminder"}, {"wait": "1d"}, {"send": {"template": "cart-last-call"}}],
}


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with open_shop(database_url) as shop:
        await shop.rule(**CART)
        yield shop


def letters(shop: Shop) -> list[tuple[str, str]]:
    return [(intent.template, intent.decided_at.strftime("%d %H:%M")) for intent in shop.intents]


async def test_an_hour_after_the_last_product_the_letter_is_intended(shop: Shop) -> None:
    await shop.adds(at())
    await shop.adds(at(minutes=30), product="p-2")
    await shop.watermark(at(minutes=89))
    assert letters(shop) == []
    await shop.watermark(at(minutes=90))
    assert letters(shop) == [("cart-reminder", "02 11:30")]
    await shop.watermark(at(days=2))
    assert letters(shop) == [("cart-reminder", "02 11:30"), ("cart-last-call", "03 11:30")]
    (run,) = await shop.runs()
    assert (run["ended_as"], run["number"]) == ("finished", 2)


async def test_a_lagging_watermark_keeps_the_timer_waiting_and_the_order_in_the_backlog_stops_it(shop: Shop) -> None:
    await shop.adds(at())
    order = shop.event("Order Completed", at(minutes=40), properties={"order_id": "o-1", "total": "1500"})
    await shop.watermark(at(minutes=39))
    shop.clock.set(at(hours=2))
    await shop.work()
    assert letters(shop) == []
    await shop.post(order)  # applied at 12:00, learned at 10:40
    await shop.watermark(at(hours=2))
    assert letters(shop) == []
    assert await shop.runs() == []
    assert await shop.items() == []


async def test_the_next_match_after_a_stop_arms_anew(shop: Shop) -> None:
    await shop.adds(at())
    await shop.buys(at(minutes=40))
    await shop.adds(at(minutes=70), product="p-2")
    await shop.watermark(at(minutes=129))
    assert letters(shop) == []
    await shop.watermark(at(minutes=130))
    assert letters(shop) == [("cart-reminder", "02 12:10")]


async def test_an_order_ends_the_run_and_its_goal_is_told_when_the_window_closes(shop: Shop) -> None:
    await shop.adds(at())
    await shop.watermark(at(hours=1))
    await shop.buys(at(hours=2))
    await shop.watermark(at(hours=2))
    (run,) = await shop.runs()
    assert (run["ended_as"], run["goal_at"]) == ("goal", at(hours=2))
    assert [cancel.reason[:12] for cancel in shop.cancelled] == ["goal reached"]
    await shop.watermark(at(days=4))
    (outcome,) = shop.outcomes
    assert (outcome.goal_at, outcome.revenue, outcome.closed_at) == (at(hours=2), 1500, at(hours=1, days=3))
    assert await shop.items() == []
    assert letters(shop) == [("cart-reminder", "02 11:00")]


async def test_a_timer_that_ends_while_its_rule_is_paused_counts_from_the_next_match_when_it_goes_on(
    shop: Shop,
) -> None:
    await shop.adds(at())
    shop.clock.set(at(minutes=30))
    await shop.editor.set_state("abandoned-cart", "paused", MARKETER)
    shop.clock.set(at(minutes=70))
    await shop.editor.set_state("abandoned-cart", "active", MARKETER)
    await shop.adds(at(minutes=80), product="p-2")  # while the timer of 11:00 still waits for the watermark
    await shop.watermark(at(hours=1, minutes=59))
    assert letters(shop) == []
    await shop.watermark(at(hours=2, minutes=20))
    assert letters(shop) == [("cart-reminder", "02 12:20")]


async def test_a_timer_that_ends_before_an_edit_counts_from_the_next_match_by_the_version_in_force_then(
    shop: Shop,
) -> None:
    await shop.adds(at())
    await shop.buys(at(minutes=50))  # the timer's question of 11:00 will be answered with no
    shop.clock.set(at(minutes=70))
    entry = {"on": "Product Viewed", "idle": "2h"}
    await shop.editor.edit("abandoned-cart", {**CART, "enter": entry}, MARKETER)
    await shop.adds(at(minutes=75), product="p-2")  # no match any more
    await shop.post(shop.event("Product Viewed", at(minutes=80)))  # while the timer still waits for the watermark
    await shop.watermark(at(hours=1))
    (timer,) = await shop.items(ItemKind.IDLE)
    assert timer["due"] == at(hours=3, minutes=20)
    await shop.watermark(at(hours=3, minutes=20))
    assert letters(shop) == [("cart-reminder", "02 13:20")]
    assert (await derive(shop.triggers.database, shop.world, at(), at(days=1))).differences == []


async def test_matches_that_arrive_out_of_order_arm_the_earliest(shop: Shop) -> None:
    first, second = (
        shop.event("Product Added", at(minutes=minute), properties={"product_id": "p-1", "quantity": 1, "price": 1})
        for minute in (0, 20)
    )
    shop.clock.set(at(minutes=30))
    applied = [await shop.apply_one(first), await shop.apply_one(second)]
    await shop.read(applied[1])
    await shop.read(applied[0])
    (timer,) = await shop.items(ItemKind.IDLE)
    assert timer["due"] == at(minutes=60)
    await shop.watermark(at(minutes=80))
    assert letters(shop) == [("cart-reminder", "02 11:20")]


async def test_two_browsers_of_one_person_are_one_question(shop: Shop) -> None:
    await shop.adds(at(), user="", ids=[("anonymous_id", "a-1")], trust="public")
    await shop.adds(at(minutes=30), user="", ids=[("anonymous_id", "a-2")], trust="public", product="p-2")
    for browser, minute in (("a-1", 40), ("a-2", 41)):
        await shop.post(shop.event("Identify", at(minutes=minute), ids=[("anonymous_id", browser)]))
    assert len(await shop.items(ItemKind.IDLE)) == 2
    await shop.watermark(at(minutes=89))
    assert letters(shop) == []
    await shop.watermark(at(minutes=90))
    assert letters(shop) == [("cart-reminder", "02 11:30")]
    (run,) = await shop.runs()
    assert run["node"] == shop.node("anonymous_id", "a-2")


async def test_again_counts_over_all_nodes_of_the_person(shop: Shop) -> None:
    await shop.adds(at(), user="", ids=[("anonymous_id", "a-1")], trust="public")
    await shop.watermark(at(days=2))
    await shop.post(shop.event("Identify", at(days=2, minutes=1), ids=[("anonymous_id", "a-1")]))
    await shop.adds(at(days=3))
    await shop.watermark(at(days=4))
    assert len(await shop.runs()) == 1
    await shop.adds(at(days=10))
    await shop.watermark(at(days=11))
    assert len(await shop.runs()) == 2


async def test_of_two_live_runs_the_earlier_stays_after_a_merge(shop: Shop) -> None:
    for minute, browser in ((0, "a-1"), (5, "a-2")):
        await shop.adds(at(minutes=minute), user="", ids=[("anonymous_id", browser)], trust="public")
    await shop.watermark(at(hours=2))
    assert len(await shop.runs()) == 2
    for browser, minute in (("a-1", 180), ("a-2", 181)):
        await shop.post(shop.event("Identify", at(minutes=minute), ids=[("anonymous_id", browser)]))
    await shop.watermark(at(hours=4))
    first, second = await shop.runs()
    assert (first["ended_as"], second["ended_as"]) == (None, "merged")
    assert [cancel.run for cancel in shop.cancelled] == [second["id"]]
    await shop.watermark(at(days=2))
    assert letters(shop)[-1] == ("cart-last-call", "03 11:00") and len(letters(shop)) == 3


async def test_history_arms_nothing_enters_nothing_and_stops_nothing(shop: Shop) -> None:
    await shop.adds(at(), history=True)
    assert await shop.items() == []
    await shop.adds(at(minutes=10))
    await shop.buys(at(minutes=20), history=True, key="old")
    await shop.watermark(at(minutes=70))
    assert await shop.items(ItemKind.EVENT) == []
    # The imported order took out one of two; what is left in the cart is reminded of.
    assert letters(shop) == [("cart-reminder", "02 11:10")]


async def test_a_nightly_file_that_repeats_an_order_stops_nothing(shop: Shop) -> None:
    await shop.buys(at(days=-1), trust="public", user="", ids=[("anonymous_id", "a-1")])
    await shop.post(shop.event("Identify", at(days=-1, minutes=1), ids=[("anonymous_id", "a-1")]))
    await shop.adds(at(), product="p-2")
    await shop.buys(at(minutes=30), occurred_at=at(days=-1))
    await shop.watermark(at(minutes=60))
    assert letters(shop) == [("cart-reminder", "02 11:00")]


async def test_an_order_that_was_updated_before_it_was_completed_stops_when_it_is_completed(shop: Shop) -> None:
    await shop.rule(
        name="other", enter={"on": "Product Viewed"}, stop=[{"event": "Order Completed"}], steps=[{"wait": "1d"}]
    )
    await shop.post(shop.event("Order Updated", at(), properties={"order_id": "o-1", "total": "1500"}))
    await shop.post(shop.event("Product Viewed", at(minutes=20)))
    await shop.adds(at(minutes=30), product="p-2")
    await shop.buys(at(minutes=60))
    await shop.watermark(at(minutes=90))
    assert letters(shop) == []
    assert [(run["ended_as"], run["ended_at"]) for run in await shop.runs()] == [("stopped", at(minutes=60))]
    derived = await derive(shop.triggers.database, shop.world, at(), at(days=1))
    assert (derived.count, derived.differences) == (2, [])


async def test_an_order_that_counts_to_somebody_else_stops_as_it_is_derived_again(shop: Shop) -> None:
    await shop.rule(
        name="other", enter={"on": "Product Viewed"}, stop=[{"event": "Order Completed"}], steps=[{"wait": "1d"}]
    )
    browser = {"trust": "public", "user": "", "ids": [("anonymous_id", "a-1")]}
    await shop.buys(at(minutes=10))
    await shop.post(shop.event("Product Viewed", at(minutes=20), **browser))
    await shop.buys(at(minutes=30), **browser)
    await shop.watermark(at(minutes=60))
    assert [run["ended_as"] for run in await shop.runs()] == ["stopped"]
    assert (await derive(shop.triggers.database, shop.world, at(), at(days=1))).differences == []


async def test_a_rule_that_was_activated_later_does_not_reach_back(shop: Shop) -> None:
    await shop.adds(at(minutes=5))
    shop.clock.set(at(minutes=10))
    await shop.rule(name="late", enter={"on": "Product Added"})
    await shop.watermark(at(minutes=20))
    assert letters(shop) == []
    await shop.adds(at(minutes=30))
    await shop.watermark(at(minutes=31))
    assert letters(shop) == [("letter", "02 10:30")]
