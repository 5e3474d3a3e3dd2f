"""From an intent to a choice on real PostgreSQL: what is sent, and why what is not sent is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from services.dispatch.derive import choose_again
from services.dispatch.service import Dispatch
from shared.db import Database, Tx
from shared.events import Erased, Guard
from tests.support.contexts import context_for
from tests.support.dispatch import NOON, Stage, cancelled
from tests.support.dispatch import stage as on_stage


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with on_stage(database_url, tmp_path) as made:
        yield made


@pytest.fixture
async def anna(stage: Stage):
    """Somebody with a cart and consent for e-mail."""
    user = await stage.customer("anna", "email")
    await stage.learn(stage.product(user=user))
    return user


async def reason(stage: Stage, *records: Any) -> str:
    """Why the (last) message was withheld."""
    message = (await stage.deliver(*records))[-1]
    assert message["state"] == "withheld", message["state"]
    return f"{message['reason_code']}: {message['reason']}"


class TestALetterThatIsRight:
    async def test_goes_to_the_inbox_with_its_table_of_alternatives(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        [message] = await stage.deliver(intent)
        assert (message["state"], message["channel"], message["address"]) == ("sent", "email", "anna@example.com")
        assert "Kind of Blue" in message["subject"] and "1,500 RUB" in message["body"]
        assert message["cost"] == Decimal("0.01")
        assert (stage.inbox / "email" / "new" / str(intent.message)).exists()
        rows = {r["channel"]: r for r in await stage.owner.fetch("SELECT * FROM dispatch.alternative")}
        assert set(rows) == {"email", "sms", "push", "messenger", "call"}
        assert rows["sms"]["reason_code"] == "no-address"
        assert round(rows["email"]["net"], 1) == Decimal("4.5")

    async def test_is_told_as_an_event_and_charged_once(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        await stage.deliver(intent)
        [sent] = await stage.events("Email Sent")
        assert sent.origin == anna.node and sent.hops == 1
        assert sent.properties["message_id"] == str(intent.message)
        assert await stage.owner.fetchval("SELECT sum(amount) FROM dispatch.charge") == Decimal("0.01")

    async def test_goes_by_sms_where_that_is_worth_more_and_may_be(self, stage: Stage) -> None:
        ivan = await stage.customer("ivan", "email", "sms")
        await stage.learn(stage.product(user=ivan, price=3000))
        [message] = await stage.deliver(stage.intent(ivan))
        assert message["channel"] == "sms"
        assert message["cost"] == message["units"] * Decimal("1.00")


class TestALetterThatHasBecomeWrong:
    async def test_ordered_meanwhile(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        await stage.handle(intent)
        stage.clock.set(NOON + timedelta(seconds=3))
        order = {"order_id": "1001", "total": 1500, "products": [{"product_id": "p-1", "price": 1500, "quantity": 1}]}
        await stage.learn(stage.event("Order Completed", anna, properties=order))
        assert (await reason(stage, intent)).startswith("guard: Order Completed 1001 at 2026-03-10 09:00:03 UTC")
        rows = {r["channel"]: r for r in await stage.owner.fetch("SELECT * FROM dispatch.alternative")}
        assert set(rows) == {"email", "sms", "push", "messenger", "call"}, "its table says what it would have brought"
        assert rows["email"]["net"] == Decimal("-0.01"), "the cart is empty now, and a letter costs"
        assert rows["email"]["reason_code"] == "guard"
        assert rows["sms"]["reason_code"] == "no-address"
        again = await choose_again(stage.context.database, NOON, NOON + timedelta(days=1))
        assert (again.count, again.alternatives, again.differences) == (1, 5, [])

    async def test_an_order_by_a_public_source_counts_as_well(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        browser = stage.id("anonymous_id", "a-1", strong=False)
        await stage.learn(stage.event("Identify", anna, browser, type="identify"))
        stage.clock.set(NOON + timedelta(seconds=3))
        await stage.learn(stage.event("Order Completed", browser, trust="public", properties={"order_id": "1002"}))
        assert (await reason(stage, intent)).startswith("guard: Order Completed 1002")

    async def test_a_second_report_of_an_order_from_before_stops_nothing(self, stage: Stage, anna) -> None:
        order = stage.event("Order Completed", anna, properties={"order_id": "1000", "total": 5})
        await stage.learn(order)
        stage.clock.set(NOON + timedelta(minutes=1))
        intent = stage.intent(anna)
        stage.clock.set(NOON + timedelta(minutes=2))
        await stage.learn(stage.event("Order Completed", anna, properties={"order_id": "1000", "total": 5}))
        [message] = await stage.deliver(intent)
        assert message["state"] == "sent"

    async def test_the_cart_was_emptied(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        stage.clock.set(NOON + timedelta(seconds=3))
        await stage.learn(stage.product("Product Removed", anna))
        why = await reason(stage, intent)
        assert why.startswith("guard: no longer as it was at the entry") and "not_empty" in why

    async def test_consent_was_withdrawn(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        stage.clock.set(NOON + timedelta(seconds=3))
        said = {"channel": "email", "address": "anna@example.com"}
        await stage.learn(stage.event("Unsubscribed", anna, stage.id("email", "anna@example.com"), properties=said))
        assert await reason(stage, intent) == "opted-out: email: unsubscribed at 2026-03-10 09:00 UTC"

    async def test_items_that_are_gone_are_left_out_of_the_letter(self, stage: Stage, anna) -> None:
        await stage.learn(stage.product(user=anna, product_id="p-2", name="Needle", price=700))
        intent = stage.intent(anna)
        stage.clock.set(NOON + timedelta(seconds=3))
        await stage.learn(stage.product("Product Removed", anna))
        [message] = await stage.deliver(intent)
        assert "Needle" in message["body"] and "Kind of Blue" not in message["body"]

    async def test_it_is_too_late(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna, valid_until=NOON + timedelta(hours=1))
        stage.clock.set(NOON + timedelta(hours=2))
        await stage.watermark()
        assert (await reason(stage, intent)).startswith("late: it was valid until 2026-03-10 10:00 UTC")

    async def test_the_person_is_unknown(self, stage: Stage) -> None:
        assert (await reason(stage, stage.intent(stage.id("user_id", "nobody")))).startswith("gone:")


class TestWhatTriggersSaid:
    async def test_a_cancel_stops_what_waits(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        await stage.handle(intent)
        assert await reason(stage, intent, cancelled(intent)) == "cancelled: stopped: order 1001"

    async def test_a_cancel_that_overtakes_its_intent_stops_it(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        await stage.handle(cancelled(intent))
        await stage.handle(intent)
        await stage.decide()
        message = await stage.message(intent.message)
        assert (message["state"], message["intended"], message["rule_name"]) == ("withheld", True, "abandoned-cart")

    async def test_a_cancel_after_the_call_changes_nothing(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        await stage.deliver(intent)
        await stage.handle(cancelled(intent))
        assert (await stage.message(intent.message))["state"] == "sent"

    async def test_a_cancel_between_claim_and_choice_wins(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        await stage.handle(intent)

        async def cancel() -> None:
            await stage.handle(cancelled(intent))

        stage.context.hooks.arm("dispatch.taken", cancel)
        await stage.decide()
        await stage.send()
        message = await stage.message(intent.message)
        assert (message["state"], message["reason_code"]) == ("withheld", "cancelled")
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.contact") == 0

    async def test_an_intent_told_again_is_sent_once(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        await stage.deliver(intent)
        applied = await stage.handle(intent, intent)
        assert (applied.applied, applied.repeated) == (1, 1)
        assert await stage.decide() == 0

    async def test_the_higher_version_of_an_intent_wins_whatever_the_order(self, stage: Stage, anna) -> None:
        run = uuid4()
        old, new = stage.intent(anna, run=run, run_version=2), stage.intent(anna, run=run, run_version=5, offer="cart5")
        await stage.handle(new)
        await stage.handle(old)
        assert (await stage.message(new.message))["intent"]["offer"] == "cart5"

    async def test_outcomes_are_kept_and_the_later_version_counts(self, stage: Stage, anna) -> None:
        from shared.events import Outcome

        run = uuid4()
        common = {"run": run, "rule": uuid4(), "ghost": False, "entered_at": NOON, "closed_at": NOON}
        await stage.handle(Outcome(run_version=4, revenue=Decimal("9.90"), goal_at=NOON, **common))
        await stage.handle(Outcome(run_version=3, **common))
        row = await stage.owner.fetchrow("SELECT * FROM dispatch.outcome")
        assert (row["run_version"], row["revenue"]) == (4, Decimal("9.90"))

    async def test_an_erasure_reaches_what_was_decided_by_then_and_nothing_that_came_later(self, stage: Stage) -> None:
        ada = await stage.customer("ada", "email")
        before = stage.receipt(ada)
        gone = Erased(id=uuid4(), profile=uuid4(), nodes=[ada.node], at=NOON + timedelta(seconds=1))
        stage.clock.set(NOON + timedelta(seconds=2))
        back = stage.receipt(ada)
        await stage.handle(before, back)
        await stage.handle(gone)
        withheld = await stage.message(before.message)
        assert (withheld["state"], withheld["reason_code"]) == ("withheld", "gone")
        [sent] = await stage.deliver(back)
        assert (sent["state"], sent["address"]) == ("sent", "ada@example.com")


class TestAnOfferThatIsNotMadeToWhoeverBought:
    @pytest.fixture
    async def guarded(self, stage: Stage) -> None:
        await stage.owner.execute(
            """UPDATE dispatch.offer SET unless_bought =
               '{"products": ["p-77"], "categories": [], "within": "P30D"}' WHERE name = 'cart5'"""
        )

    async def test_is_withheld_with_its_code_given_to_nobody(self, stage: Stage, anna, guarded) -> None:
        line = {"product_id": "p-77", "quantity": 1, "price": 10}
        await stage.learn(
            stage.event("Order Completed", anna, properties={"order_id": "900", "total": 10, "products": [line]})
        )
        stage.clock.set(NOON + timedelta(minutes=1))
        await stage.learn(stage.product(user=anna))
        intent = stage.intent(anna, offer="cart5")
        (row,) = await stage.deliver(intent)
        assert row["state"] == "withheld" and row["reason_code"] == "bought-already"
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.allotment") == 0
        until = NOON + timedelta(days=1)
        again = await choose_again(stage.context.database, NOON - timedelta(days=1), until)
        assert (again.count, again.differences) == (1, [])

    async def test_is_made_to_everybody_else(self, stage: Stage, anna, guarded) -> None:
        (row,) = await stage.deliver(stage.intent(anna, offer="cart5"))
        assert row["state"] == "sent"
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.allotment") == 1


class TestPromisesAboutTime:
    async def test_marketing_waits_while_profile_lags_and_transactional_mail_does_not(self, stage: Stage, anna) -> None:
        await stage.watermark(behind=timedelta(seconds=5))
        letter, receipt = stage.intent(anna), stage.receipt(anna)
        await stage.handle(letter, receipt)
        await stage.decide()
        await stage.send()
        assert (await stage.message(letter.message))["state"] == "queued"
        assert (await stage.message(receipt.message))["state"] == "sent"
        await stage.watermark(behind=timedelta(seconds=4.9))
        await stage.decide()
        await stage.send()
        assert (await stage.message(letter.message))["state"] == "sent"

    async def test_at_night_an_sms_waits_and_is_checked_again_in_the_morning(self, stage: Stage) -> None:
        ivan = await stage.customer("ivan", "sms")
        stage.clock.set(NOON.replace(hour=20))  # 23:00 in Moscow
        await stage.learn(stage.product(user=ivan, price=3000))
        stays, orders = stage.intent(ivan), stage.intent(ivan)
        await stage.handle(stays, orders)
        await stage.decide()
        message = await stage.message(stays.message)
        assert (message["state"], message["reason_code"]) == ("queued", "quiet-hours")
        morning = NOON.replace(hour=6) + timedelta(days=1)
        assert await stage.dispatch.next_due() == message["due_at"] == morning
        assert not await stage.dispatch.claimer.claim("marketing")
        stage.clock.set(morning)
        await stage.watermark()
        await stage.decide()
        await stage.send()
        assert (await stage.message(stays.message))["state"] == "sent"

    async def test_what_waits_for_the_window_of_its_rule_is_computed_again_alike(self, stage: Stage) -> None:
        anna = await stage.customer("anna", "email")
        await stage.learn(stage.product(user=anna, price=3000))
        local = NOON.astimezone(ZoneInfo("Europe/Moscow"))
        opens = (local + timedelta(hours=3)).strftime("%H:%M")
        await stage.handle(intent := stage.intent(anna, window={"hours": f"{opens}-24:00"}))
        await stage.decide()
        message = await stage.message(intent.message)
        assert (message["state"], message["reason_code"]) == ("queued", "outside-window")
        assert message["due_at"] == NOON + timedelta(hours=3)
        stage.clock.set(message["due_at"])
        await stage.watermark()
        await stage.decide()
        await stage.send()
        assert (await stage.message(intent.message))["state"] == "sent"
        again = await choose_again(stage.context.database, NOON - timedelta(hours=1), NOON + timedelta(days=1))
        assert (again.count, again.differences) == (2, [])

    async def test_the_zone_of_the_person_counts(self, stage: Stage) -> None:
        far = await stage.customer("far", "sms", traits={"timezone": "Asia/Vladivostok"})
        stage.clock.set(NOON + timedelta(hours=3))  # 22:00 there, 15:00 in Moscow
        await stage.learn(stage.product(user=far, price=3000))
        await stage.handle(intent := stage.intent(far))
        await stage.decide()
        assert (await stage.message(intent.message))["state"] == "queued"

    async def test_collecting_delays_the_decision(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna, collect=300.0)
        await stage.handle(intent)
        assert await stage.decide() == 0
        stage.clock.set(NOON + timedelta(minutes=5))
        await stage.watermark()
        assert await stage.decide() == 1


class TestCaps:
    async def test_the_third_letter_of_a_day_is_withheld(self, stage: Stage, anna) -> None:
        for _ in range(2):
            [message] = await stage.deliver(stage.intent(anna))
            assert message["state"] == "sent"
        assert (await reason(stage, stage.intent(anna))).startswith("cap: email: this person has had 2 of at most 2")

    async def test_within_one_batch_the_second_counts_the_first(self, stage: Stage, anna) -> None:
        messages = await stage.deliver(*(stage.intent(anna) for _ in range(5)))
        assert sorted(m["state"] for m in messages) == ["sent", "sent", "withheld", "withheld", "withheld"]

    async def test_hold_against_many_workers_at_once(
        self, stage: Stage, anna, database_url: str, tmp_path: Path
    ) -> None:
        intents = [stage.intent(anna) for _ in range(24)]
        await stage.handle(*intents)
        async with _workers(stage, database_url, tmp_path, 6) as workers:
            for worker in workers:
                worker.claimer._batch = 3  # many small claims, so that they meet
            await asyncio.gather(*(_work(worker) for worker in workers))
        chosen = await stage.owner.fetchval("SELECT count(*) FROM dispatch.message WHERE state = 'claimed'")
        assert chosen == 2
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.message WHERE reason_code = 'cap'") == 22

    async def test_count_over_all_nodes_of_a_person_who_was_two(self, stage: Stage) -> None:
        one = await stage.customer("one", "email")
        await stage.learn(stage.product(user=one))
        browser = stage.id("anonymous_id", "a-2")
        await stage.learn(stage.event("Identify", browser, type="identify"))
        for _ in range(2):
            await stage.deliver(stage.intent(one))
        await stage.learn(stage.event("Identify", one, browser, type="identify"))
        assert (await reason(stage, stage.intent(browser))).startswith("cap:")


async def _work(worker: Dispatch) -> None:
    while await worker.claimer.claim("marketing"):
        pass


@asynccontextmanager
async def _workers(stage: Stage, url: str, folder: Path, count: int) -> AsyncIterator[list[Dispatch]]:
    """More processes' worth of dispatch on the same database and clock."""
    made: list[Dispatch] = []
    contexts = [
        context_for(url, role="dripline_dispatch", clock=stage.clock, leases=False, data_dir=folder)
        for _ in range(count)
    ]
    try:
        for context in contexts:
            made.append(Dispatch(await context.__aenter__()))
        yield made
    finally:
        for context in contexts[: len(made)]:
            await context.__aexit__(None, None, None)


