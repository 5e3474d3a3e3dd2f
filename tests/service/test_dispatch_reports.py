"""What providers tell later, at `/webhooks/{adapter}`: forged, doubled, replayed, out of order, early, late, of nobody. The
carrier is a process of its own; its callbacks are made here, with its signature."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from services.audit.counting import _attempts, _charges
from services.dispatch.answers import LATE
from services.dispatch.channels.base import Result
from services.dispatch.consents import standing
from services.dispatch.store.forgetting import forget_people
from services.dispatch.store.looking import read_consents
from services.dispatch.store.restored import Gap, Reconciled, reconcile
from tests.service.test_dispatch_adapters import PLUGINS, app_of, receipt
from tests.support.carrier_peer import TOKEN, CarrierPeer
from tests.support.dispatch import NOON, Stage
from tests.support.dispatch import stage as on_stage

KEY = "k" * 20


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
    """SMS goes through the carrier."""
    async with on_stage(database_url, tmp_path, channels_path=(PLUGINS,), outside_allow=("127.0.0.0/8",)) as made:
        told = {"url": carrier.url, "account": "shop"}
        sealed = made.dispatch.sealer.seal("carrier", {"token": TOKEN, "signing_key": KEY})
        await made.owner.execute(
            "INSERT INTO dispatch.adapter VALUES ('carrier', 'sms', $1, $2, $3, 1, $4)",
            told,
            sealed,
            ["token", "signing_key"],
            NOON,
        )
        yield made
        for book in (await _charges(made.owner), await _attempts(made.owner)):
            assert book.balanced, book


@pytest.fixture
async def provider(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app_of(stage), client=("203.0.113.9", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://dripline.example") as client:
        yield client


async def call(provider: httpx.AsyncClient, *reports: dict[str, Any], key: str = KEY) -> httpx.Response:
    body = json.dumps([{"id": str(uuid4()), **report} for report in reports]).encode()
    proof = hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
    return await provider.post("/webhooks/carrier", content=body, headers={"X-Signature": proof})


async def sms(stage: Stage, name: str = "ivan", **changes: Any) -> Any:
    """A receipt by SMS, sent."""
    [message] = await stage.deliver(await receipt(stage, name, **changes))
    assert message["state"] == "sent", message["reason"]
    return message


async def names(stage: Stage) -> list[str]:
    return [event.name for event in await stage.events()]


async def marketing(stage: Stage, name: str) -> Any:
    """An intent of the cart rule that goes by SMS."""
    user = await stage.customer(name, "sms")
    await stage.learn(stage.product(user=user))
    return stage.intent(user, channels=["sms"], value={"money": "5000"})


class TestWhoCalls:
    async def test_a_forged_call_is_refused_and_leaves_nothing(self, stage: Stage, provider: httpx.AsyncClient) -> None:
        message = await sms(stage)
        report = {"what": "complained", "message": str(message["id"])}
        assert (await call(provider, report, key="guessed")).status_code == 403
        assert (await provider.post("/webhooks/carrier", json=[report])).status_code == 403
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.report") == 0
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.suppression") == 0

    async def test_what_is_proven_and_cannot_be_read_is_said(self, provider: httpx.AsyncClient) -> None:
        answer = await call(provider, {"what": "delivered", "message": "no uuid"})
        assert answer.status_code == 400 and "not a list of reports" in answer.json()["detail"]

    async def test_a_call_that_is_too_large_is_not_read(self, provider: httpx.AsyncClient) -> None:
        assert (await provider.post("/webhooks/carrier", content=b"x" * (1 << 20 | 1))).status_code == 413

    @pytest.mark.parametrize("adapter", ["nobody", "inbox-sms", "smtp"])
    async def test_nobody_listens_where_no_adapter_takes_calls(self, provider: httpx.AsyncClient, adapter: str) -> None:
        assert (await provider.post(f"/webhooks/{adapter}", json=[])).status_code == 404

    async def test_the_provider_hears_what_its_adapter_says(self, provider: httpx.AsyncClient) -> None:
        answer = await call(provider)
        assert (answer.status_code, answer.text) == (200, "thanks")


class TestDelivery:
    async def test_a_delivery_is_told_once_however_often_it_is_reported(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        message = await sms(stage)
        report = {"id": "r-1", "what": "delivered", "carrier_id": "c-1", "at": NOON.isoformat()}
        for _ in range(2):
            assert (await call(provider, report)).status_code == 200
        await call(provider, {**report, "id": "r-2"}, {**report, "id": "r-3"})
        assert await names(stage) == ["SMS Sent", "SMS Delivered"]
        row = await stage.message(message["id"])
        assert (row["state"], row["delivery"], row["delivered_at"]) == ("sent", "delivered", NOON)

    async def test_many_at_once_by_many_callers_are_each_told_once(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        messages = [await sms(stage, f"p{n}") for n in range(5)]
        reports = [{"id": f"r-{n}", "what": "delivered", "message": str(m["id"])} for n, m in enumerate(messages)]
        answers = await asyncio.gather(*(call(provider, *reports, *reversed(reports)) for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        assert (await names(stage)).count("SMS Delivered") == 5

    async def test_the_number_of_statements_does_not_depend_on_the_number_of_reports(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        messages = [await sms(stage, f"p{n}") for n in range(4)]
        counted = []
        for these in (messages[:1], messages[1:]):
            seen: list[Any] = []
            async with stage.context.database.connection() as connection:
                raw = connection._con  # the pool's own connection: asyncpg logs what passes through it
                raw.add_query_logger(seen.append)
                original = stage.context.database.transaction

                class Only:
                    """One connection, watched."""

                    def __init__(self) -> None:
                        self._tx = connection.transaction()

                    async def __aenter__(self) -> Any:
                        await self._tx.start()
                        return connection

                    async def __aexit__(self, kind: Any, *_: Any) -> None:
                        await (self._tx.rollback() if kind else self._tx.commit())

                stage.context.database.transaction = Only  # type: ignore[method-assign, assignment]
                await call(provider, *({"what": "bounced", "message": str(m["id"]), "charged": "2"} for m in these))
                stage.context.database.transaction = original  # type: ignore[method-assign]
                raw.remove_query_logger(seen.append)
            counted.append(len(seen))
        assert counted[0] == counted[1] > 5

    async def test_what_could_not_be_delivered_fails_and_gives_the_cap_back(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        message = await sms(stage)
        await call(provider, {"what": "failed", "carrier_id": "c-1", "detail": "absent subscriber"})
        row = await stage.message(message["id"])
        assert (row["state"], row["reason_code"], row["reason"]) == ("failed", "undelivered", "absent subscriber")
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.contact") == 0
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.suppression") == 0
        assert await names(stage) == ["SMS Sent", "SMS Failed"]

    async def test_reports_out_of_order_come_to_the_same(self, stage: Stage, provider: httpx.AsyncClient) -> None:
        """*failed* after *delivered* changes nothing; *delivered* after *failed* puts it right."""
        one, other = await sms(stage, "p1"), await sms(stage, "p2")
        for message, order in ((one, ("delivered", "failed")), (other, ("failed", "delivered"))):
            for what in order:
                await call(provider, {"what": what, "message": str(message["id"])})
        for message in (one, other):
            row = await stage.message(message["id"])
            assert (row["state"], row["delivery"], row["reason_code"]) == ("sent", "delivered", None)
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.contact") == 2

    async def test_the_charge_is_corrected_to_what_the_provider_says(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        await sms(stage)
        await call(provider, {"what": "delivered", "carrier_id": "c-1", "charged": "4.40"})
        assert await stage.owner.fetchval("SELECT sum(amount) FROM dispatch.charge") == Decimal("4.40")
        assert await stage.owner.fetchval("SELECT sum(amount) FROM dispatch.spent") == Decimal("4.40")

    async def test_a_reply_and_the_outcome_of_a_task_are_events(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        await sms(stage)
        await call(provider, {"what": "replied", "carrier_id": "c-1", "properties": {"text": "yes"}})
        await call(provider, {"what": "done", "carrier_id": "c-1", "properties": {"outcome": "will come"}})
        replied, done = (await stage.events())[1:]
        assert (replied.name, replied.properties["text"]) == ("SMS Replied", "yes")
        assert (done.name, done.properties["outcome"]) == ("SMS Done", "will come")

    async def test_what_somebody_answered_is_forgotten_with_them(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        message = await sms(stage)
        await call(provider, {"what": "replied", "carrier_id": "c-1", "properties": {"text": "my name is Ivan"}})
        async with stage.context.database.transaction() as tx:
            await forget_people(tx, dict.fromkeys([message["origin"], message["address_node"]], NOON), NOON)
        assert await stage.owner.fetchval("SELECT properties FROM dispatch.report") == {}

    async def test_nobody_is_known_again_by_a_report_about_somebody_erased(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        message = await sms(stage)
        await stage.owner.execute("UPDATE dispatch.message SET address = NULL")
        await call(provider, {"what": "delivered", "message": str(message["id"])})
        assert await names(stage) == ["SMS Sent"]


class TestTheAddress:
    async def test_one_that_does_not_exist_gets_nothing_more_from_then_on(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        message = await sms(stage)
        await call(provider, {"what": "bounced", "carrier_id": "c-1", "detail": "no such number"})
        row = await stage.message(message["id"])
        assert (row["state"], row["reason_code"]) == ("failed", "bounced")
        [again] = await stage.deliver(await receipt(stage))
        assert (again["state"], again["reason_code"]) == ("withheld", "suppressed")
        assert "SMS Bounced" in await names(stage)

    async def test_a_complaint_is_a_row_of_the_ledger_and_a_suppression(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        message = await sms(stage)
        for _ in range(2):
            await call(provider, {"what": "complained", "message": str(message["id"])})
        rows = await stage.owner.fetch("SELECT node, channel, topic, state, id FROM dispatch.consent")
        assert [(r["node"], r["channel"], r["topic"], r["state"]) for r in rows] == [
            (message["address_node"], "sms", "*", "complained")
        ]
        [told] = await stage.events("SMS Complained")
        assert told.id == rows[0]["id"] and told.origin == message["address_node"]
        await stage.learn(told)
        copied = await stage.owner.fetch("SELECT id, state FROM cdp.consent WHERE state = 'complained'")
        assert [row["id"] for row in copied] == [told.id]
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.suppression") == 1

    async def test_a_complaint_by_address_alone_counts(self, stage: Stage, provider: httpx.AsyncClient) -> None:
        await stage.customer("ivan", "sms")
        phone = await stage.owner.fetchval("SELECT value FROM cdp.node WHERE kind = 'phone'")
        await call(
            provider, {"what": "complained", "address": phone}, {"what": "complained", "address": "+79995554433"}
        )
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.suppression") == 2
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.consent WHERE state = 'complained'") == 2
        assert (
            len(await stage.events("SMS Complained")) == 1
        )  # of the other nobody ever heard, and nobody is made of it

    async def test_an_unsubscription_at_the_provider_ends_marketing(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        intent, second = await marketing(stage, "ivan"), None
        [message] = await stage.deliver(intent)
        assert message["state"] == "sent", message["reason"]
        await call(provider, {"what": "unsubscribed", "carrier_id": "c-1"})
        assert [event.properties["channel"] for event in await stage.events("Unsubscribed")] == ["sms"]
        second = stage.intent(
            stage.id("user_id", "ivan"), channels=["sms"], value={"money": "5000"}, step="send-cart-last-call"
        )
        [row] = await stage.deliver(second)
        assert (row["state"], row["reason_code"]) == ("withheld", "opted-out")

    @pytest.mark.parametrize("how", ["unsubscribed", "complained"])
    async def test_somebody_who_subscribed_anew_is_heard_when_they_refuse_again(
        self, stage: Stage, provider: httpx.AsyncClient, how: str
    ) -> None:
        """All topics taken back, one confirmed later: the row of all topics is not the last word about that one."""
        [message] = await stage.deliver(await marketing(stage, "ivan"))
        await call(provider, {"what": "unsubscribed", "carrier_id": "c-1"})
        stage.clock.set(NOON + timedelta(days=60))
        await stage.owner.execute(
            "INSERT INTO dispatch.consent (node, channel, topic, id, origin, state, at, proof) "
            "VALUES ($1, 'sms', 'marketing', $2, $1, 'confirmed', $3, '{}')",
            message["address_node"],
            uuid4(),
            stage.clock.now(),
        )
        stage.clock.set(NOON + timedelta(days=150))
        for _ in range(2):
            await call(provider, {"what": how, "message": str(message["id"])})
        told = await stage.events("Unsubscribed") + await stage.events("SMS Complained")
        assert len(told) == 2, "the first, and the second once"
        rows = (await _consents(stage, message["address_node"]))[message["address_node"]]
        assert not standing(rows, "sms", "marketing").may_write

    async def test_a_bounce_that_comes_before_our_own_answer_suppresses_at_once(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        one = await calling(stage)
        await call(provider, {"what": "bounced", "message": str(one.id)})
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.suppression") == 1


async def _consents(stage: Stage, node: UUID) -> dict[UUID, list[Any]]:
    async with stage.context.database.transaction() as tx:
        return await read_consents(tx, [node])


async def calling(stage: Stage, intent: Any = None) -> Any:
    """A message whose call has begun and whose answer nobody has written yet."""
    sender, begun = stage.dispatch.sender, []
    original = sender._call

    async def hold(one: Any, *_: Any) -> None:
        begun.append(one)

    sender._call = hold  # type: ignore[method-assign]
    await stage.handle(intent or await receipt(stage))
    await stage.decide()
    await sender.start_calls()
    await asyncio.sleep(0)
    sender._call = original  # type: ignore[method-assign]
    sender._calling["carrier"] = 0
    [one] = begun
    return one


class TestBeforeOurOwnAnswer:
    @pytest.mark.parametrize("by", ["message", "carrier_id"])
    async def test_a_report_that_is_faster_than_our_answer_is_applied_with_it(
        self, stage: Stage, provider: httpx.AsyncClient, by: str
    ) -> None:
        one = await calling(stage)
        await call(provider, {"what": "delivered", by: str(one.id) if by == "message" else "c-77"})
        assert (await stage.message(one.id))["state"] == "calling"
        assert await names(stage) == []
        await stage.dispatch.answers.write([(one, 1, Result("sent", "200", "c-77"))])
        row = await stage.message(one.id)
        assert (row["state"], row["delivery"]) == ("sent", "delivered")
        assert await names(stage) == ["SMS Sent", "SMS Delivered"]
        assert await stage.owner.fetchval("SELECT state FROM dispatch.report") == "applied"

    @pytest.mark.parametrize("by", ["message", "carrier_id", "carrier_id, address"])
    @pytest.mark.parametrize("result", [Result("sent", "200", "c-77"), Result("unknown", "no answer", "c-77")])
    async def test_a_bounce_comes_to_the_same_before_our_answer_and_after_it(
        self, stage: Stage, provider: httpx.AsyncClient, by: str, result: Result
    ) -> None:
        ends = []
        for order in ("before", "after"):
            one = await calling(stage, await marketing(stage, order))
            said = {"message": str(one.id), "carrier_id": f"c-{order}", "address": one.address}
            report = {"what": "bounced", "detail": "no such number", **{name: said[name] for name in by.split(", ")}}
            answer = (one, 1, msgspec.structs.replace(result, provider_id=f"c-{order}"))
            if order == "before":
                await call(provider, report)
                assert (await stage.message(one.id))["state"] == "calling"
            await stage.dispatch.answers.write([answer])
            if order == "after":
                await call(provider, report)
            row = await stage.message(one.id)
            told = [e.name for e in await stage.events() if e.properties["message_id"] == str(one.id)]
            ends.append((row["state"], row["reason_code"], row["reason"], row["delivery"], told))
        assert ends[0] == ends[1]
        assert ends[0][:4] == ("failed", "bounced", "no such number", "bounced") and ends[0][4][-1] == "SMS Bounced"
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.contact") == 0, "it reached nobody"
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.suppression") == 2
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.report WHERE state = 'applied'") == 2

    @pytest.mark.parametrize("order", ["before", "after"])
    @pytest.mark.parametrize("what", ["bounced", "failed"])
    async def test_what_our_answer_says_and_a_report_says_too_is_told_once(
        self, stage: Stage, provider: httpx.AsyncClient, order: str, what: Any
    ) -> None:
        """A carrier that refuses at once and calls besides."""
        one = await calling(stage)
        report, answer = {"what": what, "message": str(one.id)}, (one, 1, Result(what, "no such number"))
        if order == "before":
            await call(provider, report)
        await stage.dispatch.answers.write([answer])
        if order == "after":
            await call(provider, report)
        assert await names(stage) == [f"SMS {what.capitalize()}"]
        row = await stage.message(one.id)
        assert (row["state"], row["delivery"]) == ("failed", what)

    @pytest.mark.parametrize("late", [Result("bounced", "no such number"), Result("sent", "200", "c-77")])
    async def test_a_late_answer_of_an_attempt_whose_end_was_reported_is_told_to_nobody(
        self, stage: Stage, provider: httpx.AsyncClient, late: Result
    ) -> None:
        one = await calling(stage)
        await stage.dispatch.answers.write([(one, 1, Result("unknown", "no answer"))])
        await call(provider, {"what": "bounced", "message": str(one.id)})
        assert (await stage.message(one.id))["state"] == "queued", "a receipt is tried again"
        await stage.dispatch.answers.write([(one, 1, late)])
        bounced = [event.id for event in await stage.events("SMS Bounced")]
        assert len(bounced) == 1, "under one id twice" if len(set(bounced)) == 1 else "twice"
        assert (await stage.message(one.id))["state"] == "queued"
        assert await names(stage) == ["SMS Bounced"]

    async def test_neither_overlooks_the_other_when_both_come_at_once(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        for n in range(8):
            one = await calling(stage, await receipt(stage, f"p{n}"))
            await asyncio.gather(
                call(provider, {"what": "delivered", "carrier_id": f"c-{n}"}),
                stage.dispatch.answers.write([(one, 1, Result("sent", "200", f"c-{n}"))]),
            )
            assert (await stage.message(one.id))["delivery"] == "delivered"
        assert (await names(stage)).count("SMS Delivered") == 8

    async def test_an_answer_that_says_try_again_does_not_send_again_what_was_delivered(
        self, stage: Stage, provider: httpx.AsyncClient, carrier: CarrierPeer
    ) -> None:
        one = await calling(stage)
        await call(provider, {"what": "delivered", "message": str(one.id)})
        await stage.dispatch.answers.write([(one, 1, Result("retry", "503"))])
        row = await stage.message(one.id)
        assert (row["state"], row["reason_code"]) == ("sent", None)
        stage.clock.set(NOON + timedelta(minutes=2))
        assert await stage.decide() == 0
        assert carrier.taken() == []

    async def test_a_report_for_what_waits_to_be_tried_again_ends_the_waiting(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        one = await calling(stage)
        await stage.dispatch.answers.write([(one, 1, Result("retry", "503"))])
        assert (await stage.message(one.id))["state"] == "queued"
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.contact") == 0
        await call(provider, {"what": "delivered", "message": str(one.id)})
        assert (await stage.message(one.id))["state"] == "sent"
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.contact") == 1
        assert await names(stage) == ["SMS Sent", "SMS Delivered"]

    async def test_a_delivery_resolves_what_was_unknown(self, stage: Stage, provider: httpx.AsyncClient) -> None:
        one = await calling(stage, await marketing(stage, "ivan"))
        await stage.dispatch.answers.write([(one, 1, Result("unknown", "no answer"))])
        assert (await stage.message(one.id))["state"] == "unknown"
        await call(provider, {"what": "delivered", "message": str(one.id)})
        row = await stage.message(one.id)
        assert (row["state"], row["reason_code"]) == ("sent", None)
        assert await names(stage) == ["SMS Sent", "SMS Delivered"]

    async def test_an_unknown_that_turns_out_not_to_have_been_taken_costs_nothing(self, stage: Stage) -> None:
        one = await calling(stage, await marketing(stage, "ivan"))
        await stage.dispatch.answers.write([(one, 1, Result("unknown", "no answer"))])
        assert await stage.owner.fetchval("SELECT sum(amount) FROM dispatch.charge") > 0
        await stage.dispatch.answers.write([(one, 1, Result("failed", "refused after all"))])
        assert (await stage.message(one.id))["state"] == "failed"
        assert await stage.owner.fetchval("SELECT sum(amount) FROM dispatch.charge") == 0
        assert await stage.owner.fetchval("SELECT sum(amount) FROM dispatch.spent") == 0

    async def test_an_answer_that_the_database_cannot_take_does_not_hold_its_neighbours(self, stage: Stage) -> None:
        one = await calling(stage, await receipt(stage, "p1"))
        other = await calling(stage, await receipt(stage, "p2"))
        await stage.dispatch.answers.write_or_part(
            [(one, 1, Result("sent", "a\x00b" * 1000, "c\x001")), (other, 10**12, Result("sent", "", "c-2"))]
        )
        assert (await stage.message(one.id))["state"] == "sent"
        assert (await stage.message(other.id))["state"] == "calling"  # the reaper takes it up
        await stage.dispatch.answers.write([(other, 1, LATE)])


class TestOfNobody:
    async def test_a_report_about_a_message_of_others_changes_nothing_and_is_forgotten(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        await call(
            provider,
            {"what": "delivered", "message": str(uuid4())},
            {"what": "delivered", "carrier_id": "of another program"},
            {"what": "delivered", "address": "+79995554433"},
        )
        states = await stage.owner.fetch("SELECT state FROM dispatch.report ORDER BY state")
        assert [row["state"] for row in states] == ["stray", "stray", "waiting"]
        assert await names(stage) == []
        assert await stage.dispatch.reports.forget() == 0
        stage.clock.set(NOON + timedelta(days=8))
        assert await stage.dispatch.reports.forget() == 3

    async def test_a_report_about_a_test_message_stands_with_it(
        self, stage: Stage, provider: httpx.AsyncClient
    ) -> None:
        phone = stage.id("phone", "+79161234567")
        tried = await stage.dispatch.trials.send("sms", phone, None, "Hello", "test")
        await call(provider, {"what": "delivered", "carrier_id": tried.result.provider_id, "charged": "9"})
        assert await stage.owner.fetchval("SELECT delivery FROM dispatch.test") == "delivered"
        assert await stage.owner.fetchval("SELECT sum(amount) FROM dispatch.charge") == 9
        assert await names(stage) == []


class TestAfterARestore:
    GAP = Gap(backup_at=NOON, restored_at=NOON + timedelta(hours=1), held=True, applied=True)

    async def test_what_may_have_arrived_before_the_backup_is_unknown_and_goes_on_counting(
        self, stage: Stage, provider: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stage.dispatch.answers._kinds["carrier"], "repeatable", True)
        one = await calling(stage, await marketing(stage, "ivan"))
        await stage.dispatch.answers.write([(one, 1, Result("unknown", "no answer"))])
        before = await stage.message(one.id)
        assert (before["state"], before["pinned"]) == ("queued", "sms"), "it was to be tried again"
        await stage.handle(await marketing(stage, "olga"))
        async with stage.context.database.transaction() as tx:
            assert await reconcile(tx, self.GAP, None, NOON) == Reconciled(sent=0, withheld=1, unknown=1)
        row = await stage.message(one.id)
        assert (row["state"], row["reason_code"]) == ("unknown", "restored")
        counted = await stage.owner.fetch("SELECT message FROM dispatch.contact")
        assert [contact["message"] for contact in counted] == [one.id], "against caps"
        await call(provider, {"what": "delivered", "message": str(one.id)})
        assert (await stage.message(one.id))["state"] == "sent", "and a report still settles it"
