"""Web Push against a push service that checks VAPID and browsers that decrypt."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from services.dispatch.channels.base import TooLate
from services.dispatch.channels.web_push import NoSubscription, WebPush, WebPushSettings, subscription
from services.dispatch.rendered import Rendered
from tests.support.channel_harnesses.web_push import told
from tests.support.push_peer import pem
from tests.support.pushing import CLICK, NOON, exchange, impatient
from tests.support.wait import until
from tests.support.web_push_peer import WebPushPeer, vapid_pair


@pytest.fixture(scope="module")
def peer() -> Iterator[WebPushPeer]:
    with WebPushPeer() as made:
        yield made


@pytest.fixture
async def adapter(tmp_path: Path) -> AsyncIterator[WebPush]:
    made = WebPush(impatient(tmp_path))
    yield made
    await made.close()


@pytest.fixture
def settings(peer: WebPushPeer) -> WebPushSettings:
    return told(peer)


def taken(peer: WebPushPeer, address: str) -> list[dict[str, Any]]:
    browser = address.rpartition("/")[2]
    return [push for push in peer.pushes() if push["browser"] == browser]


class TestWhatTheBrowserGets:
    async def test_it_reads_the_text_the_tracked_link_and_the_messages_id(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        one = exchange(peer.subscribe(), settings)
        assert (await adapter.send(one)).outcome == "sent"
        (push,) = taken(peer, one.address)
        assert push["payload"] == {
            "title": "You left something behind",
            "body": "Kind of Blue is waiting in your cart",
            "url": CLICK,
            "tag": str(one.message),
            "message": str(one.message),
        }

    async def test_a_push_without_a_title_has_the_shops_name(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        one = exchange(peer.subscribe(), settings, rendered=Rendered(text="Привет 👋"))
        await adapter.send(one)
        (push,) = taken(peer, one.address)
        assert (push["payload"]["title"], push["payload"]["body"]) == ("Corner Shop", "Привет 👋")

    async def test_the_length_tells_nothing_of_the_text(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        address = peer.subscribe()
        for text in ("Yes.", "No, and that is a longer story than you would think."):
            await adapter.send(exchange(address, settings, rendered=Rendered(text=text)))
        assert len({push["length"] for push in taken(peer, address)}) == 1

    async def test_a_text_that_is_too_long_is_cut(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        one = exchange(peer.subscribe(), settings, rendered=Rendered(text="👋" * 1600))
        assert (await adapter.send(one)).outcome == "sent"
        (push,) = taken(peer, one.address)
        assert push["length"] == 4096 and re.fullmatch("👋{900,}…", push["payload"]["body"])

    async def test_it_is_kept_for_a_browser_that_is_off_as_long_as_the_message_is_good(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        address = peer.subscribe()
        for valid_until in (NOON + timedelta(hours=6), NOON - timedelta(seconds=1), NOON + timedelta(days=90), None):
            await adapter.send(exchange(address, settings, valid_until=valid_until))
        assert [push["ttl"] for push in taken(peer, address)] == [21_600, 0, 2_419_200, 86_400]

    async def test_marketing_does_not_wake_a_phone_and_a_receipt_does(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        address = peer.subscribe()
        for purpose in ("marketing", "transactional", "confirmation"):
            await adapter.send(exchange(address, settings, purpose=purpose))
        assert [push["urgency"] for push in taken(peer, address)] == ["normal", "high", "high"]

    async def test_a_repeat_replaces_the_first_where_that_still_waits_or_lies_on_the_screen(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        address, message = peer.subscribe(), uuid4()
        for attempt in (1, 2):
            await adapter.send(exchange(address, settings, message, attempt=attempt))
        await adapter.send(exchange(address, settings))
        first, again, other = taken(peer, address)
        assert (first["topic"], first["payload"]["tag"]) == (again["topic"], again["payload"]["tag"])
        assert other["topic"] != first["topic"] and other["payload"]["tag"] != first["payload"]["tag"]


class TestVapid:
    async def test_the_service_learns_whom_to_write_to(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        one = exchange(peer.subscribe(), settings)
        await adapter.send(one)
        assert taken(peer, one.address)[0]["subject"] == "mailto:push@shop.example"

    async def test_a_subscription_made_with_another_key_fails_and_is_not_dropped(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        result = await adapter.send(exchange(peer.subscribe(server_key=vapid_pair()[0]), settings))
        assert (result.outcome, result.detail) == ("failed", "the subscription was made with another VAPID key (403)")

    async def test_a_token_that_is_refused_is_made_anew_for_the_next_attempt(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        one = exchange(peer.subscribe(), settings)
        peer.answer(status=401)
        assert (await adapter.send(one)).outcome == "retry"
        assert (await adapter.send(one)).outcome == "sent"

    def test_a_key_from_openssl_will_do(self, peer: WebPushPeer) -> None:
        from services.dispatch.channels.web_push import application_server_key

        key = ec.generate_private_key(ec.SECP256R1())
        told(peer, private_key=pem(key).decode(), public_key=application_server_key(key))

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"private_key": vapid_pair()[1]}, "are not of one pair"),
            ({"private_key": "no key"}, "private_key is no key of P-256"),
            ({"private_key": pem(ec.generate_private_key(ec.SECP384R1())).decode()}, "private_key is no key of P-256"),
            ({"subject": "shop@shop.example"}, "should match pattern"),
            ({"authority": "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"}, "is no certificate in PEM"),
        ],
    )
    def test_settings_that_cannot_work_are_refused(
        self, peer: WebPushPeer, changes: dict[str, str], problem: str
    ) -> None:
        with pytest.raises(ValidationError, match=problem):
            told(peer, **changes)

    def test_the_private_key_is_not_shown(self, settings: WebPushSettings, peer: WebPushPeer) -> None:
        assert peer.private_key not in repr(settings) + settings.model_dump_json()


class TestWhatAnAnswerMeans:
    async def test_a_permission_that_was_taken_back_bounces(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        address = peer.subscribe()
        peer.unsubscribe(address)
        assert (await adapter.send(exchange(address, settings))).outcome == "bounced"

    async def test_a_subscription_that_nobody_knows_bounces(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        address = peer.subscribe() + "0"
        assert (await adapter.send(exchange(address, settings))).outcome == "bounced"

    @pytest.mark.parametrize(
        ("status", "outcome"),
        [(400, "failed"), (413, "failed"), (429, "retry"), (406, "retry"), (500, "unknown"), (502, "unknown")]
        + [(503, "unknown"), (302, "failed"), (200, "sent")],
    )
    async def test_a_status_means(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings, status: int, outcome: str
    ) -> None:
        one = exchange(peer.subscribe(), settings)
        peer.answer(status=status)
        assert (await adapter.send(one)).outcome == outcome

    @pytest.mark.parametrize(
        ("status", "reason", "outcome"),
        [
            (403, "BadJwtToken", "retry"),  # our subject, key or clock: no fault of the subscription
            (400, "VapidPkHashMismatch", "failed"),
            (403, "", "failed"),
        ],
    )
    async def test_what_apple_says_of_the_vapid_token_holds_pushes_back_and_drops_nobody(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings, status: int, reason: str, outcome: str
    ) -> None:
        one = exchange(peer.subscribe(), settings)
        peer.answer(status=status, body={"reason": reason})
        result = await adapter.send(one)
        assert (result.outcome, result.for_one) == (outcome, outcome == "retry")
        assert (await adapter.send(one)).outcome == "sent"  # with a new token, once it is mended

    async def test_a_service_that_asks_for_peace_is_left_alone_and_the_others_are_not(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        peer.answer(status=429, headers={"retry-after": "3600"})
        one = exchange(peer.subscribe(), settings)
        before = len(peer.entries())
        results = [await adapter.send(one) for _ in range(3)]
        assert [r.outcome for r in results] == ["retry"] * 3
        assert all(r.for_one and r.retry_after is not None for r in results)  # else all other services would wait, too
        assert timedelta(minutes=59) < results[-1].retry_after <= timedelta(hours=1)
        assert len(peer.entries()) == before + 1
        with WebPushPeer() as other:
            theirs = told(other, public_key=peer.public_key, private_key=peer.private_key)
            assert (await adapter.send(exchange(other.subscribe(peer.public_key), theirs))).outcome == "sent"

    async def test_an_overloaded_service_that_says_when_to_come_again_has_taken_nothing(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        one = exchange(peer.subscribe(), settings)
        peer.answer(status=503, headers={"retry-after": "0"})
        result = await adapter.send(one)
        assert (result.outcome, result.retry_after) == ("retry", timedelta(seconds=10))  # at once would be a loop
        await adapter.close()
        assert taken(peer, one.address) == []


class TestWhenNobodyKnows:
    """Neither repeatable nor asked: whatever may have been taken is unknown, and only that."""

    def test_it_is_declared(self) -> None:
        assert not WebPush.repeatable and WebPush.ask is WebPush.__mro__[2].ask

    @pytest.mark.parametrize("mood", [{"status": 500}, {"hang": True}])
    async def test_a_push_that_was_taken_before_the_fault_is_unknown(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings, mood: dict[str, Any]
    ) -> None:
        one = exchange(peer.subscribe(), settings)
        peer.answer(take=True, **mood)
        assert (await adapter.send(one)).outcome == "unknown"
        assert len(taken(peer, one.address)) == 1  # to say anything else would be a lie
        assert (await adapter.send(exchange(one.address, settings))).outcome == "sent"

    async def test_a_line_that_stands_with_nobody_on_it_leaves_the_push_unknown(self, adapter: WebPush) -> None:
        with WebPushPeer() as peer:
            address, settings = peer.subscribe(), told(peer)
            assert (await adapter.send(exchange(address, settings))).outcome == "sent"
            peer.freeze()
            assert (await adapter.send(exchange(address, settings))).outcome == "unknown"
            peer.thaw()
            await until(
                lambda: len(taken(peer, address)) == 2, what="the push that nobody answered for is taken after all"
            )

    async def test_a_slow_answer_is_waited_for(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        peer.answer(take=True, delay_seconds=0.4)
        assert (await adapter.send(exchange(peer.subscribe(), settings))).outcome == "sent"

    async def test_a_line_that_breaks_is_unknown_and_a_service_that_is_away_is_tried_later(
        self, adapter: WebPush
    ) -> None:
        with WebPushPeer() as peer:
            one = exchange(peer.subscribe(), told(peer))
            peer.answer(take=True, die=True)
            assert (await adapter.send(one)).outcome == "unknown"
            away = await adapter.send(one)
            assert (away.outcome, away.for_one) == ("retry", True)  # one vendor's service is not all of them
            peer.start()
            assert (await adapter.send(one)).outcome == "sent"

    async def test_nothing_leaves_after_the_moment_to_start(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        from services.dispatch.channels.base import StartBy

        one = exchange(peer.subscribe(), settings, start_by=StartBy(0.0, lambda: 1.0))
        with pytest.raises(TooLate):
            await adapter.send(one)
        assert taken(peer, one.address) == []


KEYS = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4.BTBZMqHH6r4Tts7J_aSIgg"


class TestAddresses:
    def test_a_subscription_is_read_as_a_browser_gives_it(self) -> None:
        read = subscription(f"web:{KEYS}.https://push.example/wpush/v2/gAAA.b?x=1")
        assert read.endpoint == "https://push.example/wpush/v2/gAAA.b?x=1"
        assert (read.origin, len(read.p256dh), len(read.auth)) == ("https://push.example", 65, 16)

    @pytest.mark.parametrize(
        ("address", "problem"),
        [
            ("web:", "is not of the form"),
            (f"{KEYS}.https://push.example/1", "is not of the form"),
            ("web:BCVx.BTBZMqHH6r4Tts7J_aSIgg.https://push.example/1", "no point of P-256"),
            ("web:!!!.BTBZMqHH6r4Tts7J_aSIgg.https://push.example/1", "not in base64url"),
            (f"web:{KEYS[:-4]}.https://push.example/1", "its auth has 13 bytes"),
            (f"web:{KEYS}.http://push.example/1", "no https address"),
            (f"web:{KEYS}.https://push.example:x/1", "no https address"),
            (f"web:{KEYS}.https://me@push.example/1", "no https address"),
            (f"web:{KEYS}.https://push.example/1\r\nX: y", "no https address"),
            (f"web:{KEYS}.file:///etc/passwd", "no https address"),
        ],
    )
    async def test_what_is_none_is_refused_and_not_repeated(
        self, adapter: WebPush, settings: WebPushSettings, address: str, problem: str
    ) -> None:
        with pytest.raises(NoSubscription, match=problem) as raised:
            subscription(address)
        assert "push.example" not in str(raised.value)
        assert (await adapter.send(exchange(address, settings))).outcome == "failed"

    async def test_a_subscription_does_not_lead_into_our_own_network(
        self, peer: WebPushPeer, settings: WebPushSettings, tmp_path: Path
    ) -> None:
        careful = WebPush(impatient(tmp_path, allow=""))
        one = exchange(peer.subscribe(), settings)
        result = await careful.send(one)
        await careful.close()
        assert (result.outcome, result.detail) == ("failed", "the push service is at no public address")
        assert taken(peer, one.address) == []

    async def test_no_result_names_the_person(
        self, adapter: WebPush, peer: WebPushPeer, settings: WebPushSettings
    ) -> None:
        address = peer.subscribe()
        secrets = [*address.removeprefix("web:").split(".", 2), address.rpartition("/")[2]]
        for status in (0, 400, 403, 404, 429, 500):
            peer.answer(status=status)
            detail = (await adapter.send(exchange(address, settings))).detail
            assert detail and not any(secret in detail for secret in secrets)
