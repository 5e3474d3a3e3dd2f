"""Three push services serve one channel: the address says which one sends. Each service's own ledger is the judge."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from services.dispatch.adapter_settings import split
from services.dispatch.channels.base import AdapterSettings
from services.dispatch.links import Signer
from services.dispatch.store.adapters import write_told
from shared.identifiers import Identifier
from tests.support.apns_peer import ApnsPeer
from tests.support.channel_harnesses import apns, fcm, web_push
from tests.support.dispatch import Stage
from tests.support.dispatch import stage as on_stage
from tests.support.fcm_peer import FcmPeer
from tests.support.web_push_peer import WebPushPeer


@dataclass(frozen=True)
class Services:
    apple: ApnsPeer
    google: FcmPeer
    browsers: WebPushPeer


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with ApnsPeer() as apple, FcmPeer() as google, WebPushPeer() as browsers:
        yield Services(apple, google, browsers)


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with on_stage(database_url, tmp_path, outside_allow="127.0.0.0/8") as made:
        yield made


async def tell(stage: Stage, name: str, settings: AdapterSettings) -> None:
    public, secrets = split(settings)
    sealed = stage.dispatch.sealer.seal(name, secrets)
    async with stage.context.database.transaction() as tx:
        await write_told(tx, name, "push", public, sealed, list(secrets), stage.clock.now())


async def owner_of(stage: Stage, name: str, *tokens: str) -> Identifier:
    """A person with something in the cart, whose devices have these tokens."""
    user = stage.id("user_id", name)
    await stage.learn(stage.event("Identify", user, type="identify", traits={"first_name": name.capitalize()}))
    for token in tokens:
        device = stage.id("device_token", token)
        await stage.learn(stage.granted(user, "push", token, user, device))
    await stage.learn(stage.product(user=user))
    return user


async def test_each_token_goes_to_its_own_service(stage: Stage, services: Services) -> None:
    await tell(stage, "apns", apns.told(services.apple))
    await tell(stage, "fcm", fcm.told(services.google))
    await tell(stage, "web-push", web_push.told(services.browsers))
    device, registration, browser = services.apple.register(), services.google.register(), services.browsers.subscribe()
    people = [
        await owner_of(stage, "anna", device),
        await owner_of(stage, "boris", registration),
        await owner_of(stage, "clara", browser),
    ]
    messages = await stage.deliver(*(stage.intent(person, channels=["push"]) for person in people))
    assert [(m["state"], m["adapter"]) for m in messages] == [("sent", "apns"), ("sent", "fcm"), ("sent", "web-push")]
    ids = [str(m["id"]) for m in messages]
    assert [p["payload"]["message"] for p in services.apple.pushes()] == ids[:1]
    assert [p["message"]["data"]["message"] for p in services.google.pushes()] == ids[1:2]
    [shown] = [p["payload"] for p in services.browsers.pushes()]
    assert shown["message"] == ids[2] and "Kind of Blue" in shown["body"]
    assert await stage.events("Push Sent")


async def test_the_payload_leads_through_our_own_door_to_the_shop(stage: Stage, services: Services) -> None:
    await tell(stage, "web-push", web_push.told(services.browsers))
    anna = await owner_of(stage, "anna", services.browsers.subscribe())
    [message] = await stage.deliver(stage.intent(anna, channels=["push"]))
    url = services.browsers.pushes()[-1]["payload"]["url"]
    token = Signer(stage.context.secret, stage.context.settings.origin).read("click", url.rpartition("/")[2])
    assert token is not None and (token.message, token.number) == (message["id"], 1)


async def test_a_dead_token_is_dropped_at_once_and_the_next_message_takes_the_other_device(
    stage: Stage, services: Services
) -> None:
    await tell(stage, "fcm", fcm.told(services.google))
    tokens = [services.google.register(), services.google.register()]
    anna = await owner_of(stage, "anna", *tokens)
    for token in tokens:
        services.google.uninstall(token)
    [first] = await stage.deliver(stage.intent(anna, channels=["push"]))
    assert (first["state"], first["reason_code"]) == ("failed", "bounced")
    assert len(await stage.events("Push Bounced")) == 1
    for token in tokens:
        services.google.install_again(token)  # whatever the service says by now: that one is not asked again
    [other] = [token for token in tokens if token != first["address"]]
    [second] = await stage.deliver(stage.intent(anna, channels=["push"]))
    assert (second["state"], second["address"]) == ("sent", other)
    assert services.google.pushes()[-1]["message"]["token"] == other


async def test_a_token_of_a_service_that_is_not_configured_is_no_address(stage: Stage, services: Services) -> None:
    """It must not look sent because the inbox would take anything."""
    await tell(stage, "fcm", fcm.told(services.google))
    anna = await owner_of(stage, "anna", services.apple.register())
    [message] = await stage.deliver(stage.intent(anna, channels=["push"]))
    assert (message["state"], message["reason_code"]) == ("withheld", "no-address")
    assert not (stage.inbox / "push").exists()


async def test_one_browser_vendor_that_asks_for_peace_holds_nobody_else_up(stage: Stage, services: Services) -> None:
    await tell(stage, "web-push", web_push.told(services.browsers))
    with WebPushPeer() as busy:
        # One browser vendor's service asks for an hour; the other vendor's people get theirs.
        busy.answer(status=429, headers={"retry-after": "3600"})
        shared = web_push.told(services.browsers, authority=services.browsers.authority + busy.authority)
        await tell(stage, "web-push", shared)
        anna = await owner_of(stage, "anna", busy.subscribe(services.browsers.public_key))
        [waits] = await stage.deliver(stage.intent(anna, channels=["push"]))
        assert waits["state"] == "queued" and waits["due_at"] == stage.clock.now() + timedelta(hours=1)
        boris = await owner_of(stage, "boris", services.browsers.subscribe())
        [sent] = await stage.deliver(stage.intent(boris, channels=["push"]))
        assert sent["state"] == "sent"
