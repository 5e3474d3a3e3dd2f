"""One provider dead, slow or busy: the others' messages do not notice. The providers are processes of their own that hang on
order; counts and order are compared, never times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.dispatch.adapter_settings import split
from services.dispatch.answers import LATE, judge_providers, judged
from services.dispatch.channels.base import Result
from services.dispatch.channels.sms_gateway import SmsGateway, SmsGatewaySettings
from services.dispatch.store import adapters
from services.dispatch.store.calls import Chosen
from tests.service.test_dispatch_adapters import PLUGINS
from tests.support.carrier_peer import TOKEN, CarrierPeer
from tests.support.contexts import running
from tests.support.dispatch import NOON, Stage
from tests.support.dispatch import stage as on_stage
from tests.support.sms_gateway_peer import LOGINS, PASSWORD, SmsGatewayPeer
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until


@pytest.fixture(scope="module")
def running_carrier() -> Iterator[CarrierPeer]:
    with CarrierPeer() as peer:
        yield peer


@pytest.fixture
def carrier(running_carrier: CarrierPeer) -> CarrierPeer:
    running_carrier.reset()
    return running_carrier


@pytest.fixture
async def stage(database_url: str, tmp_path: Path, carrier: CarrierPeer) -> AsyncIterator[Stage]:
    """SMS goes through the carrier, e-mail into the inbox."""
    async with on_stage(database_url, tmp_path, channels_path=(PLUGINS,), outside_allow=("127.0.0.0/8",)) as made:
        await made.owner.execute(
            "INSERT INTO dispatch.adapter VALUES ('carrier', 'sms', $1, $2, '[\"token\"]', 1, $3)",
            {"url": carrier.url},
            made.dispatch.sealer.seal("carrier", {"token": TOKEN}),
            NOON,
        )
        yield made


async def receipts(stage: Stage, channel: str, count: int) -> list[Any]:
    users = [await stage.customer(f"{channel}{n}", channel) for n in range(count)]
    return [stage.receipt(user, channels=[channel]) for user in users]


async def states(stage: Stage, intents: list[Any]) -> list[str]:
    rows = await stage.owner.fetch(
        "SELECT state FROM dispatch.message WHERE id = ANY($1::uuid[])", [intent.message for intent in intents]
    )
    return sorted(row["state"] for row in rows)


class TestOneProviderHangs:
    async def test_the_others_messages_are_all_sent_while_its_own_still_wait(
        self, stage: Stage, carrier: CarrierPeer
    ) -> None:
        """Twenty letters behind twenty SMS that hang: every letter is out before the first SMS has an answer."""
        carrier.behave(mode="hang")
        texts, letters = await receipts(stage, "sms", 20), await receipts(stage, "email", 20)
        await stage.handle(*texts)
        await stage.decide()
        async with running({"sender": stage.dispatch.sender.loop, "reaper": stage.dispatch.sender.reap_loop}):
            await until(lambda: carrier.seen() >= 4, what="the carrier's sessions are all taken")
            await stage.handle(*letters)
            await stage.decide()

            async def sent() -> bool:
                return await states(stage, letters) == ["sent"] * 20

            await until(sent, what="all letters are sent", limit=20)
            assert carrier.seen() == 4  # its sessions, and not one more
            answered = await stage.owner.fetchval(
                "SELECT count(*) FROM dispatch.attempt WHERE adapter = 'carrier' AND outcome IS NOT NULL "
                "AND ended_at < (SELECT max(ended_at) FROM dispatch.attempt WHERE channel = 'email')"
            )
            assert answered == 0

    async def test_asking_one_provider_for_long_does_not_keep_another_s_reports_waiting(
        self, stage: Stage, carrier: CarrierPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both processes died in their calls; the carrier is asked and does not answer."""
        text, letter = (await receipts(stage, "sms", 1))[0], (await receipts(stage, "email", 1))[0]
        await stage.handle(text, letter)
        await stage.decide()
        released = asyncio.Event()

        async def never(*_: Any) -> None:
            await released.wait()

        monkeypatch.setattr(stage.dispatch.sender, "_call", never)
        await stage.dispatch.sender.start_calls()
        await stage.owner.execute("UPDATE dispatch.message SET call_until = clock_timestamp() - interval '1 s'")
        monkeypatch.setattr(stage.dispatch.adapters["carrier"], "ask", never)
        async with running({"reaper": stage.dispatch.sender.reap_loop}):

            async def settled() -> bool:
                # Transactional, and the inbox tells repeats: it goes back to the queue.
                return await states(stage, [letter]) == ["queued"] and await states(stage, [text]) == ["calling"]

            await until(settled, what="the letter was settled while the carrier is still asked", limit=10)
            released.set()


