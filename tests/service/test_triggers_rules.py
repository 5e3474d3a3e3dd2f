"""Rules in force: transactional ones at once, schedules, versions, pausing, archiving, failing, holdout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.profile.purging import erase_nodes
from services.profile.wire import erased_record
from services.triggers.derive import derive
from services.triggers.queue import ItemKind
from services.triggers.store.rules import RuleBook
from services.triggers.why import Question, why_not
from services.triggers.working import Worker
from shared.bus.base import Outgoing
from shared.clock import MICROSECOND
from shared.erasure import erase
from shared.errors import Problem
from shared.events import PROFILE_EVENTS, Event
from tests.support.engine import at
from tests.support.triggers import MARKETER, Shop, open_shop
from tests.support.wait import until

OPT_IN = {
    "name": "double-opt-in",
    "kind": "transactional",
    "enter": {"on": "Subscription Requested"},
    "stop": [{"event": "Subscription Confirmed"}],
    "steps": [
        {"send": "confirm"},
        {"wait": "1d"},
        {"send": "confirm-again"},
        {"wait": "2d"},
        {"purge": {"contact": "unconfirmed"}},
    ],
}


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with open_shop(database_url) as shop:
        yield shop


def sent(shop: Shop) -> list[str]:
    return [intent.template for intent in shop.intents]


async def requests(shop: Shop, moment, address: str = "anna@example.com", user: str = "") -> None:
    said = {"channel": "email", "address": address, "topics": ["news"], "form": "footer"}
    ids = [("anonymous_id", "a-1"), ("email", address)]
    await shop.post(shop.event("Subscription Requested", moment, user, trust="public", ids=ids, properties=said))


# ── transactional ─────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_transactional_rule_answers_at_once_and_does_not_wait_for_the_watermark(shop: Shop) -> None:
    await shop.rule(**OPT_IN)
    await requests(shop, at())
    assert sent(shop) == ["confirm"]
    (intent,) = shop.intents
    assert intent.addressed is not None
    assert (intent.addressed.address, intent.addressed.form) == ("anna@example.com", "footer")
    assert intent.addressed.node == shop.node("email", "anna@example.com")


async def test_its_reminder_waits_for_the_watermark_and_a_contact_never_confirmed_is_purged(shop: Shop) -> None:
    await shop.rule(**OPT_IN)
    await requests(shop, at())
    await shop.watermark(at(days=1))
    assert sent(shop) == ["confirm", "confirm-again"]
    async with shop.triggers.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM triggers.item") == 1
    purged: list[str] = []
    shop.on_emit = lambda event: purged.append(event.name)
    await shop.watermark(at(days=3))
    assert [event.name for event in shop.emitted] == purged == ["Contact Purged"]
    assert shop.emitted[0].properties["address"] == "anna@example.com"
    everything = await shop.fetch(
        "SELECT r::text FROM triggers.run r UNION ALL SELECT d::text FROM triggers.decision d"
    )
    assert not [row for row in everything if "anna@example.com" in row[0]]


async def test_a_request_repeated_while_it_is_open_sends_no_second_mail_but_another_address_gets_its_own(
    shop: Shop,
) -> None:
    await shop.rule(**OPT_IN)
    await requests(shop, at())
    await requests(shop, at(minutes=5))
    assert sent(shop) == ["confirm"]
    await requests(shop, at(minutes=6), "anna@work.example")
    assert [intent.addressed.address for intent in shop.intents] == ["anna@example.com", "anna@work.example"]


async def test_two_records_of_one_person_in_one_batch_are_taken_in_their_order(shop: Shop) -> None:
    await shop.rule(
        kind="transactional",
        name="receipt",
        enter={"on": "Order Completed"},
        stop=[{"event": "Order Cancelled"}],
        steps=[{"wait": "1h"}, {"send": "receipt"}],
    )
    order = shop.event("Order Completed", at(), properties={"order_id": "o-1", "total": "10"})
    cancelled = shop.event("Order Cancelled", at(seconds=1), properties={"order_id": "o-1"})
    await shop.post(order, cancelled)
    (run,) = await shop.runs()
    assert run["ended_as"] == "stopped"
    assert await shop.items() == []


# ── schedules ─────────────────────────────────────────────────────────────────────────────────────────────────────────
CHURN = {
    "name": "churn",
    "enter": {"schedule": "0 9 * * *", "among": {"days_since_order": {"gte": 30}}},  # 09:00 Moscow is 06:00 UTC
    "again": "after 90d",
    "steps": [{"send": "come-back"}],
}


async def test_a_schedule_enters_everybody_who_meets_it_once_a_moment(shop: Shop) -> None:
    await shop.rule(**CHURN)
    for number in range(3):
        await shop.buys(at(days=number), f"o-{number}", user=f"user-{number}")
    await shop.watermark(at(days=30, hours=21))  # the day after: 07:00 UTC
    (intent,) = shop.intents
    assert (intent.decided_at, intent.origin) == (at(days=30, hours=20), shop.node("user_id", "user-0"))
    await shop.watermark(at(days=40))
    assert len(shop.intents) == 3
    runs = await shop.runs()
    assert [run["state"]["entry_key"] for run in runs] == [run["entered_at"].isoformat() for run in runs]


async def test_no_claim_goes_past_a_moment_that_is_not_expanded(shop: Shop) -> None:
    await shop.rule(
        **CHURN | {"stop": [{"event": "Order Completed"}], "steps": [{"wait": "1h"}, {"send": "come-back"}]}
    )
    await shop.buys(at(), "o-0")
    due = at(days=30, hours=20)
    await shop.buys(at(days=30, hours=20, minutes=1), "o-1")
    await shop.watermark(at(days=31, hours=1), work=False)
    await shop.worker.claim()
    assert await shop.runs() == []
    assert [item["due"] for item in await shop.items(ItemKind.EVENT)] == [at(days=30, hours=20, minutes=1)]
    await shop.work()
    (run,) = await shop.runs()
    assert (run["entered_at"], run["ended_as"], run["ended_at"]) == (due, "stopped", at(days=30, hours=20, minutes=1))


async def test_an_edited_calendar_counts_from_its_version_on(shop: Shop) -> None:
    await shop.rule(**CHURN)
    await shop.buys(at(), "o-0")
    shop.clock.set(at(days=29))
    await shop.editor.edit("churn", CHURN | {"enter": CHURN["enter"] | {"schedule": "0 12 * * *"}}, MARKETER)
    await shop.watermark(at(days=31))
    assert [intent.decided_at for intent in shop.intents] == [at(days=30, hours=23)]


async def test_a_rule_that_was_paused_over_a_moment_the_watermark_has_not_reached_fires_at_the_next(shop: Shop) -> None:
    await shop.rule(**CHURN)
    await shop.buys(at(), "o-0")
    await shop.watermark(at(days=30))  # the moment of that day comes twenty hours later
    shop.clock.set(at(days=30, hours=19))
    await shop.editor.set_state("churn", "paused", MARKETER)
    shop.clock.set(at(days=30, hours=21))
    await shop.editor.set_state("churn", "active", MARKETER)
    await shop.watermark(at(days=31, hours=21))
    assert [intent.decided_at for intent in shop.intents] == [at(days=31, hours=20)]


async def test_an_earlier_moment_of_an_edited_calendar_is_not_lost_while_the_old_one_waits(shop: Shop) -> None:
    await shop.rule(**CHURN)
    await shop.buys(at(hours=-3), "o-0")
    await shop.watermark(at(days=29))
    shop.clock.set(at(days=29, hours=21))  # the moment of that day has come, and the watermark is not there yet
    await shop.editor.edit("churn", CHURN | {"enter": CHURN["enter"] | {"schedule": "0 11 * * *"}}, MARKETER)
    await shop.watermark(at(days=30))
    assert [intent.decided_at for intent in shop.intents] == [at(days=29, hours=22)]


async def test_a_condition_that_sql_cannot_decide_is_judged_over_the_facts(shop: Shop) -> None:
    await shop.rule(**CHURN | {"enter": {"schedule": "0 9 * * *", "among": {"cart": {"not_empty": True}}}})
    await shop.adds(at(), "with-cart")
    await shop.adds(at(minutes=1), "emptied")
    await shop.post(
        shop.event("Product Removed", at(minutes=2), "emptied", properties={"product_id": "p-1", "quantity": 1})
    )
    await shop.watermark(at(days=1))
    assert [intent.origin for intent in shop.intents] == [shop.node("user_id", "with-cart")]


class Unreading(RuleBook):
    """The rule book of a program that cannot read the documents of these rules."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._names = names

    async def _load(self, tx: Any, keys: set[tuple[UUID, int]]) -> None:
        await super()._load(tx, keys)
        for key in [key for key, version in self._versions.items() if version.name in self._names]:
            del self._versions[key]
            self.unreadable[key] = "it says what only a newer program understands"


