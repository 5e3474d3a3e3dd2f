"""From an intent to the person's phone and back: delivery reports stand on the profile, over HTTP gateways and SMPP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import httpx
import pytest
from fastapi import FastAPI

from services.dispatch import webhooks
from services.dispatch.adapter_settings import split
from services.dispatch.channels.base import AdapterSettings
from services.dispatch.channels.sms_gateway import SmsGatewaySettings
from services.dispatch.channels.sms_preset import Preset, presets
from services.dispatch.store.adapters import write_told
from shared import errors
from shared.events import Intended
from shared.identifiers import Identifier
from tests.support.channel_harnesses.smpp import told as told_smpp
from tests.support.dispatch import Stage
from tests.support.dispatch import stage as on_stage
from tests.support.smpp_peer import SmppPeer
from tests.support.sms_gateway_peer import LOGINS, PASSWORD, SECRET, Callback, SmsGatewayPeer


@pytest.fixture(scope="module")
def gateways() -> Iterator[SmsGatewayPeer]:
    with SmsGatewayPeer() as peer:
        yield peer


@pytest.fixture(scope="module")
def centre() -> Iterator[SmppPeer]:
    with SmppPeer() as peer:
        yield peer


@pytest.fixture
async def stage(database_url: str, tmp_path: Path, gateways: SmsGatewayPeer, centre: SmppPeer) -> AsyncIterator[Stage]:
    gateways.reset()
    centre.reset()
    # Providers are asked to call a deployment only where they could reach it.
    world = {"outside_allow": "127.0.0.0/8", "public_url": "https://shop.example"}
    async with on_stage(database_url, tmp_path, **world) as made:
        yield made


@pytest.fixture
async def provider(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    """How providers reach `/webhooks/…`."""
    app, dispatch = FastAPI(), stage.dispatch
    errors.install(app)
    app.include_router(
        webhooks.router(stage.context, dispatch.adapters, dispatch.settings, dispatch.reports, dispatch.limits)
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False)) as client:
        yield client


def gateway(peer: SmsGatewayPeer, preset: str) -> SmsGatewaySettings:
    return SmsGatewaySettings(
        preset=preset, server=peer.url, login=LOGINS[preset], password=PASSWORD, sender="Shop", webhook_secret=SECRET
    )


async def tell(stage: Stage, name: str, settings: AdapterSettings) -> None:
    public, secrets = split(settings)
    sealed = stage.dispatch.sealer.seal(name, secrets)
    async with stage.context.database.transaction() as tx:
        await write_told(tx, name, "sms", public, sealed, list(secrets), stage.clock.now())


async def anna(stage: Stage) -> Identifier:
    """Somebody with a phone, consent for SMS and something in the cart."""
    user = await stage.customer("anna", "sms")
    await stage.learn(stage.product(user=user))
    return user


def webhook(stage: Stage) -> str:
    """The one address that providers are given which name no message in it."""
    return f"{stage.context.settings.origin}/webhooks/sms-gateway"


async def call(provider: httpx.AsyncClient, callback: Callback) -> int:
    return (await provider.post(callback.url, content=callback.body, headers=callback.headers)).status_code


@pytest.mark.parametrize(("preset", "state"), [("smsc", "1"), ("twilio", "delivered")])
async def test_a_delivery_report_of_a_gateway_stands_on_the_profile(
    stage: Stage, gateways: SmsGatewayPeer, provider: httpx.AsyncClient, preset: str, state: str
) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, preset))
    user = await anna(stage)
    [message] = await stage.deliver(stage.intent(user, channels=["sms"]))
    assert (message["state"], message["adapter"]) == ("sent", "sms-gateway")
    [taken] = gateways.messages()
    callback = gateways.callback(taken["id"], state, fixed=webhook(stage))
    assert [await call(provider, callback) for _ in range(2)] == [200, 200]  # providers call twice
    [event] = await stage.events("SMS Delivered")
    assert event.properties["message_id"] == str(message["id"])
    await stage.learn(event)
    stands = await stage.owner.fetchval("SELECT count(*) FROM cdp.event WHERE name = 'SMS Delivered'")
    assert stands == 1
    charged = await stage.owner.fetchval("SELECT sum(amount) FROM dispatch.charge")
    price = Decimal("2.50") if preset == "smsc" else Decimal("1.00")  # Twilio names no price when it takes a message
    assert charged == price * taken["segments"]


async def test_a_forged_report_changes_nothing(
    stage: Stage, gateways: SmsGatewayPeer, provider: httpx.AsyncClient
) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, "smsc"))
    await stage.deliver(stage.intent(await anna(stage), channels=["sms"]))
    genuine = gateways.callback(gateways.messages()[0]["id"], "0", fixed=webhook(stage))
    forged = dict(parse_qsl(genuine.body.decode())) | {"status": "22"}  # "no such number" would suppress the address
    assert await call(provider, Callback(genuine.url, genuine.headers, urlencode(forged).encode())) == 403
    assert await stage.events("SMS Bounced") == []
    assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.suppression") == 0


async def test_a_number_that_does_not_exist_is_not_written_to_again(
    stage: Stage, gateways: SmsGatewayPeer, provider: httpx.AsyncClient
) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, "smsc"))
    user = await anna(stage)
    await stage.deliver(stage.intent(user, channels=["sms"]))
    assert await call(provider, gateways.callback(gateways.messages()[0]["id"], "22", fixed=webhook(stage))) == 200
    assert len(await stage.events("SMS Bounced")) == 1
    [second] = await stage.deliver(stage.intent(user, channels=["sms"]))
    assert second["state"] == "withheld"
    assert len(gateways.messages()) == 1


async def test_an_answer_that_was_lost_is_asked_for_and_nobody_gets_it_twice(
    stage: Stage, gateways: SmsGatewayPeer
) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, "smsc"))
    gateways.behave(hang_up=True)
    [message] = await stage.deliver(stage.intent(await anna(stage), channels=["sms"]))
    assert message["state"] == "sent"
    assert len(gateways.messages()) == 1 and len(gateways.entries("asked")) == 1


async def test_after_a_crash_a_gateway_that_knows_nothing_yet_is_believed_only_when_it_is_settled(
    stage: Stage, gateways: SmsGatewayPeer
) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, "smsc"))
    intent = stage.intent(await anna(stage), channels=["sms"])
    await _died_in_the_call(stage, intent)
    assert await stage.dispatch.sender.reap() == 1
    # 32 s after the last moment to start: "no such message" may be true, or the provider may still be taking it.
    assert (await stage.message(intent.message))["state"] == "unknown" and len(gateways.entries("asked")) == 1
    assert await stage.dispatch.sender.reap() == 0
    in_seconds = "SELECT extract(epoch FROM ask_at - clock_timestamp())::float8 FROM dispatch.attempt"
    assert 20 < await stage.owner.fetchval(in_seconds) <= 28
    await stage.owner.execute("UPDATE dispatch.attempt SET ask_at = clock_timestamp()")
    assert await stage.dispatch.sender.reap() == 1
    # A minute after it, there is none: it was never taken, and may be sent.
    message = await stage.message(intent.message)
    assert (message["state"], message["pinned"]) == ("queued", None)
    assert await stage.owner.fetchval("SELECT ask_at FROM dispatch.attempt") is None
    stage.clock.set(message["due_at"])
    await stage.watermark()
    await stage.decide()
    await stage.send()
    assert (await stage.message(intent.message))["state"] == "sent" and len(gateways.messages()) == 1


async def test_a_gateway_that_cannot_say_is_asked_once_more_and_then_it_is_unknown(
    stage: Stage, gateways: SmsGatewayPeer
) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, "sms_traffic"))
    intent = stage.intent(await anna(stage), channels=["sms"])
    await _died_in_the_call(stage, intent)
    assert await stage.dispatch.sender.reap() == 1
    await stage.owner.execute("UPDATE dispatch.attempt SET ask_at = clock_timestamp()")
    assert [await stage.dispatch.sender.reap() for _ in range(2)] == [1, 0]
    assert (await stage.message(intent.message))["state"] == "unknown" and gateways.messages() == []
    assert await stage.owner.fetchval("SELECT failures FROM dispatch.pause") == 1  # its one silence


async def test_a_gateway_is_asked_about_the_day_of_the_call_however_late_it_is_asked(
    stage: Stage, gateways: SmsGatewayPeer
) -> None:
    described = presets()["twilio"].model_dump()
    described["search"]["request"]["fields"]["DateSent"] = "{date}"
    custom = gateway(gateways, "twilio").model_copy(update={"preset": "custom", "custom": Preset(**described)})
    await tell(stage, "sms-gateway", custom)
    await _died_in_the_call(stage, stage.intent(await anna(stage), channels=["sms"]))
    called = stage.clock.now().date()
    for _ in range(2):  # when the call's time is over, and when the provider can be believed
        stage.clock.set(stage.clock.now() + timedelta(days=1))
        await stage.owner.execute("UPDATE dispatch.attempt SET ask_at = clock_timestamp() WHERE ask_at IS NOT NULL")
        assert await stage.dispatch.sender.reap() == 1
    assert [entry["date"] for entry in gateways.entries("asked")] == [called.isoformat()] * 2


async def _died_in_the_call(stage: Stage, intent: Intended) -> None:
    """It died 32 s ago: the time of the call is over."""
    await stage.die_in_the_call(intent)
    await stage.owner.execute(
        "UPDATE dispatch.message SET start_by = clock_timestamp() - interval '32 s', "
        "call_until = clock_timestamp() - interval '1 ms'"
    )


async def test_where_nobody_can_be_asked_marketing_is_never_sent_again(stage: Stage, gateways: SmsGatewayPeer) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, "sms_traffic"))
    gateways.behave(hang_up=True)
    [message] = await stage.deliver(stage.intent(await anna(stage), channels=["sms"]))
    gateways.behave(hang_up=False)
    await stage.decide()
    await stage.send()
    assert message["state"] == "unknown" and len(gateways.messages()) == 1


async def test_reports_that_were_lost_are_asked_for_and_come_once(
    stage: Stage, gateways: SmsGatewayPeer, provider: httpx.AsyncClient
) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, "twilio"))
    await stage.deliver(stage.intent(await anna(stage), channels=["sms"]))
    [taken] = gateways.messages()
    stage.clock.set(stage.clock.now() + timedelta(minutes=15))
    assert await stage.dispatch.following.follow() == 0  # nothing is decided yet
    gateways.behave(states={taken["id"]: "delivered"})
    stage.clock.set(stage.clock.now() + timedelta(minutes=45))
    assert await stage.dispatch.following.follow() == 1
    assert await call(provider, gateways.callback(taken["id"], "delivered")) == 200  # after all
    assert len(await stage.events("SMS Delivered")) == 1
    stage.clock.set(stage.clock.now() + timedelta(hours=5))
    await stage.dispatch.following.follow()
    assert len(gateways.entries("asked")) == 2  # what is known is not asked again


async def test_a_receipt_over_smpp_stands_on_the_profile(stage: Stage, centre: SmppPeer) -> None:
    await tell(stage, "smpp", told_smpp(centre))
    user = await anna(stage)
    [message] = await stage.deliver(stage.intent(user, channels=["sms"]))
    assert (message["state"], message["adapter"]) == ("sent", "smpp")
    [taken] = centre.messages()
    assert [await asyncio.to_thread(centre.receipt, taken["id"], "DELIVRD") for _ in range(2)] == [0, 0]
    [event] = await stage.events("SMS Delivered")
    assert event.properties["message_id"] == str(message["id"])


async def test_a_receipt_comes_after_a_restart_although_nothing_is_sent(stage: Stage, centre: SmppPeer) -> None:
    await tell(stage, "smpp", told_smpp(centre))
    await stage.deliver(stage.intent(await anna(stage), channels=["sms"]))
    await stage.dispatch.adapters["smpp"].close()
    await stage.dispatch.attendance.attend()
    assert len(centre.entries("bind")) == 2
    assert await asyncio.to_thread(centre.receipt, centre.messages()[0]["id"], "UNDELIV") == 0
    assert len(await stage.events("SMS Failed")) == 1


async def test_a_receipt_that_overtakes_the_answer_is_kept_for_it(stage: Stage, centre: SmppPeer) -> None:
    await tell(stage, "smpp", told_smpp(centre))
    user = await anna(stage)
    centre.behave(delay_seconds=0.5)
    intent = stage.intent(user, channels=["sms"])
    delivering = asyncio.create_task(stage.deliver(intent))
    while not centre.messages():
        await asyncio.sleep(0.02)
    assert await asyncio.to_thread(centre.receipt, centre.messages()[0]["id"], "DELIVRD") == 0
    await delivering
    assert [event.properties["message_id"] for event in await stage.events("SMS Delivered")] == [str(intent.message)]


async def test_somebody_who_writes_back_stop_gets_nothing_more(stage: Stage, centre: SmppPeer) -> None:
    await tell(stage, "smpp", told_smpp(centre))
    user = await anna(stage)
    [message] = await stage.deliver(stage.intent(user, channels=["sms"]))
    assert await asyncio.to_thread(centre.reply, message["address"].lstrip("+"), "Стоп") == 0
    assert len(await stage.events("Unsubscribed")) == 1
    [second] = await stage.deliver(stage.intent(user, channels=["sms"]))
    assert (second["state"], second["reason_code"]) == ("withheld", "opted-out")


@pytest.mark.parametrize("preset", ["twilio", "smsc"])
async def test_somebody_who_writes_stop_to_a_gateway_gets_nothing_more(
    stage: Stage, gateways: SmsGatewayPeer, provider: httpx.AsyncClient, preset: str
) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, preset))
    user = await anna(stage)
    [message] = await stage.deliver(stage.intent(user, channels=["sms"]))
    stop = gateways.incoming(preset, message["address"], "СТОП", webhook(stage), id="SM-stop")
    assert [await call(provider, stop) for _ in range(2)] == [200, 200]  # providers call twice
    [event] = await stage.events("Unsubscribed")
    assert (event.properties["channel"], event.properties["address"]) == ("sms", message["address"])
    assert event.properties["topics"] == ["*"]
    [second] = await stage.deliver(stage.intent(user, channels=["sms"]))
    assert (second["state"], second["reason_code"]) == ("withheld", "opted-out")
    assert len(gateways.messages()) == 1
    await stage.learn(event)
    assert await stage.owner.fetchval("SELECT count(*) FROM cdp.consent WHERE state = 'withdrawn'") == 1


@pytest.mark.parametrize("preset", ["twilio", "smsc"])
async def test_what_somebody_answers_over_a_gateway_is_told_once_and_without_the_words(
    stage: Stage, gateways: SmsGatewayPeer, provider: httpx.AsyncClient, preset: str
) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, preset))
    [message] = await stage.deliver(stage.intent(await anna(stage), channels=["sms"]))
    answer = gateways.incoming(preset, message["address"], "Спасибо, заберу", webhook(stage), id="SM-answer")
    assert [await call(provider, answer) for _ in range(2)] == [200, 200]
    [event] = await stage.events("SMS Replied")
    assert event.properties["message_id"] == str(message["id"])
    assert "Спасибо" not in await stage.owner.fetchval("SELECT string_agg(r::text, '') FROM dispatch.report r")
    assert await stage.events("Unsubscribed") == []


@pytest.mark.parametrize("preset", ["twilio", "smsc"])
async def test_a_forged_stop_takes_nobody_s_consent(
    stage: Stage, gateways: SmsGatewayPeer, provider: httpx.AsyncClient, preset: str
) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, preset))
    user = await anna(stage)
    [message] = await stage.deliver(stage.intent(user, channels=["sms"]))
    genuine = gateways.incoming(preset, message["address"], "hello", webhook(stage), id="SM-1")
    forged = dict(parse_qsl(genuine.body.decode())) | {"Body" if preset == "twilio" else "mes": "STOP"}
    assert await call(provider, Callback(genuine.url, genuine.headers, urlencode(forged).encode())) == 403
    assert await stage.events("Unsubscribed") == []
    [second] = await stage.deliver(stage.intent(user, channels=["sms"]))
    assert second["state"] == "sent"


async def test_the_session_follows_what_the_adapter_is_told(stage: Stage, centre: SmppPeer) -> None:
    await tell(stage, "smpp", told_smpp(centre).model_copy(update={"port": 9}))
    await stage.dispatch.attendance.attend()  # nobody is there: it is tried again
    await tell(stage, "smpp", told_smpp(centre))
    await stage.dispatch.attendance.attend()
    await stage.owner.execute("DELETE FROM dispatch.adapter WHERE name = 'smpp'")
    await stage.dispatch.attendance.attend()
    assert [entry["kind"] for entry in centre.entries()][:2] == ["bind", "unbind"]
