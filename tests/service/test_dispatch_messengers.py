"""E-mail, Telegram and call tasks from their settings by API to what comes back at `/webhooks/…`: the whole way, on real
PostgreSQL, with providers that are processes of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.dispatch.channels.return_path import ReturnPath
from shared.auth import create_key
from shared.events import Guard, Intended
from tests.contracts.test_channel_smtp import report_of
from tests.contracts.test_channel_telegram import SECRET as UPDATES
from tests.contracts.test_channel_telegram import member, update
from tests.service.test_dispatch_adapters import app_of
from tests.support.dispatch import NOON, Stage
from tests.support.dispatch import stage as on_stage
from tests.support.smtp_peer import SmtpPeer
from tests.support.telegram_peer import TOKEN, TelegramPeer
from tests.support.webhook_peer import SECRET, WebhookPeer, call_back

KEY = "a key of at least sixteen"
PATHS = ReturnPath("bounces@mail.shop.example", KEY)


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with on_stage(database_url, tmp_path, outside_allow=("127.0.0.0/8",)) as made:
        yield made


@pytest.fixture
async def api(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    _, key = await create_key(stage.owner, "test admin", "admin", NOON)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app_of(stage), client=("127.0.0.1", 1))
    admin = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", headers=admin) as client:
        yield client


async def tell(admin: httpx.AsyncClient, channel: str, adapter: str, **settings: Any) -> None:
    answer = await admin.put(f"/v1/channels/{channel}/adapters/{adapter}", json=settings)
    assert answer.status_code == 200, answer.text


async def test_a_letter_that_bounces_later_is_told_once_and_its_address_is_left_alone(
    stage: Stage, api: httpx.AsyncClient, smtp_peer: SmtpPeer
) -> None:
    await tell(
        api, "email", "smtp", host="127.0.0.1", port=smtp_peer.port, security="none",
        return_path="bounces@mail.shop.example", bounce_key=KEY,
    )  # fmt: skip
    anna = await stage.customer("anna", "email")
    [message] = await stage.deliver(stage.receipt(anna, channels=["email"]))
    assert (message["state"], message["adapter"]) == ("sent", "smtp")
    [letter] = smtp_peer.letters()
    assert letter.sender == PATHS.address(message["id"])

    forged = report_of(message["id"], ReturnPath("bounces@mail.shop.example", "somebody else's key"))
    statuses = [
        (await api.post("/webhooks/smtp", content=mail, headers={"Authorization": f"Bearer {key}"})).status_code
        for mail, key in ((forged, KEY), (report_of(message["id"]), "guessed"), *[(report_of(message["id"]), KEY)] * 2)
    ]
    assert statuses == [403, 403, 200, 200]
    assert [event.name for event in await stage.events()] == ["Email Sent", "Email Bounced"]
    [again] = await stage.deliver(stage.receipt(anna, channels=["email"]))
    assert again["state"] == "withheld" and len(smtp_peer.letters()) == 1


async def test_who_blocks_the_bot_is_not_written_to_any_more(stage: Stage, api: httpx.AsyncClient) -> None:
    with TelegramPeer() as telegram:
        await tell(api, "messenger", "telegram", token=TOKEN, webhook_secret=UPDATES, api=telegram.origin)
        anna, chat = stage.id("user_id", "anna"), stage.id("external_id", "telegram:1001")
        await stage.learn(stage.event("Identify", anna, chat, type="identify"))
        await stage.learn(stage.granted(anna, "messenger", chat.value, anna, chat), stage.product(user=anna))
        [first] = await stage.deliver(stage.intent(anna, channels=["messenger"]))
        assert (first["state"], first["adapter"]) == ("sent", "telegram")
        assert "Kind of Blue" in telegram.entries("taken")[0]["plain"]
        shown = {"X-Telegram-Bot-Api-Secret-Token": UPDATES}
        for _ in range(2):
            answer = await api.post("/webhooks/telegram", content=update(5, **member("kicked")), headers=shown)
            assert answer.status_code == 200
        [second] = await stage.deliver(stage.intent(anna, channels=["messenger"], step="another"))
        assert (second["state"], second["reason_code"]) == ("withheld", "opted-out")
        assert len(telegram.entries("taken")) == 1


async def test_what_came_of_a_call_is_an_event_and_may_end_calls(stage: Stage, api: httpx.AsyncClient) -> None:
    with WebhookPeer(now=NOON) as centre:
        await tell(api, "call", "call-task", url=centre.url, secret=SECRET)
        anna = await stage.customer("anna", "call")
        await stage.learn(stage.product(user=anna))
        [message] = await stage.deliver(stage.intent(anna, channels=["call"], value={"money": "50000"}))
        assert (message["state"], message["adapter"]) == ("sent", "call-task")
        [task] = centre.taken()
        assert task["data"]["task"] == str(message["id"]) and task["data"]["phone"] == message["address"]
        # The call centre signs with its own clock, Dripline judges by its own.
        headers, body = call_back(
            "call.done", {"task": task["data"]["task"], "outcome": "do_not_call"}, at=stage.clock.now()
        )
        for _ in range(2):
            assert (await api.post("/webhooks/call-task", content=body, headers=headers)).status_code == 204
        told = [event for event in await stage.events() if event.properties.get("outcome")]
        assert [event.properties["outcome"] for event in told] == ["do_not_call"]
        assert told[0].name.startswith("Call ") and told[0].origin == message["origin"]
        [second] = await stage.deliver(stage.intent(anna, channels=["call"], value={"money": "50000"}, step="another"))
        assert second["state"] == "withheld" and len(centre.taken()) == 1


async def test_a_message_that_may_have_arrived_stays_with_its_channel_and_goes_on_counting(
    stage: Stage, api: httpx.AsyncClient
) -> None:
    """The system takes it and breaks (500); the repeat finds it away (503): no letter may follow."""
    with WebhookPeer(now=NOON) as system:
        await tell(api, "messenger", "webhook", url=system.url, secret=SECRET)
        anna = stage.id("user_id", "anna")
        mail, chat = stage.id("email", "anna@example.com"), stage.id("external_id", "chat-1")
        await stage.learn(stage.event("Identify", anna, mail, chat, type="identify"))
        ids = (anna, mail, chat)
        await stage.learn(
            stage.granted(anna, "messenger", chat.value, *ids), stage.granted(anna, "email", mail.value, *ids),
            stage.product(user=anna),
        )  # fmt: skip
        system.script({"status": 500, "after": True}, {"status": 503})
        intent = stage.intent(anna, channels=["messenger"])
        await stage.deliver(intent)
        await stage.decide()
        await stage.send()
        message = await stage.message(intent.message)
        assert (message["state"], message["attempts"], message["pinned"]) == ("queued", 2, "messenger")
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.contact") == 1
        # Any channel may be asked now, and the messenger is not there any more.
        await stage.owner.execute("UPDATE dispatch.message SET intent = intent - 'channels'")
        await stage.owner.execute("UPDATE dispatch.channel SET enabled = false WHERE name = 'messenger'")
        stage.clock.set(message["due_at"])
        await stage.watermark()
        await stage.decide()
        await stage.send()
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.attempt WHERE channel <> 'messenger'") == 0
        assert len(system.taken()) == 1


async def _may_have_arrived(stage: Stage, api: httpx.AsyncClient, system: WebhookPeer, **changes: Any) -> Intended:
    """A message to Anna's chat that the system took and did not answer; then Telegram serves the chat as well."""
    await tell(api, "messenger", "webhook", url=system.url, secret=SECRET)
    anna, chat = stage.id("user_id", "anna"), stage.id("external_id", "telegram:1001")
    await stage.learn(stage.event("Identify", anna, chat, type="identify"))
    await stage.learn(stage.granted(anna, "messenger", chat.value, anna, chat), stage.product(user=anna))
    system.script({"status": 500, "after": True})
    intent = stage.intent(anna, channels=["messenger"], **changes)
    await stage.deliver(intent)
    message = await stage.message(intent.message)
    assert (message["state"], message["adapter"], message["pinned"]) == ("queued", "webhook", "messenger")
    return intent


