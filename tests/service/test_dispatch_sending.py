"""From a choice to the person: outcomes, crashes, opt-outs against sends in flight. The SMTP server's own ledger is the
judge of what was sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from services.dispatch.service import Dispatch
from tests.support.contexts import running
from tests.support.dispatch import NOON, Stage
from tests.support.dispatch import stage as on_stage
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

PLUGINS = Path(__file__).parent.parent / "support" / "channels"


@pytest.fixture
async def stage(database_url: str, tmp_path: Path, smtp_peer: SmtpPeer) -> AsyncIterator[Stage]:
    """E-mail goes by SMTP to the peer, everything else to the inbox."""
    async with on_stage(database_url, tmp_path, smtp_url=smtp_peer.url, smtp_from="shop@shop.example") as made:
        yield made


async def buyer(stage: Stage, name: str = "anna", *channels: str):
    user = await stage.customer(name, *(channels or ("email",)))
    await stage.learn(stage.product(user=user))
    return user


async def later(stage: Stage, **duration: float) -> None:
    stage.clock.set(stage.clock.now() + timedelta(**duration))
    await stage.watermark()


async def state_of(stage: Stage, intent) -> tuple[str, str | None]:
    message = await stage.message(intent.message)
    return message["state"], message["reason_code"]


class TestOutcomes:
    async def test_a_250_is_sent_and_the_letter_is_the_one_that_was_chosen(
        self, stage: Stage, smtp_peer: SmtpPeer
    ) -> None:
        anna = await buyer(stage)
        [message] = await stage.deliver(stage.intent(anna))
        [letter] = smtp_peer.letters("anna@example.com")
        assert message["state"] == "sent" and letter.sender == "shop@shop.example"
        text, page = (part.get_content() for part in letter.message.iter_parts())
        assert text.replace("\r\n", "\n") == message["body"]
        assert "Kind of Blue" in page
        assert letter.message["List-Unsubscribe"].strip(" <>") in message["body"]

    async def test_try_later_is_tried_later_and_sent_once(self, stage: Stage, smtp_peer: SmtpPeer) -> None:
        anna = await buyer(stage)
        smtp_peer.reply("anna@example.com", "451 4.3.0 try later")
        intent = stage.intent(anna)
        await stage.deliver(intent)
        message = await stage.message(intent.message)
        assert (message["state"], message["due_at"]) == ("queued", NOON + timedelta(seconds=10))
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.contact") == 0
        smtp_peer.reply("anna@example.com", "250 OK")
        await later(stage, minutes=1)
        await stage.decide()
        await stage.send()
        assert await state_of(stage, intent) == ("sent", None)
        assert len(smtp_peer.letters()) == 1
        assert await stage.owner.fetchval("SELECT sum(amount) FROM dispatch.charge") == Decimal("0.01")

    async def test_what_never_gets_through_fails_with_its_reason(self, stage: Stage, smtp_peer: SmtpPeer) -> None:
        anna = await buyer(stage)
        smtp_peer.reply("anna@example.com", "451 4.3.0 try later")
        intent = stage.receipt(anna, channels=["email"], valid_until=NOON + timedelta(seconds=90))
        await stage.deliver(intent)
        await later(stage, minutes=1)
        await stage.decide()
        await stage.send()
        assert await state_of(stage, intent) == ("failed", "exhausted")

    async def test_an_address_that_does_not_exist_is_suppressed_and_told(
        self, stage: Stage, smtp_peer: SmtpPeer
    ) -> None:
        anna = await buyer(stage)
        smtp_peer.reply("anna@example.com", "550 5.1.1 no such person")
        intent, second = stage.intent(anna), stage.receipt(anna, channels=["email"])
        await stage.deliver(intent)
        assert await state_of(stage, intent) == ("failed", "bounced")
        [bounced] = await stage.events("Email Bounced")
        assert bounced.properties["detail"] == "550 5.1.1"
        await stage.deliver(second)
        assert await state_of(stage, second) == ("withheld", "suppressed")

    async def test_one_permanent_failure_among_many_concerns_itself_alone(
        self, stage: Stage, smtp_peer: SmtpPeer
    ) -> None:
        people = [await buyer(stage, f"p{n}") for n in range(6)]
        smtp_peer.reply("p3@example.com", "554 5.7.1 refused")
        intents = [stage.intent(person) for person in people]
        await stage.deliver(*intents)
        states = [(await stage.message(i.message))["state"] for i in intents]
        assert states == ["sent"] * 3 + ["failed"] + ["sent"] * 2
        assert len(smtp_peer.letters()) == 5
        assert len(await stage.events("Email Failed")) == 1
        assert await stage.decide() == 0

    async def test_one_dead_provider_does_not_hold_the_others(self, stage: Stage, smtp_peer: SmtpPeer) -> None:
        ivan = await buyer(stage, "ivan", "email", "sms")
        smtp_peer.kill()
        mail, text = stage.receipt(ivan, channels=["email"]), stage.receipt(ivan, channels=["sms"])
        await stage.deliver(mail, text)
        assert await state_of(stage, text) == ("sent", None)
        assert (await state_of(stage, mail))[0] == "queued"


class TestUnknown:
    async def test_marketing_is_never_tried_again(self, stage: Stage, smtp_peer: SmtpPeer) -> None:
        anna = await buyer(stage)
        smtp_peer.behave(hang_up_after_data=True)
        intent = stage.intent(anna)
        await stage.deliver(intent)
        assert await state_of(stage, intent) == ("unknown", "unknown")
        smtp_peer.behave(hang_up_after_data=False)
        await later(stage, hours=2)
        assert await stage.decide() == 0
        assert len(smtp_peer.letters()) == 1

    async def test_transactional_mail_is_and_it_is_counted(self, stage: Stage, smtp_peer: SmtpPeer) -> None:
        anna = await buyer(stage)
        smtp_peer.behave(hang_up_after_data=True)
        intent = stage.receipt(anna, channels=["email"])
        await stage.deliver(intent)
        message = await stage.message(intent.message)
        assert (message["state"], message["repeats"], message["pinned"]) == ("queued", 1, "email")
        smtp_peer.behave(hang_up_after_data=False)
        await stage.decide()
        await stage.send()
        message = await stage.message(intent.message)
        assert (message["state"], message["repeats"]) == ("sent", 1)
        assert len({letter.message["Message-ID"] for letter in smtp_peer.letters()}) == 1

    async def test_but_not_for_ever(self, stage: Stage, smtp_peer: SmtpPeer) -> None:
        anna = await buyer(stage)
        smtp_peer.behave(hang_up_after_data=True)
        intent = stage.receipt(anna, channels=["email"])
        await stage.deliver(intent)
        while await stage.decide():
            await stage.send()
        assert await state_of(stage, intent) == ("unknown", "unknown")
        assert len(smtp_peer.letters()) == 4

    async def test_a_process_that_died_in_the_call_leaves_an_unknown(self, stage: Stage, smtp_peer: SmtpPeer) -> None:
        anna = await buyer(stage)
        intent = stage.intent(anna)
        await stage.die_in_the_call(intent)
        assert (await state_of(stage, intent))[0] == "calling"
        assert await stage.dispatch.sender.reap() == 0  # it may still be on its way
        await stage.call_ends_in(-1)
        assert await stage.dispatch.sender.reap() == 1
        assert await state_of(stage, intent) == ("unknown", "unknown")
        assert smtp_peer.letters() == []

    async def test_an_inbox_that_tells_repeats_is_told_again(self, stage: Stage) -> None:
        ivan = await buyer(stage, "ivan", "sms")
        intent = stage.intent(ivan, value={"money": "900"})
        await stage.die_in_the_call(intent)
        await stage.call_ends_in(-1)
        await stage.dispatch.sender.reap()
        await stage.decide()
        await stage.send()
        assert await state_of(stage, intent) == ("sent", None)
        assert len(list((stage.inbox / "sms").glob("*.json"))) == 1

    async def test_an_answer_that_comes_after_it_was_given_up_still_counts(
        self, stage: Stage, smtp_peer: SmtpPeer
    ) -> None:
        anna = await buyer(stage)
        smtp_peer.behave(delay_seconds=1.0)
        intent = stage.intent(anna)
        await stage.handle(intent)
        await stage.decide()
        async with running({"sender": stage.dispatch.sender.loop}):
            await until(smtp_peer.letters, what="the letter was taken")
            await stage.call_ends_in(-1)
            await stage.dispatch.sender.reap()
            assert await state_of(stage, intent) == ("unknown", "unknown")
            await until(lambda: _is(stage, intent, "sent"), what="the answer is written")

    async def test_stopping_lets_calls_in_progress_end(self, stage: Stage, smtp_peer: SmtpPeer) -> None:
        anna = await buyer(stage)
        smtp_peer.behave(delay_seconds=0.5)
        intent = stage.intent(anna)
        await stage.handle(intent)
        await stage.decide()
        async with running({"sender": stage.dispatch.sender.loop}):
            await until(smtp_peer.letters, what="the letter was taken")
        assert await state_of(stage, intent) == ("sent", None)

    async def test_what_is_stopped_before_its_exchange_opens_is_sent_all_the_same(
        self, stage: Stage, smtp_peer: SmtpPeer
    ) -> None:
        intent = stage.intent(await buyer(stage))
        await stage.handle(intent)
        await stage.decide()
        loop = asyncio.create_task(stage.dispatch.sender.loop())

        async def stop() -> None:
            loop.cancel()
            await asyncio.sleep(0)  # where the loop would hear of it

        stage.context.hooks.arm("dispatch.calling", stop)
        await asyncio.wait([loop], timeout=20)
        assert await state_of(stage, intent) == ("sent", None)
        assert len(smtp_peer.letters()) == 1


async def _is(stage: Stage, intent, state: str) -> bool:
    return (await state_of(stage, intent))[0] == state


class TestTheMomentToStart:
    async def test_a_call_that_is_late_goes_back_to_the_queue_and_is_sent_once(
        self, stage: Stage, smtp_peer: SmtpPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        anna = await buyer(stage)
        intent = stage.intent(anna)
        await stage.handle(intent)
        await stage.decide()
        monkeypatch.setattr("services.dispatch.sending.START_SECONDS", -1.0)
        await stage.dispatch.sender.start_calls()
        sender = stage.dispatch.sender
        await until(lambda: sender._answers, what="the call was given up")
        answers, sender._answers = sender._answers, []
        await stage.dispatch.answers.write(answers)
        monkeypatch.undo()
        assert (await state_of(stage, intent))[0] == "queued"
        assert smtp_peer.entries() == []
        await stage.decide()
        await stage.send()
        assert await state_of(stage, intent) == ("sent", None)
        assert len(smtp_peer.letters()) == 1


class TestOptOuts:
    async def test_after_an_opt_out_was_answered_no_call_for_the_address_starts(
        self, stage: Stage, smtp_peer: SmtpPeer
    ) -> None:
        """Ten people opt out while their letters are under way. What the server took after the answer is counted."""
        people = [await buyer(stage, f"p{n}") for n in range(10)]
        first = [stage.intent(person) for person in people]
        await stage.deliver(*first)
        smtp_peer.behave(delay_seconds=0.05)
        second = [stage.intent(person) for person in people]
        await stage.handle(*second)
        answered: dict[str, float] = {}

        async def opt_out(n: int) -> None:
            await asyncio.sleep(0.01 * n)
            await stage.dispatch.subscriptions.withdraw(first[n].message, None, "one-click", {})
            answered[f"p{n}@example.com"] = time.time()

        loops = {"claims": lambda: stage.dispatch.claim_loop("marketing"), "sender": stage.dispatch.sender.loop}
        async with running(loops):
            await asyncio.gather(*(opt_out(n) for n in range(10)))
            await until(lambda: _settled(stage, second), what="every letter is settled", limit=20)
        late = [
            entry
            for entry in smtp_peer.entries()
            if entry["kind"] == "taken" and entry["at"] > answered[entry["recipients"][0]] + 0.001
        ]
        assert late == []
        states = {(await state_of(stage, intent)) for intent in second}
        assert states <= {("sent", None), ("withheld", "opted-out")}

    async def test_an_opt_out_waits_for_the_call_that_is_open(self, stage: Stage, smtp_peer: SmtpPeer) -> None:
        anna = await buyer(stage)
        [first] = await stage.deliver(stage.intent(anna))
        smtp_peer.behave(delay_seconds=0.7)
        second = stage.intent(anna)
        await stage.handle(second)
        await stage.decide()
        async with running({"sender": stage.dispatch.sender.loop}):
            await until(lambda: len(smtp_peer.letters()) == 2, what="the second letter was taken, and not answered")
            begun = time.monotonic()
            await stage.dispatch.subscriptions.withdraw(first["id"], None, "page", {})
            assert time.monotonic() - begun > 0.3
            assert await state_of(stage, second) == ("sent", None)

    async def test_it_does_not_wait_for_ever(self, stage: Stage) -> None:
        anna = await buyer(stage)
        [first] = await stage.deliver(stage.intent(anna))
        second = stage.intent(anna)
        await stage.die_in_the_call(second)
        await stage.call_ends_in(300)
        begun = time.monotonic()
        await stage.dispatch.subscriptions.withdraw(first["id"], None, "page", {})
        assert 0.1 < time.monotonic() - begun < 5

    async def test_the_row_stands_in_our_ledger_and_goes_out_under_the_same_id(self, stage: Stage) -> None:
        anna = await buyer(stage)
        [first] = await stage.deliver(stage.intent(anna))
        await stage.dispatch.subscriptions.withdraw(first["id"], None, "page", {"ip": "192.0.2.9"})
        row = await stage.owner.fetchrow("SELECT * FROM dispatch.consent")
        [event] = await stage.events("Unsubscribed")
        assert (row["id"], row["state"], row["topic"]) == (event.id, "withdrawn", "*")
        await stage.learn(event)
        copied = await stage.owner.fetchrow("SELECT * FROM cdp.consent WHERE state = 'withdrawn'")
        assert (copied["id"], copied["node"], copied["topic"]) == (row["id"], row["node"], "*")

    async def test_an_opt_out_counts_before_profile_knows_of_it(self, stage: Stage) -> None:
        anna = await buyer(stage)
        [first] = await stage.deliver(stage.intent(anna))
        await stage.dispatch.subscriptions.withdraw(first["id"], None, "page", {})
        second = stage.intent(anna)
        await stage.deliver(second)
        assert await state_of(stage, second) == ("withheld", "opted-out")


async def _settled(stage: Stage, intents) -> bool:
    states = [(await stage.message(intent.message))["state"] for intent in intents]
    return not {"queued", "claimed", "calling"} & set(states)


class TestLoops:
    async def test_an_intent_is_sent_without_anybody_asking(self, stage: Stage, smtp_peer: SmtpPeer) -> None:
        """The whole service: woken by the consumer, not by polling."""
        anna = await buyer(stage)
        loops = stage.dispatch.loops()
        own = {name: loop for name, loop in loops.items() if name.startswith(("claims", "sender", "reaper", "figures"))}
        assert {"claims-marketing", "claims-transactional", "sender", "reaper", "figures"} == set(own)
        async with running(own):
            await stage.handle(stage.receipt(anna, channels=["email"]))
            begun = time.monotonic()
            stage.context.wake.signal("dispatch:due")
            await until(smtp_peer.letters, what="the receipt arrived")
            assert time.monotonic() - begun < 1.5  # well under the two seconds of the fallback
            await until(stage._all_sent, what="the answer is written")

    async def test_the_mean_order_of_the_shop_is_made_once_an_hour_and_named_by_decisions(self, stage: Stage) -> None:
        anna = await buyer(stage)
        buyer_of_other = await stage.customer("other", "email")
        for n, total in enumerate((1000, 2000)):
            order = {"order_id": f"m{n}", "total": total}
            await stage.learn(stage.event("Order Completed", buyer_of_other, properties=order))
        async with running({"figures": stage.dispatch.figures_loop}):
            await until(lambda: stage.owner.fetchval("SELECT value FROM dispatch.figure"), what="there is a mean order")
        from shared.events import Guard

        intent = stage.intent(anna, value=None, guard=Guard(since=NOON))
        await stage.deliver(intent)
        row = await stage.owner.fetchrow("SELECT inputs FROM dispatch.decision WHERE message = $1", intent.message)
        assert row["inputs"]["value"] == "450.00" and row["inputs"]["base_version"] == 1
        assert row["inputs"]["value_from"] == "30% of the shop's mean order"


@asynccontextmanager
async def _with_pager(url: str, folder: Path) -> AsyncIterator[Stage]:
    async with on_stage(url, folder, channels_path=(PLUGINS,)) as made:
        yield made


async def test_a_channel_that_only_the_tests_know_is_chosen(database_url: str, tmp_path: Path) -> None:
    async with _with_pager(database_url, tmp_path) as stage:
        ivan = await buyer(stage, "ivan", "email", "sms", "pager")
        [message] = await stage.deliver(stage.intent(ivan))
        assert (message["state"], message["channel"], message["adapter"]) == ("sent", "pager", "pager")
        assert (stage.inbox / "pager" / f"{message['id']}.json").exists()
        assert len(await stage.events("Pager Sent")) == 1
        assert isinstance(stage.dispatch, Dispatch)


async def test_a_channel_of_ones_own_is_agreed_to_by_its_own_name(database_url: str, tmp_path: Path) -> None:
    async with _with_pager(database_url, tmp_path) as stage:
        # Who agreed to SMS has not agreed to pagers, though one phone number serves both.
        [message] = await stage.deliver(stage.intent(await buyer(stage, "olga", "email", "sms")))
        assert message["channel"] != "pager"
        rows = await stage.owner.fetch(
            "SELECT reason_code FROM dispatch.alternative WHERE message = $1 AND channel = 'pager'", message["id"]
        )
        assert [row["reason_code"] for row in rows] == ["no-consent"]


async def test_email_has_no_quiet_hours_whoever_serves_it(stage: Stage) -> None:
    stage.clock.set(NOON.replace(hour=20))  # 23:00 in Moscow
    anna = await buyer(stage)
    [message] = await stage.deliver(stage.intent(anna))
    assert (message["state"], message["adapter"]) == ("sent", "smtp")