def reading(shop: Shop, book: RuleBook) -> None:
    """From now on the shop's process reads rules by this book."""
    shop.book, shop.worker = book, Worker(shop.triggers, book, shop.world, 1)


async def test_a_moment_of_a_rule_that_cannot_be_read_waits_for_a_program_that_reads_it(shop: Shop) -> None:
    await shop.rule(**CHURN)
    await shop.rule(name="other", enter={"on": "Product Viewed"}, steps=[{"send": "first"}])
    await shop.buys(at(days=-200))
    reading(shop, Unreading("churn"))
    await shop.post(shop.event("Product Viewed", at(days=1), "boris"))
    await shop.watermark(at(days=1, hours=1))
    assert sent(shop) == ["first"], "the other rules go on"
    reading(shop, RuleBook())
    await shop.watermark(at(days=1, hours=2))
    assert sent(shop) == ["first", "come-back"]
    (moment,) = await shop.fetch("SELECT due, held FROM triggers.schedule")
    assert tuple(moment) == (at(days=1, hours=20), False)


async def test_a_moment_that_waited_longer_than_its_rule_allows_is_left_out(shop: Shop) -> None:
    await shop.rule(**CHURN)
    await shop.buys(at(days=-200))
    reading(shop, Unreading("churn"))
    await shop.watermark(at(days=1))
    reading(shop, RuleBook())
    await shop.watermark(at(days=4))
    assert await shop.runs() == []
    (moment,) = await shop.fetch("SELECT due, held FROM triggers.schedule")
    assert tuple(moment) == (at(days=4, hours=20), False)


