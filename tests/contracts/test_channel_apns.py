"""Apple's push service by HTTP/2, which checks the provider token and the headers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from services.dispatch.channels import apns
from services.dispatch.channels.apns import Apns, ApnsSettings
from services.dispatch.channels.base import Adapter
from services.dispatch.rendered import Rendered
from shared.clock import VirtualClock
from tests.support.apns_peer import TOPIC, ApnsPeer
from tests.support.channel_harnesses.apns import told
from tests.support.push_peer import pem
from tests.support.pushing import CLICK, exchange, impatient
from tests.support.wait import until


@pytest.fixture(scope="module")
def peer() -> Iterator[ApnsPeer]:
    with ApnsPeer() as made:
        yield made


@pytest.fixture(scope="module")
async def adapter(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Apns]:
    """One for all, with one provider token: Apple takes another after twenty minutes only, and so does the peer."""
    made = Apns(impatient(tmp_path_factory.mktemp("apns")))
    yield made
    await made.close()


@pytest.fixture
async def newcomer(adapter: Apns, peer: ApnsPeer, tmp_path: Path) -> AsyncIterator[Apns]:
    """Another adapter, with no provider token yet, and a peer that has forgotten those that it saw."""
    await adapter.close()
    _forget(peer)
    made = Apns(impatient(tmp_path))
    yield made
    await made.close()
    _forget(peer)


def _forget(peer: ApnsPeer) -> None:
    peer.kill()
    peer.start()


@pytest.fixture
def settings(peer: ApnsPeer) -> ApnsSettings:
    return told(peer)


def taken(peer: ApnsPeer, device: str) -> list[dict[str, Any]]:
    return [push for push in peer.pushes() if push["device"] == device]


class TestWhatTheAppGets:
    async def test_text_tracked_link_and_the_messages_id_by_http_2(
        self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings
    ) -> None:
        one = exchange(peer.register(), settings)
        result = await adapter.send(one)
        assert (result.outcome, result.provider_id) == ("sent", str(one.message))
        (push,) = taken(peer, one.address)
        assert push["http"] == "2"
        assert push["payload"] == {
            "aps": {
                "alert": {"title": "You left something behind", "body": "Kind of Blue is waiting in your cart"},
                "sound": "default",
            },
            "message": str(one.message),
            "url": CLICK,
        }

    async def test_the_headers_say_what_apple_wants_to_know(
        self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings
    ) -> None:
        device, now = peer.register(), datetime.now(UTC).timestamp()
        first = exchange(device, settings)
        for one in (first, exchange(device, settings, purpose="transactional"), exchange(device, settings, at=NEVER)):
            assert (await adapter.send(one)).outcome == "sent"
        marketing, receipt, late = (push["headers"] for push in taken(peer, device))
        assert marketing["apns-topic"] == TOPIC and marketing["apns-push-type"] == "alert"
        assert marketing["apns-id"] == str(first.message)
        assert (marketing["apns-priority"], receipt["apns-priority"]) == ("5", "10")
        # By the wall clock, whatever business time it is; and as long as the message is good, which is six hours.
        assert now + 21_600 - 1 <= int(marketing["apns-expiration"]) <= now + 21_600 + 30
        assert late["apns-expiration"] == "0"

    async def test_a_repeat_replaces_the_first_on_the_screen(
        self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings
    ) -> None:
        device, message = peer.register(), uuid4()
        for attempt in (1, 2):
            await adapter.send(exchange(device, settings, message, attempt=attempt))
        assert len(taken(peer, device)) == 2 and len(peer.screen(device)) == 1
        await adapter.send(exchange(device, settings))
        assert len(peer.screen(device)) == 2

    async def test_a_text_that_is_too_long_is_cut(self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings) -> None:
        one = exchange(peer.register(), settings, rendered=Rendered(text="👋" * 1600))
        assert (await adapter.send(one)).outcome == "sent"
        body = taken(peer, one.address)[0]["payload"]["aps"]["alert"]["body"]
        assert body.endswith("👋…") and len(body) > 900

    async def test_a_token_may_say_whose_it_is(self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings) -> None:
        device = peer.register()
        await adapter.send(exchange(f"apns:{device}", settings))
        assert len(taken(peer, device)) == 1

    async def test_many_go_at_once_over_one_connection(
        self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings
    ) -> None:
        devices = [peer.register() for _ in range(20)]
        await adapter.send(exchange(devices[0], settings))
        results = await asyncio.gather(*(adapter.send(exchange(device, settings)) for device in devices))
        assert {result.outcome for result in results} == {"sent"}
        pushes = [push for push in peer.pushes() if push["device"] in devices]
        assert len(pushes) == 21 and len({push["connection"] for push in pushes}) == 1


NEVER = datetime(2030, 1, 1, tzinfo=UTC)


class TestTheProviderToken:
    async def test_is_used_again(self, newcomer: Apns, peer: ApnsPeer, settings: ApnsSettings) -> None:
        """The peer refuses a second one within twenty minutes, as Apple does."""
        device = peer.register()
        assert [(await newcomer.send(exchange(device, settings))).outcome for _ in range(3)] == ["sent"] * 3

    async def test_is_renewed_between_twenty_minutes_and_an_hour(self) -> None:
        assert timedelta(minutes=20) <= apns.YOUNGEST < apns.RENEW < timedelta(minutes=60)

    async def test_that_has_expired_while_the_machine_slept_is_replaced_and_the_push_goes_out_once(
        self, newcomer: Apns, peer: ApnsPeer, settings: ApnsSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = peer.register()
        with monkeypatch.context() as earlier:
            earlier.setattr(apns, "WALL", VirtualClock(datetime.now(UTC) - timedelta(hours=2)))
            newcomer._token(settings)
        assert (await newcomer.send(exchange(device, settings))).outcome == "sent"
        assert peer.refusals()[-1] == "ExpiredProviderToken" and len(taken(peer, device)) == 1

    async def test_is_not_made_again_and_again_by_a_machine_whose_clock_is_wrong(
        self, newcomer: Apns, peer: ApnsPeer, settings: ApnsSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device, before = peer.register(), len(peer.entries())
        monkeypatch.setattr(apns, "WALL", VirtualClock(datetime.now(UTC) - timedelta(hours=2)))
        result = await newcomer.send(exchange(device, settings))
        assert result.outcome == "retry" and "clock" in result.detail
        assert len(peer.entries()) == before + 1

    async def test_of_a_new_key_goes_over_a_connection_of_its_own(
        self, newcomer: Apns, peer: ApnsPeer, settings: ApnsSettings
    ) -> None:
        """Whoever changes the key need not wait until the connection of the old one ends: Apple takes no other on it."""
        device = peer.register()
        assert (await newcomer.send(exchange(device, settings))).outcome == "sent"
        changed = told(peer, key_id=peer.another_key())
        assert (await newcomer.send(exchange(device, changed))).outcome == "sent"
        first, second = taken(peer, device)
        assert first["connection"] != second["connection"]

    async def test_of_another_key_is_not_taken_and_nothing_is_lost(
        self, newcomer: Apns, peer: ApnsPeer, settings: ApnsSettings
    ) -> None:
        device = peer.register()
        wrong = told(peer, private_key=pem(ec.generate_private_key(ec.SECP256R1())).decode())
        result = await newcomer.send(exchange(device, wrong))
        assert result.outcome == "retry" and "InvalidProviderToken" in result.detail
        assert (await newcomer.send(exchange(device, settings))).outcome == "sent"  # once the right key is told


class TestWhatAnAnswerMeans:
    async def test_an_app_that_was_removed_bounces(self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings) -> None:
        device = peer.register()
        peer.uninstall(device)
        assert (await adapter.send(exchange(device, settings))).outcome == "bounced"

    async def test_what_is_no_device_token_bounces(self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings) -> None:
        assert (await adapter.send(exchange("ab" * 32, settings))).outcome == "bounced"

    async def test_an_address_cannot_lead_to_another_path(
        self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings
    ) -> None:
        before = len(peer.entries())
        assert (await adapter.send(exchange("apns:../../x?y", settings))).outcome == "failed"
        assert len(peer.entries()) == before

    async def test_another_apps_token_fails_and_is_not_dropped(self, adapter: Apns, peer: ApnsPeer) -> None:
        result = await adapter.send(exchange(peer.register(), told(peer, topic="com.example.other")))
        assert (result.outcome, result.detail) == ("failed", "Apple refuses: DeviceTokenNotForTopic (400)")

    @pytest.mark.parametrize(
        ("status", "reason", "outcome"),
        [
            (410, "ExpiredToken", "bounced"),
            (413, "PayloadTooLarge", "failed"),
            (403, "Forbidden", "retry"),
            (403, "BadCertificateEnvironment", "retry"),
            (403, "BadEnvironmentKeyIdInToken", "retry"),
            (403, "BadEnvironmentKeyInToken", "retry"),
            (403, "UnrelatedKeyIdInToken", "retry"),
            (403, "AReasonOfNextYear", "retry"),
            (400, "BadTopic", "retry"),
            (400, "MissingTopic", "retry"),
            (400, "TopicDisallowed", "retry"),
            (400, "IdleTimeout", "retry"),
            (400, "BadCollapseId", "failed"),
            (400, "PayloadEmpty", "failed"),
            (429, "TooManyRequests", "retry"),
            (429, "TooManyProviderTokenUpdates", "retry"),
            (503, "ServiceUnavailable", "retry"),
            (503, "Shutdown", "retry"),
            (500, "InternalServerError", "unknown"),
            (502, "", "unknown"),
            (503, "", "unknown"),
            (404, "BadPath", "failed"),
        ],
    )
    async def test_a_reason_means(self, adapter: Apns, peer: ApnsPeer, status: int, reason: str, outcome: str) -> None:
        peer.answer(status=status, body={"reason": reason})
        result = await adapter.send(exchange(peer.register(), told(peer)))
        assert result.outcome == outcome

    async def test_too_many_pushes_to_one_phone_stop_nobody_else(
        self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings
    ) -> None:
        peer.answer(status=429, headers={"retry-after": "60"}, body={"reason": "TooManyRequests"})
        result = await adapter.send(exchange(peer.register(), settings))
        assert (result.retry_after, result.for_one) == (timedelta(seconds=60), True)
        peer.answer(status=503, headers={"retry-after": "60"}, body={"reason": "Shutdown"})
        result = await adapter.send(exchange(peer.register(), settings))
        assert (result.retry_after, result.for_one) == (timedelta(seconds=60), False)

    async def test_no_result_names_the_phone(self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings) -> None:
        device = peer.register()
        for status in (0, 400, 410, 500):
            peer.answer(status=status, body={"reason": f"{device} is wrong"})
            assert device not in (await adapter.send(exchange(device, settings))).detail


class TestWhenNobodyKnows:
    """Neither repeatable nor asked: whatever may have been taken is unknown, and only that."""

    def test_it_is_declared(self) -> None:
        assert not Apns.repeatable and Apns.ask is Adapter.ask

    @pytest.mark.parametrize("mood", [{"status": 500}, {"hang": True}])
    async def test_a_push_that_was_taken_before_the_fault_is_unknown(
        self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings, mood: dict[str, Any]
    ) -> None:
        one = exchange(peer.register(), settings)
        peer.answer(take=True, **mood)
        assert (await adapter.send(one)).outcome == "unknown"
        assert len(taken(peer, one.address)) == 1
        assert (await adapter.send(exchange(one.address, settings))).outcome == "sent"

    async def test_silence_on_one_push_does_not_hold_the_others_on_the_connection(
        self, adapter: Apns, peer: ApnsPeer, settings: ApnsSettings
    ) -> None:
        device = peer.register()
        peer.answer(hang=True, take=True)
        silent = asyncio.create_task(adapter.send(exchange(device, settings)))
        await until(lambda: taken(peer, device), what="the peer has taken the push that it says nothing to")
        others = [await adapter.send(exchange(peer.register(), settings)) for _ in range(3)]
        assert {result.outcome for result in others} == {"sent"} and not silent.done()
        assert (await silent).outcome == "unknown"

    async def test_a_connection_that_was_closed_while_nothing_went_over_it_leaves_nothing_unknown(
        self, newcomer: Apns, peer: ApnsPeer, settings: ApnsSettings
    ) -> None:
        device = peer.register()
        assert (await newcomer.send(exchange(device, settings))).outcome == "sent"
        peer.kill()
        peer.start()
        assert (await newcomer.send(exchange(device, settings))).outcome == "sent"
        assert len(taken(peer, device)) == 2

    async def test_a_line_that_breaks_is_unknown_and_a_service_that_is_away_is_tried_later(self, adapter: Apns) -> None:
        with ApnsPeer() as peer:
            one = exchange(peer.register(), told(peer))
            peer.answer(take=True, die=True)
            assert (await adapter.send(one)).outcome == "unknown"
            assert (await adapter.send(one)).outcome == "retry"
            peer.start()
            assert (await adapter.send(one)).outcome == "sent"


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"private_key": "-----BEGIN PRIVATE KEY-----"}, "no signing key of Apple's"),
            ({"private_key": pem(ec.generate_private_key(ec.SECP384R1())).decode()}, "no signing key of Apple's"),
            ({"team_id": "short"}, "should match pattern"),
            ({"server": "http://api.push.apple.com"}, "should match pattern"),
        ],
    )
    def test_that_cannot_work_are_refused(self, peer: ApnsPeer, changes: dict[str, str], problem: str) -> None:
        with pytest.raises(ValidationError, match=problem):
            told(peer, **changes)

    def test_do_not_show_the_key(self, peer: ApnsPeer) -> None:
        settings = told(peer)
        assert peer.private_key.splitlines()[1] not in repr(settings) + settings.model_dump_json()
