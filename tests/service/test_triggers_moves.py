"""Edits that take people along, holidays, and what was put aside: each derived again without a difference."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date
from typing import Any

import pytest

from services.triggers.aside import Aside
from services.triggers.derive import derive
from services.triggers.queue import ItemKind
from services.triggers.store import aside as aside_store
from services.triggers.store import queue
from shared.errors import Problem
from tests.support.engine import at
from tests.support.triggers import MARKETER, Shop, open_shop


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with open_shop(database_url) as shop:
        yield shop


async def differences(shop: Shop) -> list[str]:
    found = await derive(shop.triggers.database, shop.world, at(days=-10), at(days=400))
    assert found.count > 0
    return [str(one) for one in found.differences]


def rule(*steps: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "a-rule", "enter": {"on": "Product Viewed"}, "steps": list(steps)} | fields


async def views(shop: Shop, moment, *users: str) -> None:
    for user in users:
        await shop.post(shop.event("Product Viewed", moment, user))


async def edits(shop: Shop, moment, document: dict[str, Any]) -> None:
    shop.clock.set(moment)
    await shop.editor.edit("a-rule", document, MARKETER)


# ── on_edit: move ─────────────────────────────────────────────────────────────────────────────────────────────────────
FIRST = rule({"send": "first"}, {"wait": "1d"}, {"send": "second"})
LONGER = rule({"send": "first"}, {"wait": "3d"}, {"send": "new"}, on_edit="move")


async def test_people_inside_go_on_by_the_new_version_and_are_derived_again(shop: Shop) -> None:
    await shop.rule(**FIRST)
    await views(shop, at(), "anna")
    await shop.watermark(at(minutes=1))
    await edits(shop, at(hours=2), LONGER)
    await shop.watermark(at(hours=3))
    (run,) = await shop.runs()
    assert (run["version"], run["state"]["path"], run["number"]) == (2, ["wait"], 2)
    assert [item["due"] for item in await shop.items()] == [at(days=3)]
    await shop.watermark(at(days=2))
    assert [intent.template for intent in shop.intents] == ["first"]
    await shop.watermark(at(days=3))
    assert [(i.template, i.rule_version, i.decided_at) for i in shop.intents][1:] == [("new", 2, at(days=3))]
    whats = [row["what"] for row in await shop.fetch("SELECT what FROM triggers.decision ORDER BY seq")]
    assert whats == ["entered", "moved", "finished"]
    assert await differences(shop) == []


async def test_who_stands_at_a_step_that_is_gone_finishes_by_the_old_version(shop: Shop) -> None:
    await shop.rule(**FIRST)
    await views(shop, at(), "anna")
    await shop.watermark(at(minutes=1))
    await edits(shop, at(hours=2), rule({"send": "new"}, {"wait": "2d", "id": "pause"}, on_edit="move"))
    await shop.watermark(at(days=2))
    assert [(intent.template, intent.rule_version) for intent in shop.intents] == [("first", 1), ("second", 1)]
    assert await differences(shop) == []
    left = await shop.fetch("SELECT 1 FROM triggers.rule_change WHERE NOT swept AND state = 'active'")
    assert left == []


async def test_whatever_comes_first_after_the_edit_is_decided_by_the_new_version(shop: Shop) -> None:
    """The watermark reaches the edit, an event and the timer at once: nobody was told of the edit before."""
    await shop.rule(**FIRST, stop=[{"event": "Order Completed"}])
    await views(shop, at(), "anna", "boris")
    await shop.watermark(at(minutes=1))
    shop.clock.set(at(hours=2))
    await shop.editor.edit("a-rule", LONGER | {"stop": [{"event": "Review Written"}]}, MARKETER)
    await shop.buys(at(hours=3))
    await shop.post(shop.event("Review Written", at(hours=4), "boris"))
    await shop.watermark(at(days=2), work=False)
    while await shop.worker.claim():  # without the calendar, which tells of edits
        pass
    runs = {row["node"]: row for row in await shop.runs()}
    anna, boris = runs[shop.node("user_id", "anna")], runs[shop.node("user_id", "boris")]
    assert (anna["version"], anna["ended_as"], anna["state"]["due"]) == (2, None, "2026-03-05T10:00:00Z")
    assert (boris["version"], boris["ended_as"]) == (2, "stopped")
    assert await differences(shop) == []


async def test_many_people_move_and_a_decision_by_the_old_version_is_a_difference(shop: Shop) -> None:
    await shop.rule(**FIRST)
    await views(shop, at(), *(f"user-{number}" for number in range(5)))
    await shop.watermark(at(minutes=1))
    await edits(shop, at(hours=2), LONGER)
    await shop.watermark(at(days=4))
    assert sorted(intent.template for intent in shop.intents) == ["first"] * 5 + ["new"] * 5
    await shop.fetch(
        'UPDATE triggers.rule_version SET document = document || \'{"on_edit": "finish"}\' WHERE version = 1'
    )
    assert await differences(shop) == []
    moved = "SELECT run FROM triggers.decision WHERE what = 'moved' ORDER BY seq LIMIT 1"
    await shop.fetch(
        f"""
        UPDATE triggers.decision SET after = after || '{{"version": 1}}', version = 1 WHERE what = 'moved' AND run = ({moved})
        """
    )
    assert any("version" in difference for difference in await differences(shop))


async def test_a_transactional_rule_takes_its_people_along_too(shop: Shop) -> None:
    receipt = rule({"wait": "1d"}, {"send": "receipt"}, kind="transactional", enter={"on": "Order Completed"})
    await shop.rule(**receipt)
    await shop.buys(at())
    shop.clock.set(at(hours=1))
    new = receipt | {"steps": [{"wait": "2d"}, {"send": "shipped"}], "on_edit": "move", "stop": ["Order Cancelled"]}
    await shop.editor.edit("a-rule", new, MARKETER)
    await shop.post(shop.event("Order Cancelled", at(hours=2), properties={"order_id": "o-1"}))
    (run,) = await shop.runs()
    assert (run["version"], run["ended_as"], run["number"]) == (2, "stopped", 3)
    assert await differences(shop) == []


async def test_a_paused_rule_moves_nobody_before_it_goes_on(shop: Shop) -> None:
    await shop.rule(**FIRST)
    await views(shop, at(), "anna")
    await shop.watermark(at(minutes=1))
    shop.clock.set(at(hours=1))
    await shop.editor.set_state("a-rule", "paused", MARKETER)
    await edits(shop, at(hours=2), LONGER)
    await shop.watermark(at(days=2))
    assert [(row["version"], row["ended_as"]) for row in await shop.runs()] == [(1, None)]
    shop.clock.set(at(days=2, hours=1))
    await shop.editor.set_state("a-rule", "active", MARKETER)
    await shop.watermark(at(days=5))
    await shop.watermark(at(days=5, minutes=1))
    assert [intent.template for intent in shop.intents] == ["first", "new"]
    assert await differences(shop) == []


# ── holidays ──────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_holidays_count_from_their_version_on_and_decisions_before_keep_theirs(shop: Shop) -> None:
    branches = {"holiday": True, "then": [{"send": "x"}], "else": [{"send": "letter"}]}
    await shop.rule(**rule({"if": branches}))
    await views(shop, at(), "anna")
    await shop.watermark(at(minutes=1))
    shop.clock.set(at(minutes=2))
    row = await shop.editor.set_holidays([date(2026, 3, 2), date(2026, 3, 8)], MARKETER)
    assert (row["version"], row["valid_from"]) == (1, at(minutes=2))
    await views(shop, at(minutes=3), "boris")
    await shop.watermark(at(minutes=4))
    shop.clock.set(at(minutes=5))
    await shop.editor.set_holidays([date(2026, 3, 8)], MARKETER)
    same = await shop.editor.set_holidays([date(2026, 3, 8), date(2026, 3, 8)], MARKETER)
    assert same["version"] == 2
    await views(shop, at(minutes=6), "vera")
    await shop.watermark(at(minutes=7))
    assert [intent.template for intent in shop.intents] == ["letter", "x", "letter"]
    assert await differences(shop) == []
    await shop.fetch("UPDATE platform.holidays SET days = '{2026-03-08}' WHERE version = 1")
    assert any("effects" in difference for difference in await differences(shop))


async def test_a_schedule_looks_at_the_holidays_of_its_moment(shop: Shop) -> None:
    await shop.editor.set_holidays([date(2026, 3, 3)], MARKETER)
    among = {"all": [{"holiday": False}, {"days_since_order": {"gte": 0}}]}
    await shop.rule(**rule({"send": "letter"}, enter={"schedule": "0 9 * * *", "among": among}))
    await shop.buys(at())
    await shop.watermark(at(days=3))
    assert [intent.decided_at for intent in shop.intents] == [at(days=1, hours=20)]
    assert await differences(shop) == []


# ── put aside ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def broken(shop: Shop, kind: int) -> None:
    """The items of this kind are put aside, as a claim that fails does it."""
    async with shop.triggers.database.transaction() as tx:
        rows = await tx.fetch("SELECT node, due FROM triggers.item WHERE kind = $1", kind)
        assert await queue.put_aside(tx, [row["node"] for row in rows], rows[0]["due"], "it broke") == 1


async def aside_items(shop: Shop) -> list[Any]:
    async with shop.triggers.database.connection() as tx:
        return await aside_store.list_aside(tx, nodes=None, after=None, limit=10)


async def test_what_was_put_aside_is_listed_and_decided_as_of_its_own_moment_when_it_is_retried(shop: Shop) -> None:
    await shop.rule()
    await views(shop, at(), "anna", "boris")
    anna = shop.node("user_id", "anna")
    (payload,) = await shop.fetch("SELECT payload FROM triggers.item WHERE node = $1", anna)
    await shop.fetch("UPDATE triggers.item SET payload = '{\"event\": 5}' WHERE node = $1", anna)
    await shop.watermark(at(minutes=1))
    (row,) = await aside_items(shop)
    assert (row["node"], row["kind"], row["due"]) == (anna, ItemKind.EVENT, at())
    assert "ValidationError" in row["reason"]
    await shop.fetch("UPDATE triggers.item SET payload = payload || $2 WHERE node = $1", anna, payload["payload"])
    aside = Aside(shop.triggers, shop.book, shop.world)
    assert await aside.retry(MARKETER, anna, row["id"]) == 1
    await shop.watermark(at(days=1))
    assert [(i.origin, i.decided_at) for i in shop.intents if i.origin == anna] == [(anna, at())]
    assert await aside_items(shop) == [] and await shop.items() == []
    assert await differences(shop) == []
    with pytest.raises(Problem, match="404"):
        await aside.retry(MARKETER, anna, row["id"])
    assert await aside.retry(MARKETER) == 0


async def test_a_timer_that_is_retried_belongs_to_its_rule_again(shop: Shop) -> None:
    await shop.rule(**FIRST)
    await views(shop, at(), "anna")
    await shop.watermark(at(minutes=1))
    await broken(shop, ItemKind.STEP)
    await shop.watermark(at(days=2))
    assert [intent.template for intent in shop.intents] == ["first"]
    assert await Aside(shop.triggers, shop.book, shop.world).retry(MARKETER) == 1
    (item,) = await shop.items()
    assert item["rule"] is not None and item["payload"] == {} and item["due"] == at(days=1)
    await shop.work()
    assert [intent.template for intent in shop.intents] == ["first", "second"]
    assert await differences(shop) == []


@pytest.mark.parametrize(
    ("kind", "ended_as", "open_after"), [(ItemKind.STEP, "dropped", True), (ItemKind.GOAL, "finished", False)]
)
async def test_a_timer_that_is_dropped_ends_its_run_or_closes_its_window(
    shop: Shop, kind: int, ended_as: str, open_after: bool
) -> None:
    await shop.rule(**FIRST | {"goal": {"event": "Order Completed", "within": "3d"}})
    await views(shop, at(), "anna")
    await shop.watermark(at(minutes=1))
    if kind == ItemKind.GOAL:
        await shop.watermark(at(days=1))
    await broken(shop, kind)
    await shop.watermark(at(days=2))
    (row,) = await aside_items(shop)
    await Aside(shop.triggers, shop.book, shop.world).drop(MARKETER, row["node"], row["id"])
    (run,) = await shop.runs()
    assert (run["ended_as"], run["open"]) == (ended_as, open_after)
    asleep = "SELECT 1 FROM triggers.run r WHERE open AND NOT EXISTS (SELECT 1 FROM triggers.item WHERE run = r.id)"
    assert await shop.fetch(asleep) == []
    await shop.watermark(at(days=9))
    assert len(shop.outcomes) == int(open_after)
    assert await differences(shop) == []
    log = await shop.fetch("SELECT action FROM platform.change_log WHERE action LIKE 'aside%'")
    assert [row["action"] for row in log] == ["aside.drop"]
