"""Every decision can be derived again from what is stored, and everybody can be told why, and why not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import msgspec
import pytest

from services.triggers.derive import derive
from services.triggers.expecting import calendars, idle_timers
from services.triggers.omitted import omitted
from services.triggers.why import Answer, Question, why_not
from tests.service.test_triggers_cart import CART
from tests.service.test_triggers_rules import CHURN, OPT_IN, requests
from tests.support.engine import at
from tests.support.triggers import MARKETER, Shop, open_shop, suppress


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with open_shop(database_url) as shop:
        yield shop


async def derived(shop: Shop) -> tuple[int, list[str]]:
    found = await derive(shop.triggers.database, shop.world, at(days=-10), at(days=400))
    return found.count, [str(one) for one in found.differences]


async def a_busy_week(shop: Shop) -> None:
    """Carts, orders, merges, requests, edits and pauses of a handful of people."""
    await shop.rule(**CART | {"holdout": "50%"})
    await shop.rule(**CHURN | {"enter": {"schedule": "0 9 * * *", "among": {"days_since_order": {"gte": 3}}}})
    await shop.rule(**OPT_IN)
    branches = {
        "wait_for": {
            "event": "Order Completed",
            "for": "1d",
            "then": [{"send": "thanks"}],
            "else": [
                {
                    "if": {
                        "did": {"event": "Product Viewed", "at_least": 2, "since": "entry"},
                        "then": [{"send": "keen"}],
                        "else": [{"send": "cool"}],
                    }
                }
            ],
        }
    }
    await shop.rule(
        name="browse",
        enter={"on": "Product Viewed", "if": {"not": {"cart": {"not_empty": True}}}},
        again="after 2d",
        steps=[branches],
    )
    for day in range(5):
        for number in range(6):
            moment = at(days=day, minutes=7 * number)
            if (day + number) % 3 == 0:
                await shop.adds(
                    moment, user="", ids=[("anonymous_id", f"a-{number}")], trust="public", product=f"p-{day}"
                )
            await shop.post(shop.event("Product Viewed", moment + timedelta(minutes=1), f"user-{number}"))
            if (day + number) % 4 == 1:
                await shop.post(
                    shop.event(
                        "Identify",
                        moment + timedelta(minutes=2),
                        f"user-{number}",
                        ids=[("anonymous_id", f"a-{number}")],
                    )
                )
            if (day + 2 * number) % 5 == 2:
                await shop.buys(moment + timedelta(minutes=3), f"o-{day}-{number}", user=f"user-{number}")
        await requests(shop, at(days=day, hours=2), f"user-{day}@example.com")
        if day == 2:
            await shop.editor.edit(
                "browse",
                {
                    "name": "browse",
                    "enter": {"on": "Product Viewed"},
                    "again": "always",
                    "steps": [{"wait": "2h"}, {"send": "new"}],
                },
                MARKETER,
            )
        if day == 3:
            await shop.editor.set_state("abandoned-cart", "paused", MARKETER)
        await shop.watermark(at(days=day, hours=12))
    await shop.editor.set_state("abandoned-cart", "active", MARKETER)
    await shop.watermark(at(days=12))


async def test_a_busy_week_is_derived_again_without_a_difference(shop: Shop) -> None:
    await a_busy_week(shop)
    count, differences = await derived(shop)
    assert differences == []
    whats = {row["what"] for row in await shop.fetch("SELECT DISTINCT what FROM triggers.decision")}
    assert count > 50 and whats >= {"entered", "advanced", "finished", "goal", "outcome"}


async def test_what_comes_to_light_later_changes_no_decision_already_made(shop: Shop) -> None:
    await a_busy_week(shop)
    await shop.buys(at(days=1), "imported", user="user-1", history=True)
    await shop.adds(at(days=1), user="user-2", history=True)
    await shop.post(shop.event("Identify", at(days=13), "user-1", ids=[("card", "c-1")]))
    await shop.post(shop.event("Identify", at(days=13, hours=1), "user-2", ids=[("email", "later@example.com")]))
    assert (await derived(shop))[1] == []


BROWSE = "rule = (SELECT id FROM triggers.rule WHERE name = 'browse')"


@pytest.mark.parametrize(
    ("tampering", "field"),
    [
        (f"UPDATE triggers.decision SET effects = '[]' WHERE {BROWSE} AND effects <> '[]'", "effects was"),
        (
            f"UPDATE triggers.decision SET at = at + interval '1 hour' WHERE {BROWSE} AND run_before = 0",
            "run was 'entered'",
        ),
        (f"UPDATE triggers.decision SET version = 1 WHERE {BROWSE} AND version = 2", "version 2 was in force"),
        (f"DELETE FROM triggers.decision WHERE {BROWSE} AND run_before = 1", "number of decisions was 2, derived 1"),
        (f"DELETE FROM triggers.decision WHERE {BROWSE} AND run_before = 0", "the run had version None before"),
    ],
)
async def test_a_decision_that_was_tampered_with_is_named(shop: Shop, tampering: str, field: str) -> None:
    await a_busy_week(shop)
    await shop.fetch(tampering)
    _, differences = await derived(shop)
    assert any(field in difference for difference in differences), differences[:3]


# ── what had to be, and is not ────────────────────────────────────────────────────────────────────────────────────────
async def omissions(shop: Shop) -> tuple[int, list[str]]:
    found = await omitted(shop.triggers.database, shop.world, at(days=-10), at(days=400))
    return found.count, [str(one) for one in found.missing]


async def unasked(shop: Shop) -> tuple[int, list[UUID]]:
    """How many idle timers there have to be, and the nodes of those that are not there."""
    async with shop.triggers.database.transaction() as tx:
        rules = await shop.book.read(tx)
        count, missing = await idle_timers(tx, rules, await tx.fetchval("SELECT value FROM platform.watermark"))
        assert (await calendars(tx, rules, await tx.fetchval("SELECT value FROM platform.watermark")))[1] == []
    return count, [node for _, node, _ in missing]


async def test_nobody_is_said_to_have_been_left_out_of_a_busy_week(shop: Shop) -> None:
    await a_busy_week(shop)
    count, missing = await omissions(shop)
    assert missing == [] and count > 60


@pytest.mark.parametrize("rule", ["abandoned-cart", "churn", "browse"])
async def test_an_entry_that_is_gone_with_its_run_and_all_its_decisions_is_named(shop: Shop, rule: str) -> None:
    await a_busy_week(shop)
    [first, *_] = await shop.fetch(
        "SELECT n.* FROM triggers.run n JOIN triggers.rule r ON r.id = n.rule WHERE r.name = $1 ORDER BY entered_at DESC",
        rule,
    )
    for table, column in (("decision", "run"), ("run", "id"), ("item", "run")):
        await shop.fetch(f"DELETE FROM triggers.{table} WHERE {column} = $1", first["id"])
    assert (await derived(shop))[1] == [], "what is left comes out the same"
    _, missing = await omissions(shop)
    assert len(missing) == 1 and str(first["node"]) in missing[0] and str(first["rule"]) in missing[0]
    assert first["entered_at"].isoformat() in missing[0]


async def test_a_request_that_nobody_answered_is_named_until_its_address_is_forgotten(shop: Shop) -> None:
    await shop.rule(**OPT_IN)
    await requests(shop, at(), "anna@example.com")
    await requests(shop, at(minutes=1), "anna@example.com")
    await requests(shop, at(minutes=2), "boris@example.com")
    await shop.watermark(at(minutes=5))
    assert await omissions(shop) == (3, []), "the second of Anna's found her inside"
    [first, *_] = await shop.runs()
    for table, column in (("decision", "run"), ("run", "id"), ("item", "run")):
        await shop.fetch(f"DELETE FROM triggers.{table} WHERE {column} = $1", first["id"])
    _, [missing] = await omissions(shop)
    assert at().isoformat() in missing


async def test_an_idle_timer_that_is_gone_is_named_and_so_is_who_did_not_enter_for_it(shop: Shop) -> None:
    await shop.rule(**CART)
    await shop.adds(at())
    await shop.adds(at(minutes=30), user="boris")
    await shop.adds(at(minutes=40))
    await shop.watermark(at(minutes=70))
    assert await unasked(shop) == (2, []), "Anna's fired once and moved on"
    await shop.fetch("DELETE FROM triggers.item WHERE node = $1", shop.node("user_id", "anna"))
    assert await unasked(shop) == (2, [shop.node("user_id", "anna")])
    await shop.watermark(at(hours=3))
    assert await unasked(shop) == (0, [])
    count, [missing] = await omissions(shop)
    assert count == 3 and str(shop.node("user_id", "anna")) in missing and at(minutes=100).isoformat() in missing


async def test_an_event_that_waited_and_is_gone_is_named_by_who_did_not_enter(shop: Shop) -> None:
    await shop.rule()
    await shop.post(shop.event("Product Viewed", at(), "anna"))
    await shop.post(shop.event("Product Viewed", at(minutes=1), "boris"))
    await shop.watermark(at(minutes=5), work=False)
    assert await omissions(shop) == (2, []), "they wait"
    await shop.fetch("DELETE FROM triggers.item WHERE node = $1", shop.node("user_id", "boris"))
    await shop.work()
    _, [missing] = await omissions(shop)
    assert str(shop.node("user_id", "boris")) in missing


async def test_a_timer_of_a_rule_that_was_paused_or_edited_meanwhile_is_not_missed(shop: Shop) -> None:
    await shop.rule(**CART)
    await shop.adds(at())
    await shop.watermark(at(minutes=10))
    await shop.editor.set_state("abandoned-cart", "paused", MARKETER)
    await shop.watermark(at(hours=2))
    assert await unasked(shop) == (0, []) and (await omissions(shop))[1] == []


REACHABLE = {"reachable": {"any": ["email"]}}


async def agrees(shop: Shop, *users: str) -> None:
    """These people confirm an address of theirs."""
    for user in users:
        address = f"{user}@example.com"
        said = {"channel": "email", "address": address, "topics": ["marketing"]}
        await shop.post(shop.event("Identify", at(), user, ids=[("email", address)]))
        own = shop.event("Subscription Confirmed", at(), user, ids=[("email", address)], properties=said)
        await shop.post(msgspec.structs.replace(own, trust="internal"))


async def test_an_address_that_bounced_is_not_reachable_from_then_on_and_until_it_is_lifted(
    shop: Shop, database_url: str
) -> None:
    branch = {"if": REACHABLE | {"then": [{"send": "letter"}], "else": [{"send": "hurry"}]}}
    await shop.rule(steps=[{"wait": "1h"}, branch, {"wait": "1d"}, branch | {"id": "again"}])
    await agrees(shop, "anna", "boris", "vera")
    for user in ("anna", "boris", "vera"):
        await shop.post(shop.event("Product Viewed", at(minutes=1), user))
    await suppress(database_url, shop.node("email", "anna@example.com"), at(minutes=30))
    await suppress(database_url, shop.node("email", "boris@example.com"), at(minutes=30), at(hours=5))
    await suppress(database_url, shop.node("email", "vera@example.com"), at(hours=5))
    await shop.watermark(at(days=3))
    origins = {shop.node("user_id", user): user for user in ("anna", "boris", "vera")}
    went: dict[str, list[str]] = {}
    for intent in shop.intents:
        went.setdefault(origins[intent.origin], []).append(intent.template)
    assert went == {"anna": ["hurry", "hurry"], "boris": ["hurry", "letter"], "vera": ["letter", "hurry"]}
    assert await derived(shop) == (9, [])


async def test_a_schedule_looks_for_those_who_were_reachable_at_its_moment(shop: Shop, database_url: str) -> None:
    await shop.rule(enter={"schedule": "0 12 * * *", "among": REACHABLE}, again="always")
    await agrees(shop, "anna", "boris")
    await suppress(database_url, shop.node("email", "anna@example.com"), at(minutes=-1))
    await suppress(database_url, shop.node("email", "boris@example.com"), at(minutes=-1), at(hours=10))
    await shop.watermark(at(days=2))
    nodes = {run["node"] for run in await shop.runs()}
    assert len(nodes) == 1 and [intent.decided_at for intent in shop.intents] == [at(hours=23), at(hours=47)]
    assert (await derived(shop))[1] == []


# ── why not ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def asked(shop: Shop, rule: str, moment, user: str = "anna") -> Answer:
    async with shop.triggers.database.transaction() as tx:
        id = await tx.fetchval("SELECT id FROM triggers.rule WHERE name = $1", rule)
        question = Question(rule=id, node=shop.node("user_id", user), at=moment)
        return await why_not(tx, question, await shop.book.read(tx), shop.world)


async def test_why_not_an_order_stopped_it_before_entry(shop: Shop) -> None:
    await shop.rule(**CART)
    await shop.adds(at())
    await shop.buys(at(minutes=40), "881")
    await shop.watermark(at(hours=2))
    answer = await asked(shop, "abandoned-cart", at(hours=2))
    assert (answer.entered, answer.why) == (
        False,
        "stopped before entry: Order Completed (order 881) at 2026-03-02 10:40:00 UTC",
    )
    assert (await asked(shop, "abandoned-cart", at(minutes=30))).code == "waiting"
    assert (await asked(shop, "abandoned-cart", at(hours=-1))).code == "not_active"


async def test_why_not_the_condition_was_not_met_and_what_it_saw(shop: Shop) -> None:
    await shop.rule(**CART)
    await shop.adds(at())
    await shop.post(shop.event("Product Removed", at(minutes=5), properties={"product_id": "p-1", "quantity": 1}))
    await shop.watermark(at(hours=2))
    answer = await asked(shop, "abandoned-cart", at(hours=2))
    assert answer.code == "condition" and "not_empty" in answer.why and answer.asked_at == at(minutes=65)


async def test_why_not_again_and_no_event_and_entered_after_all(shop: Shop) -> None:
    await shop.rule(**CART)
    await shop.post(shop.event("Product Viewed", at(), "boris"))
    await shop.adds(at())
    await shop.watermark(at(days=3))
    await shop.adds(at(days=3, minutes=1))
    await shop.watermark(at(days=4))
    assert (await asked(shop, "abandoned-cart", at(days=4))).code == "again"
    assert (await asked(shop, "abandoned-cart", at(hours=2))).entered
    assert (await asked(shop, "abandoned-cart", at(days=4), "boris")).code == "no_event"
    assert (await asked(shop, "abandoned-cart", at(days=4), "nobody")).code == "nobody"


async def test_why_not_history_and_a_schedule(shop: Shop) -> None:
    await shop.rule(**CART)
    await shop.rule(**CHURN)
    await shop.adds(at(), history=True)
    await shop.buys(at(minutes=1))
    await shop.watermark(at(days=2))
    assert "history starts nothing" in (await asked(shop, "abandoned-cart", at(days=2))).why
    answer = await asked(shop, "churn", at(days=2))
    assert answer.code == "condition" and "days_since_order" in answer.why