async def _go_on(stage: Stage) -> None:
    stage.clock.set(stage.clock.now() + timedelta(minutes=1))
    await stage.watermark()
    await stage.decide()
    await stage.send()


class TestTwoAdaptersOfOneChannel:
    """Only the one that may have it knows the key by which a repeat is dropped."""

    async def test_marketing_that_may_have_arrived_over_one_does_not_follow_over_the_other(
        self, stage: Stage, api: httpx.AsyncClient
    ) -> None:
        with WebhookPeer(now=NOON) as system, TelegramPeer() as telegram:
            intent = await _may_have_arrived(stage, api, system)
            await tell(api, "messenger", "telegram", token=TOKEN, webhook_secret=UPDATES, api=telegram.origin)
            assert (await api.patch("/v1/channels/messenger", json={"adapter": "telegram"})).status_code == 200
            await _go_on(stage)
            assert telegram.entries("taken") == [] and len(system.taken()) == 1
            message = await stage.message(intent.message)
            assert (message["state"], message["reason_code"]) == ("unknown", "unknown")
            assert "webhook" in message["reason"]
            # It may have reached her, so it goes on counting.
            assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.contact") == 1

    async def test_that_it_had_arrived_is_still_heard(self, stage: Stage, api: httpx.AsyncClient) -> None:
        """Of the attempt over the former adapter, after the message has ended."""
        with WebhookPeer(now=NOON) as system, TelegramPeer() as telegram:
            intent = await _may_have_arrived(stage, api, system)
            await tell(api, "messenger", "telegram", token=TOKEN, webhook_secret=UPDATES, api=telegram.origin)
            assert (await api.patch("/v1/channels/messenger", json={"adapter": "telegram"})).status_code == 200
            await _go_on(stage)
            headers, body = call_back("message.delivered", {"message": str(intent.message)}, at=stage.clock.now())
            assert (await api.post("/webhooks/webhook", content=body, headers=headers)).status_code == 204
            message = await stage.message(intent.message)
            assert (message["state"], message["channel"], message["delivery"]) == ("sent", "messenger", "delivered")
            told = [event.properties["message_id"] for event in await stage.events("Messenger Delivered")]
            assert told == [str(intent.message)]

    async def test_it_is_told_to_the_same_one_again_although_the_other_is_preferred_now(
        self, stage: Stage, api: httpx.AsyncClient
    ) -> None:
        with WebhookPeer(now=NOON) as system, TelegramPeer() as telegram:
            intent = await _may_have_arrived(stage, api, system)
            await tell(api, "messenger", "telegram", token=TOKEN, webhook_secret=UPDATES, api=telegram.origin)
            await _go_on(stage)
            message = await stage.message(intent.message)
            assert (message["state"], message["adapter"], message["attempts"]) == ("sent", "webhook", 2)
            assert telegram.entries("taken") == [] and len(system.taken()) == 1  # the same key: taken once

    async def test_nor_to_another_system_at_the_same_adapter(self, stage: Stage, api: httpx.AsyncClient) -> None:
        with WebhookPeer(now=NOON) as system, WebhookPeer(now=NOON) as replacement:
            intent = await _may_have_arrived(stage, api, system)
            stage.clock.set(stage.clock.now() + timedelta(seconds=30))
            await tell(api, "messenger", "webhook", url=replacement.url, secret=SECRET)
            await _go_on(stage)
            assert replacement.taken() == [] and len(system.taken()) == 1
            assert (await stage.message(intent.message))["state"] == "unknown"

    async def test_what_people_wait_for_goes_to_whoever_serves_now(self, stage: Stage, api: httpx.AsyncClient) -> None:
        receipt = {"kind": "transactional", "template": "notice", "guard": Guard(since=NOON), "value": None}
        with WebhookPeer(now=NOON) as system, TelegramPeer() as telegram:
            notice = {
                "name": "notice",
                "purpose": "transactional",
                "subject": "x",
                "text": "x",
                "messenger": "It is here.",
            }
            assert (await api.post("/v1/templates", json=notice)).status_code == 201
            intent = await _may_have_arrived(stage, api, system, **receipt)
            await tell(api, "messenger", "telegram", token=TOKEN, webhook_secret=UPDATES, api=telegram.origin)
            assert (await api.patch("/v1/channels/messenger", json={"adapter": "telegram"})).status_code == 200
            await _go_on(stage)
            assert (await stage.message(intent.message))["state"] == "sent" and len(telegram.entries("taken")) == 1