async def test_an_idle_timer_and_a_person_of_the_calendar_wait_for_a_program_that_reads_their_rule(shop: Shop) -> None:
    await shop.rule(name="browse", enter={"on": "Product Viewed", "idle": "1h"}, steps=[{"send": "letter"}])
    await shop.rule(**CHURN)
    await shop.buys(at(days=-200))
    await shop.post(shop.event("Product Viewed", at(), "boris"))
    await shop.watermark(at(hours=21), work=False)
    await shop.worker.keep_calendar()  # the calendar is expanded, and then another program takes over
    reading(shop, Unreading("browse", "churn"))
    await shop.work()
    assert sent(shop) == [] and [item["held"] for item in await shop.items()] == [True, True]
    reading(shop, RuleBook())
    await shop.watermark(at(hours=21, minutes=1))
    assert sorted(sent(shop)) == ["come-back", "letter"] and await shop.items() == []


# ── versions and states ───────────────────────────────────────────────────────────────────────────────────────────────
WAITING = {"steps": [{"send": "first"}, {"wait": "1d"}, {"send": "second"}]}


async def test_people_inside_finish_by_their_version_and_others_enter_by_the_new_one(shop: Shop) -> None:
    saved = await shop.rule(**WAITING)
    await shop.post(shop.event("Product Viewed", at()))
    await shop.watermark(at(minutes=1))
    shop.clock.set(at(minutes=2))
    edited = await shop.editor.edit(
        saved.name, {"name": "a-rule", "enter": {"on": "Product Viewed"}, "steps": [{"send": "new"}]}, MARKETER
    )
    assert (edited.version, edited.state, edited.result) == (2, "active", "changed")
    await shop.post(shop.event("Product Viewed", at(minutes=3), "boris"))
    await shop.watermark(at(days=2))
    in_time = sorted(shop.intents, key=lambda intent: intent.decided_at)
    assert [(intent.template, intent.rule_version) for intent in in_time] == [("first", 1), ("new", 2), ("second", 1)]


