"""A backtest over what came live decides as production did; over an import it decides as if all had come when it occurred."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from services.triggers import backtest as pure
from services.triggers.backtesting import Question, backtest
from services.triggers.derive import derive
from services.triggers.jobs import Backtests
from shared.errors import Problem
from shared.ids import message_id
from tests.service.test_triggers_cart import CART
from tests.service.test_triggers_rules import CHURN, OPT_IN, requests
from tests.support.engine import at
from tests.support.triggers import Shop, open_shop

BEGIN, END = at(days=-1), at(days=9)
BROWSE: dict[str, Any] = {
    "name": "browse",
    "enter": {"on": "Product Viewed", "if": {"not": {"cart": {"not_empty": True}}}},
    "again": "after 1d",
    "holdout": "30%",
    "goal": {"event": "Order Completed", "within": "2d"},
    "steps": [
        {"send": "first"},
        {
            "wait_for": {
                "event": "Order Completed",
                "for": "1d",
                "then": [{"send": "thanks"}],
                "else": [
                    {
                        "if": {
                            "did": {"event": "Product Viewed", "at_least": 2, "since": "entry"},
                            "then": [{"send": "keen"}],
                            "else": [{"wait": "2h"}, {"send": "cool"}],
                        }
                    }
                ],
            }
        },
    ],
}
DAILY = CHURN | {"enter": {"schedule": "0 9 * * *", "among": {"days_since_order": {"gte": 2}}}, "again": "after 3d"}
# Whatever happens to somebody inside may mean that the condition of its stop has come true.
ENOUGH: dict[str, Any] = {
    "name": "enough",
    "enter": {"on": "Product Added"},
    "again": "after 1d",
    "stop": [{"did": {"event": "Product Viewed", "since": "entry"}}],
    "steps": [{"send": "first"}, {"wait": "2d"}, {"send": "second"}],
}
RULES = (CART | {"holdout": "50%", "again": "after 1d"}, BROWSE, DAILY, OPT_IN, ENOUGH)


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with open_shop(database_url) as shop:
        yield shop


@pytest.fixture(autouse=True)
def every_run_is_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pure, "SAMPLES", 10_000)


async def replayed(shop: Shop, name: str, since: datetime = BEGIN, **fields: Any) -> dict[str, Any]:
    """The backtest of a rule that is saved."""
    (row,) = await shop.fetch(
        "SELECT r.id, v.document FROM triggers.rule r JOIN triggers.rule_version v ON v.rule = r.id WHERE name = $1",
        name,
    )
    database = shop.triggers.database
    asked = {
        "url": database.url,
        "role": database.role,
        "member": "backtest",
        "document": row["document"],
        "rule": row["id"],
        "version": 1,
        "since": since,
        "until": END,
        "zone": shop.world.zone.key,
        "country": shop.world.country,
        "people": 1000,
        "seconds": 60.0,
    }
    return await backtest(Question(**asked | fields))


async def decided(shop: Shop, name: str) -> dict[str, dict[str, Any]]:
    """What production decided about a rule's runs, as the backtest's samples tell it."""
    rows = await shop.fetch(
        """
        SELECT n.id, n.entered_at, n.ghost, n.ended_at, n.ended_as, n.state ->> 'ended_why' AS ended_why
        FROM triggers.run n JOIN triggers.rule r ON r.id = n.rule WHERE r.name = $1
        """,
        name,
    )
    found: dict[str, dict[str, Any]] = {str(row["id"]): dict(row) | {"messages": set()} for row in rows}
    for intent in shop.intents:
        if str(intent.run) in found:
            assert intent.message == message_id(intent.run, intent.step)
            found[str(intent.run)]["messages"].add((intent.step, intent.decided_at))
    return {key: {k: v for k, v in run.items() if k != "id"} for key, run in found.items()}


def told(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        str(run["run"]): {key: run[key] for key in ("entered_at", "ghost", "ended_at", "ended_as", "ended_why")}
        | {"messages": {(message["step"], message["at"]) for message in run["messages"]}}
        for run in report["samples"]
    }


async def a_random_week(shop: Shop, seed: int) -> None:
    """Carts, views, orders, requests and logins (which merge) of a few people, in an order drawn by the seed."""
    chance = random.Random(seed)
    moment = at()
    while moment < at(days=6):
        moment += timedelta(minutes=chance.randint(1, 400))
        number = chance.randint(0, 5)
        match chance.randint(0, 9):
            case 0 | 1 | 2:
                ids = [("anonymous_id", f"a-{number}")]
                await shop.adds(moment, user="", ids=ids, trust="public", product=f"p-{chance.randint(1, 3)}")
            case 3 | 4 | 5:
                await shop.post(shop.event("Product Viewed", moment, f"user-{number}"))
            case 6:
                ids = [("anonymous_id", f"a-{number}"), ("email", f"{number}@example.com")]
                await shop.post(shop.event("Identify", moment, f"user-{number}", ids=ids))
            case 7:
                await shop.buys(moment, f"o-{moment:%d%H%M%S}", user=f"user-{number}")
            case 8:
                await requests(shop, moment, f"{number}@example.com")
            case 9:
                await shop.watermark(moment)
    await shop.watermark(END)


@pytest.mark.parametrize("seed", range(3))
async def test_over_live_events_it_decides_what_production_decided(shop: Shop, seed: int) -> None:
    for rule in RULES:
        await shop.rule(**rule)
    shop.on_emit = lambda event: None  # a purge takes the address out of production's runs; the backtest still knows it
    await a_random_week(shop, seed)
    count = 0
    for rule in RULES:
        report = await replayed(shop, rule["name"])
        production = await decided(shop, rule["name"])
        assert told(report) == production, rule["name"]
        count += len(production)
        assert report["entered"]["treated"] + report["entered"]["held_out"] == len(production)
        assert sum(one["treated"] + one["held_out"] for one in report["intents"]) == sum(
            len(run["messages"]) for run in production.values()
        )
        assert report["complete"] and report["failed"] == 0
        assert report["inside"] == sum(1 for run in production.values() if run["ended_at"] is None)
    assert count > 10


async def test_two_who_turn_out_to_be_one_person_merge_where_they_merged(shop: Shop) -> None:
    await shop.rule(**BROWSE)
    known = [("anonymous_id", "a-9")]
    await shop.post(shop.event("Product Viewed", at(), "", ids=known, trust="public"))
    await shop.post(shop.event("Product Viewed", at(minutes=10), "vera"))
    await shop.post(shop.event("Identify", at(hours=2), "vera", ids=known))
    await shop.watermark(END)
    production = await decided(shop, "browse")
    assert sorted(run["ended_as"] for run in production.values()) == ["finished", "merged"]
    assert told(await replayed(shop, "browse")) == production


async def test_of_two_welcomes_for_two_addresses_the_earlier_stays_when_the_people_turn_out_to_be_one(
    shop: Shop,
) -> None:
    await shop.rule(name="hello", enter={"on": "Subscription Confirmed"}, steps=[{"wait": "3d"}, {"send": "letter"}])
    known = [("anonymous_id", "a-9")]
    by_mail, by_phone = {"channel": "email", "address": "a@example.com"}, {"channel": "sms", "address": "+79161234567"}
    await shop.post(shop.event("Subscription Confirmed", at(), "", ids=known, properties=by_mail))
    await shop.post(shop.event("Subscription Confirmed", at(minutes=1), "vera", properties=by_phone))
    await shop.post(shop.event("Identify", at(hours=2), "vera", ids=known))
    await shop.watermark(END)
    assert [run["ended_as"] for run in await shop.runs()] == ["finished", "merged"]


async def test_a_ring_of_events_of_our_own_ends_in_it_where_it_ended(shop: Shop) -> None:
    steps = [{"emit": {"event": "Ping"}}]
    await shop.rule(name="start", steps=steps)
    await shop.rule(name="ring", enter={"on": "Ping"}, again="always", steps=steps)
    await shop.post(shop.event("Product Viewed", at()))
    for minute in range(1, 10):
        await shop.watermark(at(minutes=minute))
    production = await decided(shop, "ring")
    assert len(production) == 4
    assert told(await replayed(shop, "ring")) == production


async def test_an_import_is_taken_as_if_it_had_come_when_it_occurred(shop: Shop) -> None:
    for rule in RULES[:2]:
        await shop.rule(**rule)
    for user in ("anna", "boris", "vera"):
        await shop.post(shop.event("Identify", at(), user, history=True, ids=[("card", f"card of {user}")]))
        await shop.adds(at(hours=1), user, history=True)
        await shop.post(shop.event("Product Viewed", at(hours=2), user, history=True))
    await shop.buys(at(hours=1, minutes=30), "o-1", user="vera", history=True)
    await shop.buys(at(days=1, hours=1), "o-2", user="boris", history=True)
    await shop.watermark(END)
    assert await shop.runs() == [] and shop.messages == []
    await shop.rule(**DAILY)
    cart = await replayed(shop, "abandoned-cart")
    entered = {run["profile"]: (run["entered_at"], run["ended_as"]) for run in cart["samples"]}
    profiles = {row["value"]: row["profile"] for row in await shop.fetch("SELECT value, profile FROM cdp.node")}
    assert entered == {
        profiles["anna"]: (at(hours=2), "finished"),
        profiles["boris"]: (at(hours=2), "goal"),
    }
    browse = await replayed(shop, "browse")
    assert {run["profile"] for run in browse["samples"]} == {profiles["vera"]}  # the others have something in the cart
    daily = await replayed(shop, "churn")
    first = {
        run["profile"]: run["entered_at"]
        for run in sorted(daily["samples"], key=lambda r: r["entered_at"], reverse=True)
    }
    assert first == {profiles["vera"]: at(days=2, hours=20), profiles["boris"]: at(days=3, hours=20)}


async def test_a_backtest_writes_nothing_and_stops_at_its_limit(shop: Shop) -> None:
    await shop.rule(**BROWSE)
    for number in range(4):
        await shop.post(shop.event("Product Viewed", at(minutes=number), f"user-{number}"))
    report = await replayed(shop, "browse", people=3)
    assert (report["people"], report["complete"]) == (3, False)
    assert await shop.runs() == [] and len(await shop.items()) == 4
    late = await replayed(shop, "browse", since=at(minutes=1))
    assert late["people"] == 2
    assert (await replayed(shop, "browse", seconds=0.0))["complete"] is False


async def test_it_runs_in_a_process_of_its_own_one_at_a_time(shop: Shop) -> None:
    saved = await shop.rule(**BROWSE)
    await shop.post(shop.event("Product Viewed", at()))
    async with shop.triggers.database.connection() as tx:
        rule = (await shop.book.read(tx)).version(saved.id, 1).document
    backtests = Backtests(shop.triggers, shop.world)
    first = asyncio.create_task(backtests.run(rule, saved.id, 1, at(days=-1), END, 100))
    await asyncio.sleep(0)
    with pytest.raises(Problem, match="429"):
        await backtests.run(rule, saved.id, 1, at(days=-1), END, 100)
    report = await first
    assert report["entered"]["treated"] + report["entered"]["held_out"] == 1
    assert (await derive(shop.triggers.database, shop.world, at(days=-1), END)).count == 0