class TestAGatewayTakesAndNeverAnswers:
    """The adapters that are shipped: SMS over HTTP, letters over SMTP."""

    @pytest.fixture
    def gateway(self) -> Iterator[SmsGatewayPeer]:
        with SmsGatewayPeer() as peer:
            yield peer

    @pytest.fixture
    async def stage(
        self, database_url: str, tmp_path: Path, smtp_peer: SmtpPeer, gateway: SmsGatewayPeer
    ) -> AsyncIterator[Stage]:
        async with on_stage(database_url, tmp_path, smtp_url=smtp_peer.url, outside_allow="127.0.0.0/8") as made:
            account = {"preset": "twilio", "server": gateway.url, "login": LOGINS["twilio"], "sender": "Shop"}
            public, secrets = split(SmsGatewaySettings(**account, password=PASSWORD))
            sealed = made.dispatch.sealer.seal("sms-gateway", secrets)
            async with made.context.database.transaction() as tx:
                await adapters.write_told(tx, "sms-gateway", "sms", public, sealed, list(secrets), NOON)
            yield made

    async def test_every_letter_is_with_the_mail_server_while_every_line_of_the_gateway_hangs(
        self, stage: Stage, smtp_peer: SmtpPeer, gateway: SmsGatewayPeer
    ) -> None:
        gateway.behave(delay_seconds=3600)
        lines = SmsGateway.sessions
        texts, letters = await receipts(stage, "sms", lines + 20), await receipts(stage, "email", lines + 20)
        await stage.handle(*texts)
        await stage.decide()
        async with running({"sender": stage.dispatch.sender.loop, "reaper": stage.dispatch.sender.reap_loop}):
            await until(lambda: len(gateway.messages()) == lines, what="all lines of the gateway hang")
            await stage.handle(*letters)
            await stage.decide()

            async def sent() -> bool:
                return await states(stage, letters) == ["sent"] * len(letters)

            await until(sent, what="all letters are sent", limit=20)
            arrived = sorted(letter.recipients[0] for letter in smtp_peer.letters())
            assert arrived == sorted(f"email{n}@example.com" for n in range(len(letters)))
            assert await states(stage, texts) == ["calling"] * lines + ["claimed"] * 20
            assert len(gateway.messages()) == lines  # not one more
            answered = "SELECT count(*) FROM dispatch.attempt WHERE adapter = 'sms-gateway' AND outcome IS NOT NULL"
            assert await stage.owner.fetchval(answered) == 0
            gateway.kill()  # or the sender would wait for the answers before it ends

    async def test_that_does_not_take_our_sender_is_left_alone_and_everything_is_kept_until_it_does(
        self, stage: Stage, gateway: SmsGatewayPeer
    ) -> None:
        gateway.behave(code="21606")  # the number in From is not ours
        texts = await receipts(stage, "sms", adapters.MOST_FAILURES)
        await stage.deliver(*texts)
        assert await states(stage, texts) == ["queued"] * len(texts)
        pause = await stage.owner.fetchrow("SELECT * FROM dispatch.pause")
        assert pause["until"] > stage.clock.now() and "21606" in pause["why"]  # what the list of adapters shows
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.suppression") == 0
        gateway.behave(code="")
        async with stage.context.database.transaction() as tx:
            await adapters.forgive(tx, ["sms-gateway"])  # as when it is told its settings
        stage.clock.set(NOON + timedelta(minutes=1))
        while "queued" in await states(stage, texts):
            await stage.decide()
            await stage.send()
        assert await states(stage, texts) == ["sent"] * len(texts)