async def test_on_edit_stop_ends_the_runs_of_the_versions_before(shop: Shop) -> None:
    await shop.rule(**WAITING)
    await shop.post(shop.event("Product Viewed", at()))
    await shop.watermark(at(minutes=1))
    shop.clock.set(at(minutes=2))
    document = {"name": "a-rule", "enter": {"on": "Product Viewed"}, "on_edit": "stop", "steps": [{"send": "new"}]}
    await shop.editor.edit("a-rule", document, MARKETER)
    await shop.watermark(at(minutes=3))
    (run,) = await shop.runs()
    assert run["ended_as"] == "edited"
    assert len(shop.cancelled) == 1 and await shop.items() == []


@pytest.mark.parametrize(("change", "ended"), [("archive", "archived"), ("edit", "edited")])
async def test_whoever_enters_late_by_what_was_in_force_before_a_change_is_told_of_it_too(
    shop: Shop, change: str, ended: str
) -> None:
    await shop.rule(**WAITING)
    await shop.watermark(at(seconds=-1))
    await shop.post(shop.event("Product Viewed", at()))
    shop.clock.set(at(minutes=2))
    if change == "archive":
        await shop.editor.set_state("a-rule", "archived", MARKETER)
    else:
        document = {"name": "a-rule", "enter": {"on": "Product Viewed"}, "on_edit": "stop", "steps": [{"send": "new"}]}
        await shop.editor.edit("a-rule", document, MARKETER)
    shop.clock.set(at(minutes=3))
    assert await shop.work() == []  # the watermark has not come to anything of it yet
    await shop.watermark(at(minutes=4))
    assert sent(shop) == ["first"]
    assert [run["ended_as"] for run in await shop.runs()] == [ended]
    assert len(shop.cancelled) == 1 and await shop.items() == []


async def test_a_paused_rule_lets_nobody_in_and_its_timers_stand_still_until_it_goes_on(shop: Shop) -> None:
    await shop.rule(**WAITING, stop=[{"event": "Order Completed"}])
    for user in ("anna", "boris"):
        await shop.post(shop.event("Product Viewed", at(), user))
    await shop.watermark(at(minutes=1))
    shop.clock.set(at(hours=1))
    await shop.editor.set_state("a-rule", "paused", MARKETER)
    await shop.post(shop.event("Product Viewed", at(hours=2), "vera"))
    await shop.watermark(at(days=2))
    assert sent(shop) == ["first", "first"]
    await shop.buys(at(days=2, hours=1), user="boris")
    await shop.watermark(at(days=2, hours=2))
    shop.clock.set(at(days=3))
    await shop.editor.set_state("a-rule", "active", MARKETER)
    await shop.watermark(at(days=3, minutes=1))
    assert [(intent.template, intent.decided_at) for intent in shop.intents][2:] == [("second", at(days=3, minutes=1))]
    assert sorted(run["ended_as"] for run in await shop.runs()) == ["finished", "stopped"]


