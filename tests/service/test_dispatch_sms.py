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
from services.dispatch.store.adapters import write_told
from shared import errors
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
    async with on_stage(database_url, tmp_path, outside_allow="127.0.0.0/8") as made:
        yield made


@pytest.fixture
async def provider(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    """How providers reach `/webhooks/…`."""
    app, dispatch = FastAPI(), stage.dispatch
    errors.install(app)
    app.include_router(webhooks.router(stage.context, dispatch.adapters, dispatch.settings, dispatch.reports))
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
    url = f"{stage.context.settings.origin}/webhooks/sms-gateway"
    callback = gateways.callback(taken["id"], state, fixed=url)
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
    url = f"{stage.context.settings.origin}/webhooks/sms-gateway"
    genuine = gateways.callback(gateways.messages()[0]["id"], "0", fixed=url)
    forged = dict(parse_qsl(genuine.body.decode())) | {"status": "22"}  # "no such number" would suppress the address
    assert await call(provider, Callback(url, genuine.headers, urlencode(forged).encode())) == 403
    assert await stage.events("SMS Bounced") == []
    assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.suppression") == 0


async def test_a_number_that_does_not_exist_is_not_written_to_again(
    stage: Stage, gateways: SmsGatewayPeer, provider: httpx.AsyncClient
) -> None:
    await tell(stage, "sms-gateway", gateway(gateways, "smsc"))
    user = await anna(stage)
    await stage.deliver(stage.intent(user, channels=["sms"]))
    url = f"{stage.context.settings.origin}/webhooks/sms-gateway"
    assert await call(provider, gateways.callback(gateways.messages()[0]["id"], "22", fixed=url)) == 200
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


async def test_the_session_follows_what_the_adapter_is_told(stage: Stage, centre: SmppPeer) -> None:
    await tell(stage, "smpp", told_smpp(centre).model_copy(update={"port": 9}))
    await stage.dispatch.attendance.attend()  # nobody is there: it is tried again
    await tell(stage, "smpp", told_smpp(centre))
    await stage.dispatch.attendance.attend()
    await stage.owner.execute("DELETE FROM dispatch.adapter WHERE name = 'smpp'")
    await stage.dispatch.attendance.attend()
    assert [entry["kind"] for entry in centre.entries()][:2] == ["bind", "unbind"]