class TestOneProviderIsAway:
    async def test_it_is_left_alone_after_some_failures_and_found_again_by_one_call(
        self, stage: Stage, carrier: CarrierPeer
    ) -> None:
        carrier.behave(mode="503")  # the carrier's adapter takes it as unknown, asks, and hears that it was not taken
        texts = await receipts(stage, "sms", 14)
        await stage.deliver(*texts)
        tried = carrier.seen()
        assert tried >= adapters.MOST_FAILURES
        pause = await stage.owner.fetchrow("SELECT * FROM dispatch.pause")
        assert pause["failures"] >= adapters.MOST_FAILURES and pause["until"] > stage.clock.now()
        # What comes up now waits for the end of the pause, undecided, and is not tried.
        more = await receipts(stage, "sms", 3)
        await stage.handle(*more)
        await stage.decide()
        assert await stage.decide() == 0
        assert await states(stage, more) == ["queued"] * 3
        due = await stage.owner.fetchval(
            "SELECT min(due_at) FROM dispatch.message WHERE id = ANY($1::uuid[])", [one.message for one in more]
        )
        assert due == pause["until"] and carrier.seen() == tried
        # Then one call looks whether it is back; it is not, and the next pause is longer.
        stage.clock.set(pause["until"])
        await stage.decide()
        await stage.dispatch.sender.start_calls()
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.message WHERE state = 'calling'") == 1
        await stage.dispatch.sender.start_calls()
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.message WHERE state = 'calling'") == 1
        carrier.behave()

    async def test_once_it_answers_everything_goes_again(self, stage: Stage, carrier: CarrierPeer) -> None:
        await stage.owner.execute(
            "INSERT INTO dispatch.pause VALUES ('carrier', 15, $1, 'away')", NOON + timedelta(seconds=30)
        )
        texts = await receipts(stage, "sms", 6)
        await stage.handle(*texts)
        await stage.decide()
        assert carrier.seen() == 0
        stage.clock.set(NOON + timedelta(seconds=30))
        await stage.watermark()
        while "queued" in await states(stage, texts):
            await stage.decide()
            await stage.send()
        assert await states(stage, texts) == ["sent"] * 6
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.pause") == 0

    async def test_its_failures_are_nobody_else_s(self, stage: Stage, carrier: CarrierPeer) -> None:
        await stage.owner.execute(
            "INSERT INTO dispatch.pause VALUES ('carrier', 15, $1, 'away')", NOON + timedelta(minutes=5)
        )
        texts, letters = await receipts(stage, "sms", 5), await receipts(stage, "email", 5)
        await stage.deliver(*texts, *letters)
        assert await states(stage, letters) == ["sent"] * 5
        assert await states(stage, texts) == ["queued"] * 5


class TestTheProviderIsBusy:
    async def test_retry_after_is_honoured_for_the_message_and_for_the_adapter(
        self, stage: Stage, carrier: CarrierPeer
    ) -> None:
        carrier.behave(mode="429", retry_after=90)
        [first] = await receipts(stage, "sms", 1)
        await stage.deliver(first)
        row = await stage.message(first.message)
        assert (row["state"], row["due_at"]) == ("queued", NOON + timedelta(seconds=90))
        carrier.behave()
        user = await stage.customer("other", "sms")
        other = stage.receipt(user, channels=["sms"])
        await stage.deliver(other)
        assert carrier.seen() == 1
        stage.clock.set(NOON + timedelta(seconds=90))
        while "queued" in await states(stage, [first, other]):
            await stage.decide()
            await stage.send()
        assert await states(stage, [first, other]) == ["sent", "sent"]
        assert len(carrier.taken()) == 2


def chosen(adapter: str = "a") -> Chosen:
    given = dict.fromkeys(Chosen.__struct_fields__, "")
    given |= {
        "id": uuid4(),
        "adapter": adapter,
        "valid_until": NOON + timedelta(days=1),
        "repeats": 0,
        "kind": "marketing",
        "purpose": "marketing",
        "pinned": None,
    }
    return Chosen(**given)  # type: ignore[arg-type]


class TestWhoIsHeldToBeAway:
    def test_who_answers_some_is_there(self) -> None:
        answers = [(chosen(), 1, Result(outcome)) for outcome in ("retry", "unknown", "failed")]
        assert judge_providers(answers, NOON) == (["a"], {}, {}, {})

    def test_who_answers_nobody_is_away(self) -> None:
        answers = [(chosen(), 1, Result("unknown", "hung")), (chosen("b"), 1, Result("sent"))]
        assert judge_providers(answers, NOON) == (["b"], {"a": 1}, {"a": "hung"}, {})

    def test_who_asks_to_be_left_alone_is_there_and_is_left_alone_but_not_for_ever(self) -> None:
        answers = [(chosen(), 1, Result("retry", "429", retry_after=timedelta(days=3)))]
        assert judge_providers(answers, NOON) == (["a"], {}, {}, {"a": NOON + adapters.LONGEST_PAUSE})

    def test_a_call_that_began_too_late_says_nothing_about_the_provider(self) -> None:
        assert judge_providers([(chosen(), 1, LATE)], NOON) == ([], {}, {}, {})

    def test_being_busy_is_no_failed_attempt(self) -> None:
        busy = judged(chosen(), 50, Result("retry", "429", retry_after=timedelta(minutes=3)), NOON, repeatable=False)
        assert (busy.state, busy.due_at) == ("queued", NOON + timedelta(minutes=3))
        away = judged(chosen(), 50, Result("retry", "503"), NOON, repeatable=False)
        assert (away.state, away.due_at) == ("queued", NOON + timedelta(hours=4))

    def test_waiting_longer_than_the_message_is_good_is_the_end_of_it(self) -> None:
        busy = judged(chosen(), 1, Result("retry", "429", retry_after=timedelta(days=2)), NOON, repeatable=False)
        assert (busy.state, busy.reason_code) == ("failed", "exhausted")