async def test_an_archived_rule_ends_its_runs(shop: Shop) -> None:
    await shop.rule(**WAITING)
    await shop.post(shop.event("Product Viewed", at()))
    await shop.watermark(at(minutes=1))
    shop.clock.set(at(hours=1))
    await shop.editor.set_state("a-rule", "archived", MARKETER)
    await shop.watermark(at(hours=2))
    assert [run["ended_as"] for run in await shop.runs()] == ["archived"]


async def test_an_edit_without_ids_keeps_the_ids_of_the_steps(shop: Shop) -> None:
    saved = await shop.rule(steps=[{"send": "a", "id": "hello"}, {"wait": "1d"}])
    edited = await shop.editor.edit(
        str(saved.id),
        {"name": "a-rule", "enter": {"on": "Product Viewed"}, "steps": [{"wait": "2d"}, {"send": "a"}]},
        MARKETER,
    )
    assert edited.differences == [
        {"at": "#/steps/wait/wait", "before": "1d", "after": "2d"},
        {"at": "#/steps", "before": ["hello", "wait"], "after": ["wait", "hello"]},
    ]
    (same,) = await shop.editor.apply(
        [{"name": "a-rule", "enter": {"on": "Product Viewed"}, "steps": [{"wait": "2d"}, {"send": "a"}]}],
        MARKETER,
        activate=True,
    )
    assert (same.result, same.version) == ("unchanged", 2)


async def test_a_rule_keeps_its_kind_and_names_are_taken_once(shop: Shop) -> None:
    await shop.rule()
    with pytest.raises(Problem) as error:
        await shop.rule()
    assert error.value.status == 409
    with pytest.raises(Problem) as error:
        await shop.editor.edit(
            "a-rule",
            {"name": "a-rule", "kind": "transactional", "enter": {"on": "X"}, "steps": [{"send": "x"}]},
            MARKETER,
        )
    assert error.value.errors[0]["pointer"] == "#/kind"


async def test_a_change_is_valid_two_seconds_after_its_transaction_and_is_answered_then(shop: Shop) -> None:
    shop.clock.release()
    before = shop.clock.now()
    saved = await shop.rule()
    assert 2 <= (saved.valid_from - before).total_seconds() < 3
    assert shop.clock.now() >= saved.valid_from


# ── failing, holdout, hops ────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_rule_that_fails_stops_for_that_person_and_the_others_go_on(shop: Shop) -> None:
    await shop.rule(steps=[{"wait": "1h"}, {"wait": {"until": {"trait": "renewal", "days": 3650}}}, {"send": "x"}])
    for user, renewal in (("anna", "9999-06-01"), ("boris", "2016-03-04")):
        await shop.post(shop.event("Identify", at(), user, traits={"renewal": renewal}))
        await shop.post(shop.event("Product Viewed", at(minutes=1), user))
    await shop.watermark(at(days=10))
    assert [intent.origin for intent in shop.intents] == [shop.node("user_id", "boris")]
    ended = {run["node"]: (run["ended_as"], run["state"].get("ended_why")) for run in await shop.runs()}
    how, why = ended[shop.node("user_id", "anna")]
    assert how == "failed" and "OverflowError" in why
    assert ended[shop.node("user_id", "boris")][0] == "finished"


async def test_what_fails_outside_its_rule_is_put_aside_and_the_others_go_on(shop: Shop) -> None:
    await shop.rule()
    for user in ("anna", "boris"):
        await shop.post(shop.event("Product Viewed", at(), user))
    async with shop.triggers.database.connection() as connection:
        await connection.execute(
            "UPDATE triggers.item SET payload = '{\"event\": 5}' WHERE node = $1", shop.node("user_id", "anna")
        )
    await shop.watermark(at(minutes=1))
    assert [intent.origin for intent in shop.intents] == [shop.node("user_id", "boris")]
    (item,) = await shop.items()
    assert item["held"] and "ValidationError" in item["payload"]["put_aside"]