class TestSwitchesAndHolds:
    @pytest.mark.parametrize(("scope", "name"), [("all", ""), ("channel", "email"), ("rule", "abandoned-cart")])
    async def test_a_kill_switch_withholds(self, stage: Stage, anna, scope: str, name: str) -> None:
        await stage.owner.execute(
            'INSERT INTO dispatch.switch (scope, name, "by", at) VALUES ($1, $2, $3, $4)', scope, name, "test", NOON
        )
        assert (await reason(stage, stage.intent(anna))).startswith("switched-off:")

    async def test_a_switch_between_choice_and_call_still_counts(self, stage: Stage, anna) -> None:
        await stage.handle(intent := stage.intent(anna))
        await stage.decide()
        await stage.owner.execute(
            "INSERT INTO dispatch.switch (scope, name, \"by\", at) VALUES ('all', '', 't', $1)", NOON
        )
        await stage.send()
        message = await stage.message(intent.message)
        assert (message["state"], message["reason_code"]) == ("withheld", "switched-off")
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.attempt") == 0

    async def test_while_held_after_a_restore_nothing_moves(self, stage: Stage, anna) -> None:
        await stage.handle(intent := stage.intent(anna), stage.receipt(anna))
        await stage.owner.execute("UPDATE platform.deployment SET state = 'held'")
        assert await stage.decide() == 0
        with pytest.raises(RuntimeError, match="held"):
            await stage.dispatch.check_open()
        await stage.owner.execute("UPDATE platform.deployment SET state = 'open'")
        await stage.decide()
        await stage.send()
        assert (await stage.message(intent.message))["state"] == "sent"


