"""Firebase Cloud Messaging against Google's token endpoint and API, which check the assertion and the message."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pydantic import ValidationError

from services.dispatch.channels.base import Adapter, StartBy, TooLate
from services.dispatch.channels.fcm import Fcm, FcmSettings
from services.dispatch.rendered import Rendered
from tests.support.channel_harnesses.fcm import told
from tests.support.fcm_peer import EMAIL, FcmPeer, error_body
from tests.support.push_peer import pem
from tests.support.pushing import CLICK, exchange, impatient
from tests.support.wait import until


@pytest.fixture(scope="module")
def peer() -> Iterator[FcmPeer]:
    with FcmPeer() as made:
        yield made


@pytest.fixture
async def adapter(tmp_path: Path) -> AsyncIterator[Fcm]:
    made = Fcm(impatient(tmp_path))
    yield made
    await made.close()


@pytest.fixture
def settings(peer: FcmPeer) -> FcmSettings:
    return told(peer)


def taken(peer: FcmPeer, token: str) -> list[dict[str, Any]]:
    return [push["message"] for push in peer.pushes() if push["message"]["token"] == token]


class TestWhatTheAppGets:
    async def test_text_tracked_link_and_the_messages_id(
        self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings
    ) -> None:
        one = exchange(peer.register(), settings)
        result = await adapter.send(one)
        assert result.outcome == "sent" and result.provider_id.startswith("0:")
        (message,) = taken(peer, one.address)
        assert message["notification"] == {
            "title": "You left something behind",
            "body": "Kind of Blue is waiting in your cart",
        }
        assert message["data"] == {"message": str(one.message), "url": CLICK}
        assert message["webpush"]["fcm_options"] == {"link": CLICK}

    async def test_marketing_waits_for_the_phone_to_wake_and_a_receipt_does_not(
        self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings
    ) -> None:
        token = peer.register()
        for purpose in ("marketing", "transactional"):
            await adapter.send(exchange(token, settings, purpose=purpose))
        marketing, receipt = taken(peer, token)
        assert (marketing["android"]["priority"], receipt["android"]["priority"]) == ("NORMAL", "HIGH")
        assert marketing["android"]["ttl"] == "21600s"  # as long as the message is good

    async def test_a_repeat_replaces_the_first_on_the_screen(
        self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings
    ) -> None:
        token, message = peer.register(), uuid4()
        for attempt in (1, 2):
            await adapter.send(exchange(token, settings, message, attempt=attempt))
        assert [m["android"]["notification"]["tag"] for m in taken(peer, token)] == [str(message)] * 2
        assert all("collapse_key" not in m["android"] for m in taken(peer, token))  # a phone keeps four of them only

    async def test_a_text_that_is_too_long_is_cut(self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings) -> None:
        one = exchange(peer.register(), settings, rendered=Rendered(text="👋" * 1600))
        assert (await adapter.send(one)).outcome == "sent"
        body = taken(peer, one.address)[0]["notification"]["body"]
        assert body.endswith("👋…") and len(body) > 600

    async def test_a_token_may_say_whose_it_is(self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings) -> None:
        token = peer.register()
        await adapter.send(exchange(f"fcm:{token}", settings))
        assert len(taken(peer, token)) == 1


class TestTheAccessToken:
    async def test_is_asked_for_once_and_used_again(self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings) -> None:
        token, before = peer.register(), len(peer.entries("token"))
        for _ in range(3):
            assert (await adapter.send(exchange(token, settings))).outcome == "sent"
        asked = peer.entries("token")[before:]
        assert [entry["issuer"] for entry in asked] == [EMAIL]

    async def test_is_renewed_before_it_expires(self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings) -> None:
        token, before = peer.register(), len(peer.entries("token"))
        peer.access_tokens_last(0)  # expired as soon as it is there
        assert (await adapter.send(exchange(token, settings))).outcome == "retry"
        peer.access_tokens_last(3600)
        assert (await adapter.send(exchange(token, settings))).outcome == "sent"
        assert len(peer.entries("token")) == before + 3  # two that were refused at once, and the good one

    async def test_that_was_taken_back_is_replaced_and_the_push_goes_out_once(
        self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings
    ) -> None:
        token = peer.register()
        await adapter.send(exchange(token, settings))
        peer.take_back_tokens()
        assert (await adapter.send(exchange(token, settings))).outcome == "sent"
        assert len(taken(peer, token)) == 2

    async def test_that_is_not_given_means_that_nothing_was_sent(
        self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings
    ) -> None:
        stranger = pem(rsa.generate_private_key(65537, 2048)).decode()
        wrong = told(peer, service_account=peer.service_account(private_key=stranger))
        one = exchange(peer.register(), wrong)
        result = await adapter.send(one)
        assert (result.outcome, result.detail) == ("retry", "no access token: invalid_grant (400)")
        assert peer.refusals()[-1] == "assertion: the signature is wrong"
        assert taken(peer, one.address) == []

    async def test_asked_for_too_long_leaves_the_push_unsent(
        self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings
    ) -> None:
        looks = iter([0.0, 10.0])  # in time to ask for the token, too late for the push
        one = exchange(peer.register(), settings, start_by=StartBy(5.0, lambda: next(looks)))
        with pytest.raises(TooLate):
            await adapter.send(one)
        assert taken(peer, one.address) == []


class TestWhatAnAnswerMeans:
    async def test_an_app_that_was_removed_bounces(self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings) -> None:
        token = peer.register()
        peer.uninstall(token)
        assert (await adapter.send(exchange(token, settings))).outcome == "bounced"

    async def test_what_is_no_token_bounces(self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings) -> None:
        assert (await adapter.send(exchange(peer.register()[:-1], settings))).outcome == "bounced"

    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (error_body(400, "INVALID_ARGUMENT", violations=["message.token"]), "bounced"),
            # A message of ours that is wrong says nothing about the person's phone.
            (error_body(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"), "failed"),
            (error_body(400, "INVALID_ARGUMENT", violations=["message.android.ttl"]), "failed"),
            # The account of another project: if that bounced, everybody's token would be dropped.
            (error_body(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"), "failed"),
            (error_body(403, "PERMISSION_DENIED"), "retry"),
            (error_body(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"), "retry"),
            (error_body(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"), "retry"),
            (error_body(503, "UNAVAILABLE", "UNAVAILABLE"), "retry"),
            (error_body(500, "INTERNAL", "INTERNAL"), "unknown"),
            ({"error": {"code": 502}}, "unknown"),
            ({"error": {"code": 503}}, "unknown"),
            (error_body(404, "NOT_FOUND", "UNREGISTERED"), "bounced"),
            # Without Firebase's own word it is the project that is not found: nobody's token is dead.
            (error_body(404, "NOT_FOUND"), "retry"),
            (error_body(404, "UNREGISTERED"), "retry"),
            ({"error": {"code": 404, "status": "NOT_FOUND", "details": [{"errorCode": "UNREGISTERED"}]}}, "retry"),
            ({"error": {"code": 404}}, "retry"),
            ({"error": {"code": 400, "details": ["?", {"fieldViolations": "?"}], "status": 7}}, "failed"),
        ],
    )
    async def test_an_error_means(
        self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings, error: dict[str, Any], outcome: str
    ) -> None:
        one = exchange(peer.register(), settings)
        peer.answer(status=error["error"]["code"], body=error)
        assert (await adapter.send(one)).outcome == outcome
        assert taken(peer, one.address) == []

    async def test_over_the_quota_it_waits_as_long_as_firebase_says(
        self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings
    ) -> None:
        error = error_body(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
        peer.answer(status=429, headers={"retry-after": "42"}, body=error)
        result = await adapter.send(exchange(peer.register(), settings))
        assert (result.retry_after, result.for_one) == (timedelta(seconds=42), False)
        peer.answer(status=429, body=error)  # without saying how long: too many to this phone
        result = await adapter.send(exchange(peer.register(), settings))
        assert (result.retry_after, result.for_one) == (timedelta(minutes=1), True)

    async def test_no_result_names_the_person_or_the_secret(
        self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings
    ) -> None:
        token = peer.register()
        for status in (0, 400, 403, 404, 500):
            error = error_body(status, "INVALID_ARGUMENT", violations=["message.data"])
            error["error"]["message"] = f"{token} is wrong"
            peer.answer(status=status, body=error)
            assert token not in (await adapter.send(exchange(token, settings))).detail


class TestWhenNobodyKnows:
    """Neither repeatable nor asked: whatever may have been taken is unknown, and only that."""

    def test_it_is_declared(self) -> None:
        assert not Fcm.repeatable and Fcm.ask is Adapter.ask

    @pytest.mark.parametrize("mood", [{"status": 500}, {"hang": True}])
    async def test_a_push_that_was_taken_before_the_fault_is_unknown(
        self, adapter: Fcm, peer: FcmPeer, settings: FcmSettings, mood: dict[str, Any]
    ) -> None:
        one = exchange(peer.register(), settings)
        peer.answer(take=True, **mood)
        assert (await adapter.send(one)).outcome == "unknown"
        assert len(taken(peer, one.address)) == 1
        assert (await adapter.send(exchange(one.address, settings))).outcome == "sent"

    async def test_a_line_that_stands_with_nobody_on_it_leaves_the_push_unknown(self, adapter: Fcm) -> None:
        with FcmPeer() as peer:
            token, settings = peer.register(), told(peer)
            assert (await adapter.send(exchange(token, settings))).outcome == "sent"
            peer.freeze()
            assert (await adapter.send(exchange(token, settings))).outcome == "unknown"
            peer.thaw()
            await until(
                lambda: len(taken(peer, token)) == 2, what="the push that nobody answered for is taken after all"
            )

    async def test_a_line_that_breaks_is_unknown_and_a_server_that_is_away_is_tried_later(self, adapter: Fcm) -> None:
        with FcmPeer() as peer:
            one = exchange(peer.register(), told(peer))
            peer.answer(take=True, die=True)
            assert (await adapter.send(one)).outcome == "unknown"
            assert (await adapter.send(one)).outcome == "retry"
            peer.start()
            assert (await adapter.send(one)).outcome == "sent"


class TestSettings:
    @pytest.mark.parametrize(
        ("account", "problem"),
        [
            ("{}", "is not the JSON file of one"),
            ("-----BEGIN", "is not the JSON file of one"),
            ({"private_key": "x"}, "no RSA key in PEM"),
            ({"private_key": pem(ec.generate_private_key(ec.SECP256R1())).decode()}, "no RSA key in PEM"),
            ({"token_uri": "http://oauth2.googleapis.com/token"}, "no https address"),
        ],
    )
    def test_that_cannot_work_are_refused(self, peer: FcmPeer, account: str | dict[str, str], problem: str) -> None:
        text = account if isinstance(account, str) else peer.service_account(**account)
        with pytest.raises(ValidationError, match=problem):
            told(peer, service_account=text)

    def test_do_not_show_the_key(self, peer: FcmPeer, settings: FcmSettings) -> None:
        key = json.loads(peer.service_account())["private_key"].splitlines()[1]
        assert key not in repr(settings) + settings.model_dump_json()