async def test_ghosts_go_the_whole_way(shop: Shop) -> None:
    await shop.rule(holdout="100%", goal={"event": "Order Completed", "within": "1d"})
    await shop.post(shop.event("Product Viewed", at()))
    await shop.buys(at(hours=1))
    await shop.watermark(at(days=2))
    assert [intent.ghost for intent in shop.intents] == [True]
    assert [(outcome.ghost, outcome.goal_at, outcome.revenue) for outcome in shop.outcomes] == [
        (True, at(hours=1), 1500)
    ]


async def test_an_emitted_event_starts_other_rules_and_a_ring_of_rules_ends_after_five_hops(shop: Shop) -> None:
    steps = [{"emit": {"event": "Ping"}}]
    await shop.rule(name="start", steps=steps)
    await shop.rule(name="ring", enter={"on": "Ping"}, again="always", steps=steps)
    await shop.post(shop.event("Product Viewed", at()))
    for minute in range(1, 10):
        await shop.watermark(at(minutes=minute))
    assert [event.hops for event in shop.emitted] == [1, 2, 3, 4, 5]


async def test_a_ring_through_an_idle_timer_ends_after_five_hops_and_is_derived_alike(shop: Shop) -> None:
    steps = [{"emit": {"event": "Ping"}}]
    await shop.rule(name="start", steps=steps)
    ring = await shop.rule(name="ring", enter={"on": "Ping", "idle": "1m"}, again="always", steps=steps)
    pings: list[Event] = []
    shop.on_emit = pings.append
    await shop.post(shop.event("Product Viewed", at()))
    for minute in range(1, 10):
        await shop.watermark(at(minutes=minute))
        while pings:  # learned after what it came of, as the marks between them make sure
            ping = pings.pop()
            await shop.post(msgspec.structs.replace(ping, received_at=ping.received_at + MICROSECOND))
    assert [event.hops for event in shop.emitted] == [1, 2, 3, 4, 5]
    derived = await derive(shop.triggers.database, shop.world, at(), at(days=1))
    assert (derived.count, derived.differences) == (5, [])
    async with shop.triggers.database.connection() as tx:
        rules = await shop.book.read(tx)
        question = Question(rule=ring.id, node=shop.node("user_id", "anna"), at=at(minutes=9))
        answer = await why_not(tx, question, rules, shop.world)
    assert answer.code == "hops"


# ── erasure ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def erasure(shop: Shop, user: str, moment: datetime) -> Outgoing:
    """The journal is written and the person's rows are gone; what is left is to tell the others."""
    node = shop.node("user_id", user)
    async with shop.profile.database.transaction() as tx:
        profile = await tx.fetchval("SELECT profile FROM profile.node WHERE id = $1", node)
        await erase(tx, shop.profile.secret, [node], moment)
        await erase_nodes(tx, [node], [profile], moment)
    return erased_record(profile, [node], moment)


async def two_rules(shop: Shop) -> None:
    await shop.rule(name="later", enter={"on": "Product Viewed"}, again="always")
    await shop.rule(name="at-once", kind="transactional", enter={"on": "Product Viewed"})


async def test_what_was_published_before_an_erasure_and_comes_after_it_is_dropped_as_erased(shop: Shop) -> None:
    await two_rules(shop)
    late = await shop.apply_one(shop.event("Product Viewed", at(), "anna"))
    late += await shop.apply_one(shop.event("Product Viewed", at(), "boris"))
    gone = await erasure(shop, "anna", at(minutes=1))
    await shop.read([gone])
    assert (await shop.read(late)).erased == 1
    assert {item["node"] for item in await shop.items()} == {shop.node("user_id", "boris")}
    assert {run["node"] for run in await shop.runs()} == {shop.node("user_id", "boris")}