class TestGhosts:
    async def test_the_whole_choice_is_made_and_nothing_used(self, stage: Stage, anna) -> None:
        ghost = stage.intent(anna, ghost=True, template="cart-last-call", offer="cart5")
        assert await reason(stage, ghost) == "ghost: control group: would have gone by email"
        message = await stage.message(ghost.message)
        assert message["channel"] == "email" and "CART5" in message["body"]
        for table in ("contact", "allotment", "charge", "attempt"):
            assert await stage.owner.fetchval(f"SELECT count(*) FROM dispatch.{table}") == 0, table


class TestTemplatesAndOffers:
    async def test_a_missing_variable_withholds_with_its_name(self, stage: Stage) -> None:
        nameless = await stage.customer("x", "email", traits={"city": "Kazan"})
        await stage.owner.execute(
            "UPDATE dispatch.template_version SET parts = parts || '{\"text\": \"{{ person.nick }}\"}' WHERE name = 'receipt'"
        )
        why = await reason(stage, stage.receipt(nameless, channels=["email"]))
        assert why == "missing-variable: email: receipt, text: person.nick is undefined"

    async def test_an_unknown_template_or_offer(self, stage: Stage, anna) -> None:
        assert await reason(stage, stage.intent(anna, template="nope")) == "no-template: there is no template nope"
        assert await reason(stage, stage.intent(anna, offer="nope")) == "no-offer: there is no offer nope"

    async def test_a_marketing_rule_needs_a_template_with_a_way_out(self, stage: Stage, anna) -> None:
        why = await reason(stage, stage.intent(anna, template="receipt"))
        assert why.startswith("no-template: the rule is marketing and the template receipt is not")

    async def test_a_transactional_rule_sends_no_marketing(self, stage: Stage, anna) -> None:
        why = await reason(stage, stage.receipt(anna, template="cart-reminder"))
        assert why == "no-template: the rule is transactional and the template cart-reminder is marketing"

    async def test_the_code_of_an_offer_stays_the_same_for_a_person(self, stage: Stage, anna) -> None:
        first = stage.intent(anna, template="cart-last-call", offer="cart5")
        [message] = await stage.deliver(first)
        assert "CART5" in message["body"]
        await stage.owner.execute("UPDATE dispatch.offer SET code = 'OTHER' WHERE name = 'cart5'")
        [message] = await stage.deliver(stage.intent(anna, template="cart-last-call", offer="cart5"))
        assert "CART5" in message["body"]
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.allotment") == 1

    async def test_the_template_in_use_is_the_newest_version(self, stage: Stage, anna) -> None:
        await stage.deliver(stage.receipt(anna))
        assert await stage.owner.fetchval("SELECT template_version FROM dispatch.message") == 1


