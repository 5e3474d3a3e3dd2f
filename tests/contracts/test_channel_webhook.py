"""The signed webhook, against a system that verifies with the Standard Webhooks project's own library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pydantic
import pytest

from services.dispatch.channels.base import Call, Forged, Report, Unreadable, World
from services.dispatch.channels.signed_hook import HookSettings
from services.dispatch.channels.webhook import Webhook
from shared import outside
from shared.settings import load
from tests.contracts.test_channels import exchange
from tests.support.webhook_peer import SECRET, WebhookPeer, call_back

OTHER = "whsec_" + "YW5vdGhlciBzZWNyZXQsIG9mIHNvbWVib2R5IGVsc2UsIGxvbmc="
MESSAGE = uuid4()


@pytest.fixture(scope="module")
def running() -> Iterator[WebhookPeer]:
    with WebhookPeer() as peer:
        yield peer


@pytest.fixture
def peer(running: WebhookPeer) -> WebhookPeer:
    running.script()
    return running


@pytest.fixture
async def hook(tmp_path: Path) -> AsyncIterator[Webhook]:
    adapter = Webhook(World(load(data_dir=tmp_path, outside_allow=("127.0.0.0/8",)), tmp_path))
    yield adapter
    await adapter.close()


def told(peer: WebhookPeer, **more: Any) -> HookSettings:
    return HookSettings(**{"url": peer.url, "secret": SECRET, **more})


def taken(peer: WebhookPeer, message: object) -> list[dict[str, Any]]:
    return [body["data"] for body in peer.taken() if body["data"]["message"] == str(message)]


def one_of(hook: Webhook, peer: WebhookPeer, **changes: Any) -> Any:
    message = uuid4()
    return exchange(hook, message, key=str(message), settings=told(peer), **changes)


class TestAMessage:
    async def test_arrives_signed_and_whole(self, hook: Webhook, peer: WebhookPeer) -> None:
        one = one_of(hook, peer, valid_until=datetime(2026, 3, 11, tzinfo=UTC))
        result = await hook.send(one)
        assert (result.outcome, result.provider_id, result.charged) == ("sent", f"ours-{one.key}", Decimal("0.40"))
        (data,) = taken(peer, one.message)
        assert data["to"] == "tg-1" and data["text"] == "Hello, this is for you.\n" and data["channel"] == "messenger"
        assert data["links"] == {"unsubscribe": "https://shop.example/u/token"}
        assert data["valid_until"].startswith("2026-03-11T00:00")

    async def test_with_another_secret_waits(self, hook: Webhook, peer: WebhookPeer) -> None:
        one = exchange(hook, settings=told(peer, secret=OTHER))
        assert (await hook.send(one)).outcome == "retry"
        assert taken(peer, one.message) == []

    async def test_is_signed_with_both_secrets_while_they_change(self, hook: Webhook, peer: WebhookPeer) -> None:
        one = exchange(hook, key=str(uuid4()), settings=told(peer, secret=OTHER, former_secret=SECRET))
        assert (await hook.send(one)).outcome == "sent"

    @pytest.mark.parametrize(
        ("order", "outcome"),
        [
            ({"status": 400}, "failed"),
            ({"status": 422}, "failed"),
            ({"status": 410}, "bounced"),
            ({"status": 404}, "retry"),
            ({"status": 302, "headers": {"location": "http://169.254.169.254/"}}, "retry"),
            ({"status": 503}, "retry"),
            ({"status": 500}, "unknown"),
            ({"status": 502}, "unknown"),
            ({"hang_up": True}, "unknown"),
            ({"status": 200, "body": "ok"}, "sent"),
            ({"status": 200, "body": '{"cost": "-5"}'}, "sent"),
        ],
    )  # fmt: skip
    async def test_is_what_the_answer_says(
        self, hook: Webhook, peer: WebhookPeer, order: dict[str, Any], outcome: str
    ) -> None:
        peer.script(order)
        result = await hook.send(one_of(hook, peer))
        assert result.outcome == outcome and result.charged is None

    @pytest.mark.parametrize("status", [429, 503])
    async def test_waits_as_long_as_it_is_asked_to(self, hook: Webhook, peer: WebhookPeer, status: int) -> None:
        peer.script({"status": status, "headers": {"retry-after": "7"}})
        one = one_of(hook, peer)
        result = await hook.send(one)
        assert (result.outcome, result.retry_after) == ("retry", timedelta(seconds=7))
        assert taken(peer, one.message) == []

    @pytest.mark.parametrize("order", [{"status": 500, "after": True}, {"hang_up": True, "after": True}])
    async def test_that_was_taken_before_the_error_reaches_the_person_once(
        self, hook: Webhook, peer: WebhookPeer, order: dict[str, Any]
    ) -> None:
        """The docstring's promise: `repeatable`."""
        peer.script(order)
        one = one_of(hook, peer)
        assert (await hook.send(one)).outcome == "unknown" and hook.repeatable
        assert (await hook.send(one)).outcome == "sent"
        assert len(taken(peer, one.message)) == 1 and len(peer.entries("repeated")) >= 1

    async def test_to_a_system_that_is_silent_is_unknown(
        self, hook: Webhook, peer: WebhookPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The connection stands and nothing comes: half-open."""
        quick = outside.client(hook.world.settings.outside_allow, seconds=0.3)
        monkeypatch.setattr(hook, "_client", quick)
        peer.script({"silent": True, "after": True})
        assert (await hook.send(one_of(hook, peer))).outcome == "unknown"

    async def test_to_a_system_that_is_away_waits(self, hook: Webhook) -> None:
        with WebhookPeer() as peer:
            settings = told(peer)
        assert (await hook.send(exchange(hook, settings=settings))).outcome == "retry"

    async def test_to_a_system_in_our_own_network_is_not_sent(self, tmp_path: Path, peer: WebhookPeer) -> None:
        guarded = Webhook(World(load(data_dir=tmp_path), tmp_path))
        one = exchange(guarded, key=str(uuid4()), settings=told(peer))
        assert (await guarded.send(one)).outcome == "retry"
        assert taken(peer, one.message) == []
        await guarded.close()


class TestWhatComesBack:
    async def back(
        self, hook: Webhook, headers: dict[str, str], body: bytes, settings: Any = None, at: datetime | None = None
    ) -> list[Report]:
        settings = settings or HookSettings(url="https://shop.example/x", secret=SECRET)
        return (await hook.receive(Call("POST", headers, {}, body, at or datetime.now(UTC), settings))).reports

    @pytest.mark.parametrize(
        "what",
        ["delivered", "failed", "bounced", "complained", "opened", "clicked", "replied", "unsubscribed"],
    )  # fmt: skip
    async def test_is_a_report(self, hook: Webhook, what: Any) -> None:
        signed = call_back(f"message.{what}", {"message": str(MESSAGE), "code": "E-7", "cost": "0.35"}, id="msg_7")
        (report,) = await self.back(hook, *signed)
        assert (report.what, report.message, report.id) == (what, MESSAGE, "msg_7")
        assert (report.detail, report.charged) == ("E-7", Decimal("0.35"))

    async def test_twice_is_the_same_report(self, hook: Webhook) -> None:
        signed = call_back("message.delivered", {"message": str(MESSAGE)})
        assert await self.back(hook, *signed) == await self.back(hook, *signed)

    async def test_out_of_order_says_when_it_happened(self, hook: Webhook) -> None:
        now = datetime.now(UTC)
        later = await self.back(hook, *call_back("message.replied", {"message": str(MESSAGE)}, id="b", at=now))
        earlier = await self.back(
            hook, *call_back("message.delivered", {"message": str(MESSAGE)}, id="a", at=now - timedelta(seconds=60))
        )
        assert earlier[0].at is not None and later[0].at is not None and earlier[0].at < later[0].at

    async def test_replayed_later_is_not_believed(self, hook: Webhook) -> None:
        now = datetime.now(UTC)
        signed = call_back("message.delivered", {"message": str(MESSAGE)}, at=now)
        for off in (timedelta(minutes=6), timedelta(minutes=-6)):
            with pytest.raises(Forged, match="300 s"):
                await self.back(hook, *signed, at=now + off)

    @pytest.mark.parametrize(
        "change",
        [
            {"webhook-id": "msg_2"},
            {"webhook-timestamp": str(int(datetime.now(UTC).timestamp()) - 1)},
            {"webhook-timestamp": "soon"},
            {"webhook-timestamp": "²"},
            {"webhook-signature": ""},
            {"webhook-signature": "v1,"},
            {"webhook-signature": "v1,nonsense"},
            {"webhook-signature": "v1a," + "A" * 44},
            {"webhook-signature": "v1,ключ"},
        ],
    )
    async def test_changed_on_the_way_is_not_believed(self, hook: Webhook, change: dict[str, str]) -> None:
        headers, body = call_back("message.delivered", {"message": str(MESSAGE)})
        with pytest.raises(Forged):
            await self.back(hook, {**headers, **change}, body)

    async def test_with_another_body_is_not_believed(self, hook: Webhook) -> None:
        headers, body = call_back("message.delivered", {"message": str(MESSAGE)})
        with pytest.raises(Forged, match="no signature"):
            await self.back(hook, headers, body.replace(b"delivered", b"unsubscribed"))

    async def test_signed_with_anothers_secret_is_not_believed(self, hook: Webhook) -> None:
        with pytest.raises(Forged):
            await self.back(hook, *call_back("message.unsubscribed", {"message": str(MESSAGE)}, secret=OTHER))

    async def test_of_our_own_sending_is_no_report(self, hook: Webhook, peer: WebhookPeer) -> None:
        """Reflected: what we signed ourselves, with the same secret."""
        signed = call_back("message.send", {"message": str(MESSAGE)})
        with pytest.raises(Unreadable, match="type"):
            await self.back(hook, *signed)

    @pytest.mark.parametrize("which", [SECRET, OTHER])
    async def test_is_believed_with_either_secret_while_they_change(self, hook: Webhook, which: str) -> None:
        both = HookSettings(url="https://shop.example/x", secret=OTHER, former_secret=SECRET)
        assert await self.back(hook, *call_back("message.delivered", {"message": str(MESSAGE)}, secret=which), both)

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            ({}, "message"),
            ({"message": "not an id"}, "message"),
            ({"message": str(MESSAGE), "code": "anna@example.com"}, "code"),
            ({"message": str(MESSAGE), "cost": "-1"}, "cost"),
            ({"message": str(MESSAGE), "cost": "NaN"}, "cost"),
        ],
    )
    async def test_that_cannot_be_read_says_which_field(self, hook: Webhook, data: dict[str, Any], says: str) -> None:
        with pytest.raises(Unreadable, match=says):
            await self.back(hook, *call_back("message.delivered", data))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"url": "http://shop.example/x"}, "https"),
        ({"url": "ftp://shop.example/x"}, "must look like"),
        ({"url": "https://user:password@shop.example/x"}, "must look like"),
        ({"secret": "plain"}, "whsec_"),
        ({"secret": "whsec_c2hvcnQ="}, "24 to 64"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(wrong: dict[str, str], says: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=says):
        HookSettings(**{"url": "https://shop.example/x", "secret": SECRET, **wrong})  # type: ignore[arg-type]