async def test_what_comes_in_one_batch_with_the_erasure_behind_it_is_dropped_too(shop: Shop) -> None:
    await two_rules(shop)
    late = await shop.apply_one(shop.event("Product Viewed", at(), "anna"))
    gone = await erasure(shop, "anna", at(minutes=1))
    assert (await shop.read([gone, *late])).erased == 1
    assert (await shop.items(), await shop.runs(), shop.intents) == ([], [], [])


async def test_who_comes_back_after_an_erasure_enters_anew(shop: Shop) -> None:
    await two_rules(shop)
    await shop.post(shop.event("Product Viewed", at(), "anna"))
    await shop.read([await erasure(shop, "anna", at(minutes=1))])
    shop.clock.set(at(minutes=2))
    back = await shop.apply_one(shop.event("Product Viewed", at(minutes=2), "anna"))
    assert (await shop.read(back)).erased == 0
    await shop.watermark(at(minutes=3))
    assert [run["ended_as"] for run in await shop.runs() if run["entered_at"] >= at(minutes=2)] == ["finished"] * 2


async def overtaken(shop: Shop) -> None:
    """Somebody is erased and comes back, and triggers hear of the return first."""
    await shop.rule(name="later", enter={"on": "Product Viewed"}, again="always", steps=[{"wait": "1h"}, {"send": "x"}])
    two_letters = [{"send": "receipt"}, {"wait": "1h"}, {"send": "shipped"}]
    await shop.rule(name="at-once", kind="transactional", enter={"on": "Product Viewed"}, steps=two_letters)
    await shop.rule(name="quiet", enter={"on": "Product Viewed", "idle": "1h"})
    await shop.post(shop.event("Product Viewed", at(), "anna"))
    await shop.watermark(at(seconds=30))
    gone = await erasure(shop, "anna", at(minutes=1))
    await shop.post(shop.event("Product Viewed", at(minutes=2), "anna"))
    await shop.read([gone])


async def test_who_comes_back_before_the_erasure_is_heard_of_enters_anew_too(shop: Shop) -> None:
    await overtaken(shop)
    await shop.watermark(at(hours=2))
    runs = {(run["entered_at"], run["ended_as"]) for run in await shop.runs()}
    back, quiet = at(minutes=2), at(hours=1, minutes=2)
    assert runs == {(at(), "erased"), (back, "finished"), (quiet, "finished")}
    assert sorted((intent.decided_at, intent.template) for intent in shop.intents) == [
        (at(), "receipt"),
        (back, "receipt"),
        (quiet, "letter"),
        (quiet, "shipped"),
        (quiet, "x"),
    ]
    told = await shop.fetch("SELECT DISTINCT at FROM triggers.decision WHERE erased")
    assert {row["at"] for row in told} == {at()}


async def test_what_is_decided_about_who_came_back_can_be_derived_again(shop: Shop) -> None:
    await overtaken(shop)
    await shop.watermark(at(hours=2))
    derived = await derive(shop.triggers.database, shop.world, at(), at(days=1))
    assert (derived.count, derived.erased, derived.differences) == (5, 2, [])


async def test_an_erasure_waits_for_those_who_looked_into_the_journal_before_it(shop: Shop) -> None:
    await shop.rule()
    early = shop._batch("triggers", PROFILE_EVENTS, await shop.apply_one(shop.event("Product Viewed", at(), "anna")))
    async with shop.triggers.database.transaction() as tx:
        await shop._triggers(tx, early)  # it has looked, and has not committed
        gone = asyncio.create_task(shop.read([await erasure(shop, "anna", at(minutes=1))]))
        await until(lambda: waits(shop), what="the erasure waits")
    await gone
    assert await shop.items() == []


async def waits(shop: Shop) -> bool:
    return bool(
        await shop.fetch(
            """
            SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database
            WHERE l.locktype = 'advisory' AND NOT l.granted AND d.datname = current_database()
            """
        )
    )