class TestSubscriptions:
    async def asked(self, stage: Stage, address: str = "new@example.com", network: str = "203.0.113.7"):
        browser, mail = stage.id("anonymous_id", f"a-{uuid4()}"), stage.id("email", address, strong=False)
        said = {"channel": "email", "address": address, "topics": ["news"], "form": "popup"}
        request = stage.event(
            "Subscription Requested", browser, mail, trust="public", properties=said, context={"ip": network}
        )
        await stage.learn(request)
        return browser, mail, request

    def confirmation(self, stage: Stage, browser, mail, request, **changes: Any):
        return stage.intent(
            browser,
            **{
                "kind": "transactional",
                "rule_name": "double-opt-in",
                "template": "confirm-subscription",
                "guard": Guard(since=stage.clock.now(), until=[{"event": "Subscription Confirmed"}]),
                "addressed": stage.addressed(mail, request, ["news"], "popup"),
                "event": {"id": str(request.id), "name": request.name, "properties": request.properties},
                **changes,
            },
        )

    async def test_a_claimed_address_gets_the_fixed_confirmation_mail(self, stage: Stage) -> None:
        [message] = await stage.deliver(self.confirmation(stage, *await self.asked(stage)))
        assert (message["state"], message["address"], message["purpose"]) == ("sent", "new@example.com", "confirmation")
        assert "/confirm/" in message["body"] and "/u/" not in message["body"]

    async def test_and_nothing_else(self, stage: Stage) -> None:
        other = self.confirmation(stage, *await self.asked(stage), template="receipt")
        assert (await reason(stage, other)).startswith("claimed:")

    async def test_at_most_two_a_day_however_often_it_is_typed(self, stage: Stage) -> None:
        intents = [self.confirmation(stage, *await self.asked(stage)) for _ in range(4)]
        messages = await stage.deliver(*intents)
        assert sorted(m["state"] for m in messages) == ["sent", "sent", "withheld", "withheld"]
        assert {m["reason_code"] for m in messages} == {None, "limit"}

    async def test_a_network_that_types_many_addresses_is_stopped(self, stage: Stage) -> None:
        await stage.owner.execute(
            """UPDATE dispatch.policy SET caps = '[{"scope": "network", "limit": 3, "per": "1h", "purpose": "confirmation"}]'"""
        )
        asked = [await self.asked(stage, f"p{n}@example.com", f"203.0.113.{n}") for n in range(5)]
        other = await self.asked(stage, "far@example.com", "198.51.100.1")
        messages = await stage.deliver(*(self.confirmation(stage, *one) for one in [*asked, other]))
        assert sorted(m["state"] for m in messages) == ["sent"] * 4 + ["withheld"] * 2
        assert messages[-1]["state"] == "sent"

    async def test_the_welcome_letter_has_the_code_of_the_form(self, stage: Stage) -> None:
        anna = await stage.customer("anna", "email")
        mail = stage.id("email", "anna@example.com")
        request = stage.event("Subscription Requested", anna, mail)
        letter = stage.intent(
            anna,
            rule_name="welcome",
            template="welcome",
            offer="welcome",
            guard=Guard(since=NOON),
            value={"money": "900"},
            addressed=stage.addressed(mail, request, ["marketing"], "popup"),
        )
        [message] = await stage.deliver(letter)
        assert "POPUP10" in message["body"] and "10 % off" in message["subject"]


class TestDerivedAgain:
    async def test_every_choice_comes_out_the_same_and_a_changed_row_is_named(self, stage: Stage, anna) -> None:
        ivan = await stage.customer("ivan", "email", "sms")
        await stage.learn(stage.product(user=ivan, price=3000))
        unknown = stage.intent(stage.id("user_id", "nobody"))
        await stage.deliver(
            stage.intent(anna), stage.intent(anna, ghost=True), stage.intent(ivan), stage.receipt(ivan), unknown,
            stage.intent(ivan, channels=["push"]), *(stage.intent(anna) for _ in range(3)),
        )  # fmt: skip
        database: Database = stage.context.database
        until = NOON + timedelta(days=1)
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.decision") == 9
        again = await choose_again(database, NOON, until)
        assert (again.count, again.differences) == (9, [])
        await stage.owner.execute(
            "UPDATE dispatch.alternative SET net = net + 1 WHERE channel = 'sms' AND net IS NOT NULL"
        )
        found = (await choose_again(database, NOON, until)).differences
        assert found and {d.field for d in found} == {"alternatives/sms/net"}


class TestBatches:
    async def test_the_number_of_statements_does_not_depend_on_the_number_of_messages(
        self, stage: Stage, monkeypatch
    ) -> None:
        people = [await stage.customer(f"p{n}", "email") for n in range(20)]
        await stage.learn(*(stage.product(user=person) for person in people))
        one, many = [], []
        with _statements(stage, monkeypatch, one):
            await stage.handle(stage.intent(people[0]))
            await stage.decide()
            await stage.send()
        with _statements(stage, monkeypatch, many):
            await stage.handle(*(stage.intent(person) for person in people[1:]))
            await stage.decide()
        assert (
            await stage.owner.fetchval("SELECT count(*) FROM dispatch.message WHERE state IN ('claimed', 'sent')") == 20
        )
        claims = [statement for statement in many if "WATERMARK" not in statement]
        assert 20 < len(claims) <= len(one)

    async def test_an_abandoned_claim_is_taken_again(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        await stage.handle(intent)

        async def die() -> None:
            raise ConnectionError("the process dies here")

        stage.context.hooks.arm("dispatch.taken", die)
        with pytest.raises(ConnectionError):
            await stage.decide()
        assert (await stage.message(intent.message))["state"] == "claimed"
        assert await stage.decide() == 0
        await stage.owner.execute("UPDATE dispatch.message SET lease_until = clock_timestamp() - interval '1 s'")
        await stage.decide()
        await stage.send()
        assert (await stage.message(intent.message))["state"] == "sent"

    async def test_an_abandoned_choice_counts_against_no_cap(self, stage: Stage, anna) -> None:
        await stage.handle(stage.intent(anna), stage.intent(anna))
        await stage.decide()
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.contact") == 2
        await stage.owner.execute("UPDATE dispatch.message SET lease_until = clock_timestamp() - interval '1 s'")
        await stage.decide()
        await stage.send()
        states = await stage.owner.fetch("SELECT state FROM dispatch.message")
        assert [row["state"] for row in states] == ["sent", "sent"]

    async def test_whose_person_grew_between_claim_and_choice_is_decided_anew(self, stage: Stage, anna) -> None:
        intent = stage.intent(anna)
        await stage.handle(intent)

        async def merge() -> None:
            await stage.learn(stage.event("Identify", anna, stage.id("anonymous_id", "a-9"), type="identify"))

        stage.context.hooks.arm("dispatch.taken", merge)
        await stage.dispatch.claimer.claim("marketing")
        assert (await stage.message(intent.message))["state"] == "queued"
        await stage.decide()
        await stage.send()
        message = await stage.message(intent.message)
        assert (message["state"], message["decisions"]) == ("sent", 1)

    async def test_claims_use_the_index_of_what_is_due(self, stage: Stage) -> None:
        await stage.owner.execute(
            """
            INSERT INTO dispatch.message
                (id, run, run_version, intended, rule, kind, decided_at, state, due_at, created_at, updated_at)
            SELECT gen_random_uuid(), gen_random_uuid(), 1, true, gen_random_uuid(), 'marketing', now(), 'sent',
                   now() - i * interval '1 s', now(), now()
            FROM generate_series(1, 20000) i
            """
        )
        await stage.owner.execute("ANALYZE dispatch.message")
        plan = await stage.owner.fetch(
            "EXPLAIN SELECT id FROM dispatch.message WHERE state = 'queued' AND kind = 'marketing' AND due_at <= now() "
            "ORDER BY due_at LIMIT 50 FOR UPDATE SKIP LOCKED"
        )
        assert any("message_due" in row[0] for row in plan)


class _statements:  # noqa: N801 - used as a context manager
    """Writes down every statement that dispatch sends."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch, seen: list[str]) -> None:
        self._stage, self._patch, self._seen = stage, monkeypatch, seen

    def __enter__(self) -> None:
        transaction, seen = self._stage.context.database.transaction, self._seen

        @asynccontextmanager
        async def watched(isolation: str | None = None) -> AsyncIterator[Tx]:
            async with transaction(isolation) as tx:
                with tx.query_logger(lambda record: seen.append(record.query)):
                    yield tx

        self._patch.setattr(self._stage.context.database, "transaction", watched)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
