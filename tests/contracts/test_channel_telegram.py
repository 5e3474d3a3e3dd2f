"""Telegram, against a Bot API that checks tokens, fields, markup and lengths as the documentation says."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydantic
import pytest

from services.dispatch.channels.base import Adapter, Call, Exchange, Forged, Report, Unreadable, World
from services.dispatch.channels.telegram import Telegram, TelegramSettings
from services.dispatch.rendered import Rendered
from shared import outside
from shared.settings import load
from tests.contracts.test_channels import exchange
from tests.support.telegram_peer import BLOCKED, DEACTIVATED, NOBODY, TOKEN, TelegramPeer

SECRET = "the_secret_token_of_the_webhook"
NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def running() -> Iterator[TelegramPeer]:
    with TelegramPeer() as peer:
        yield peer


@pytest.fixture
def peer(running: TelegramPeer) -> TelegramPeer:
    running.script()
    return running


@pytest.fixture
async def telegram(tmp_path: Path) -> AsyncIterator[Telegram]:
    adapter = Telegram(World(load(data_dir=tmp_path, outside_allow=("127.0.0.0/8",)), tmp_path))
    yield adapter
    await adapter.close()


def to(telegram: Telegram, peer: TelegramPeer, chat: object = 1001, **changes: Any) -> Exchange:
    settings = TelegramSettings(**{"token": TOKEN, "api": peer.origin, **changes.pop("told", {})})
    return exchange(telegram, settings=settings, address=f"telegram:{chat}", **changes)


class TestAMessage:
    async def test_is_read_as_it_was_written(self, telegram: Telegram, peer: TelegramPeer) -> None:
        """Markup, entities and what looks like either stand there as they are; the title is bold."""
        text = 'Tom & Jerry <b>unclosed <script>alert("x")</script> &amp; &lt; 5 < 6 > 4'
        result = await telegram.send(to(telegram, peer, rendered=Rendered(text=text, subject="1 < 2 & so on")))
        assert result.outcome == "sent"
        entry = peer.entries("taken")[-1]
        assert entry["plain"] == f"1 < 2 & so on\n\n{text}"
        assert entry["text"].startswith("<b>1 &lt; 2 &amp; so on</b>")
        assert entry["link_preview_options"] == {"is_disabled": True}  # a preview would count as a click
        assert result.provider_id == f"1001:{entry['message']}"

    @pytest.mark.parametrize(
        ("chat", "outcome"), [(BLOCKED, "bounced"), (DEACTIVATED, "bounced"), (NOBODY, "bounced"), (-100777, "sent")]
    )
    async def test_to_somebody_who_cannot_be_reached_bounces(
        self, telegram: Telegram, peer: TelegramPeer, chat: int, outcome: str
    ) -> None:
        result = await telegram.send(to(telegram, peer, chat))
        assert result.outcome == outcome and str(chat) not in result.detail

    @pytest.mark.parametrize(
        "address", ["crm:17", "telegram:", "telegram:@name", "telegram:01", "telegram:1 2", "1001"]
    )
    async def test_to_another_kind_of_address_is_not_sent(
        self, telegram: Telegram, peer: TelegramPeer, address: str
    ) -> None:
        before = len(peer.entries())
        one = exchange(telegram, settings=TelegramSettings(token=TOKEN, api=peer.origin), address=address)
        assert (await telegram.send(one)).outcome == "failed" and not Telegram.accepts(address)
        assert len(peer.entries()) == before

    async def test_may_be_as_long_as_telegram_allows_and_no_longer(
        self, telegram: Telegram, peer: TelegramPeer
    ) -> None:
        fits, longer = "🙂" * 2048, "🙂" * 2048 + "!"
        assert (await telegram.send(to(telegram, peer, rendered=Rendered(text=fits)))).outcome == "sent"
        before = len(peer.entries())
        result = await telegram.send(to(telegram, peer, rendered=Rendered(text=longer)))
        assert result.outcome == "failed" and "4096" in result.detail
        assert len(peer.entries()) == before

    async def test_waits_as_long_as_telegram_asks_it_to(self, telegram: Telegram, peer: TelegramPeer) -> None:
        answer = {"ok": False, "error_code": 429, "description": "Too Many Requests", "parameters": {"retry_after": 23}}
        peer.script({"status": 429, "body": answer})
        result = await telegram.send(to(telegram, peer))
        assert (result.outcome, result.retry_after) == ("retry", timedelta(seconds=23))

    async def test_with_a_token_that_is_not_accepted_waits(self, telegram: Telegram, peer: TelegramPeer) -> None:
        wrong = TOKEN.replace("AA", "ZZ")
        result = await telegram.send(to(telegram, peer, told={"token": wrong}))
        assert result.outcome == "retry" and wrong not in result.detail

    @pytest.mark.parametrize(
        ("order", "outcome"),
        [
            ({"status": 500, "after": True}, "unknown"),
            ({"status": 502, "after": True}, "unknown"),
            ({"hang_up": True, "after": True}, "unknown"),
            ({"status": 200, "body": "<html>a proxy's page</html>"}, "unknown"),
            ({"status": 400, "body": {"ok": False, "description": "Bad Request: can't parse entities"}}, "failed"),
            ({"status": 302, "headers": {"location": "http://169.254.169.254/"}}, "retry"),
        ],
    )
    async def test_is_what_the_answer_says(
        self, telegram: Telegram, peer: TelegramPeer, order: dict[str, Any], outcome: str
    ) -> None:
        peer.script(order)
        assert (await telegram.send(to(telegram, peer))).outcome == outcome

    def test_may_be_repeated_by_nobody(self) -> None:
        """The docstring's promise: there is neither a key to repeat with nor anything to ask."""
        assert not Telegram.repeatable and Telegram.ask is Adapter.ask

    async def test_to_a_telegram_that_is_silent_is_unknown(
        self, telegram: Telegram, peer: TelegramPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(telegram, "_client", outside.client(telegram.world.settings.outside_allow, seconds=0.3))
        peer.script({"silent": True, "after": True})
        assert (await telegram.send(to(telegram, peer))).outcome == "unknown"

    async def test_to_a_telegram_that_is_away_waits(self, telegram: Telegram) -> None:
        with TelegramPeer() as gone:
            pass
        result = await telegram.send(to(telegram, gone))
        assert result.outcome == "retry" and TOKEN not in result.detail

    async def test_leaves_the_token_in_no_log(
        self, telegram: Telegram, peer: TelegramPeer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It stands in the address of every request, which HTTP clients like to write down."""
        with caplog.at_level(logging.DEBUG):
            await telegram.send(to(telegram, peer))
        assert TOKEN not in caplog.text


def update(number: int = 1, **content: Any) -> bytes:
    return json.dumps({"update_id": number, **content}).encode()


def wrote(text: str, chat: str = "private", **more: Any) -> dict[str, Any]:
    someone = {"id": 1001, "is_bot": False, "first_name": "Anna"}
    return {
        "message": {
            "message_id": 7, "from": someone, "chat": {"id": 1001, "type": chat}, "date": 1_773_140_000, "text": text,
            **more,
        }
    }  # fmt: skip


def member(status: str, chat: str = "private") -> dict[str, Any]:
    bot = {"id": 123456, "is_bot": True, "first_name": "Shop"}
    change = {"old_chat_member": {"status": "member", "user": bot}, "new_chat_member": {"status": status, "user": bot}}
    return {"my_chat_member": {"chat": {"id": 1001, "type": chat}, "date": 1_773_140_000, **change}}


class TestAnUpdate:
    settings = TelegramSettings(token=TOKEN, webhook_secret=SECRET)

    async def told(self, telegram: Telegram, body: bytes, secret: str | None = SECRET, **more: Any) -> list[Report]:
        headers = {"x-telegram-bot-api-secret-token": secret} if secret is not None else {}
        call = Call("POST", headers, {}, body, NOW, more.get("settings", self.settings))
        return (await telegram.receive(call)).reports

    async def test_of_somebody_who_blocked_the_bot_takes_consent_back(self, telegram: Telegram) -> None:
        (report,) = await self.told(telegram, update(5, **member("kicked")))
        assert (report.what, report.address, report.id) == ("unsubscribed", "telegram:1001", "update/5")
        assert report.at == datetime.fromtimestamp(1_773_140_000, UTC)

    @pytest.mark.parametrize("text", ["/stop", "/STOP", "/stop@shop_bot"])
    async def test_of_somebody_who_wrote_stop_takes_consent_back(self, telegram: Telegram, text: str) -> None:
        (report,) = await self.told(telegram, update(**wrote(text)))
        assert (report.what, report.address) == ("unsubscribed", "telegram:1001")

    async def test_of_an_answer_names_our_message(self, telegram: Telegram) -> None:
        (report,) = await self.told(telegram, update(**wrote("yes please", reply_to_message={"message_id": 101})))
        assert (report.what, report.provider_id) == ("replied", "1001:101")
        assert "yes" not in str(report)  # what people write is theirs

    @pytest.mark.parametrize(
        "content",
        [
            member("member"),
            member("kicked", chat="group"),
            wrote("/stop", chat="supergroup"),
            {"edited_message": wrote("/stop")["message"]},
            {"poll": {"id": "1"}},
            wrote("hello"),
            wrote("/start a1B2-c3_D4"),
        ],
    )
    async def test_of_anything_else_tells_nothing(self, telegram: Telegram, content: dict[str, Any]) -> None:
        assert await self.told(telegram, update(**content)) == []

    async def test_twice_is_the_same_report(self, telegram: Telegram) -> None:
        body = update(9, **member("kicked"))
        assert await self.told(telegram, body) == await self.told(telegram, body)

    @pytest.mark.parametrize("secret", [None, "", SECRET + "x", SECRET[:-1], "ключ"])
    async def test_without_the_secret_is_not_believed(self, telegram: Telegram, secret: str | None) -> None:
        with pytest.raises(Forged, match="webhook_secret"):
            await self.told(telegram, update(**member("kicked")), secret)

    async def test_is_not_believed_as_long_as_there_is_no_secret(self, telegram: Telegram) -> None:
        for settings in (None, TelegramSettings(token=TOKEN)):
            with pytest.raises(Forged):
                await self.told(telegram, update(**member("kicked")), "", settings=settings)

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"update_id": "x"}', b'{"message": {}}', b"\xff", b"[" * 100_000])
    async def test_that_cannot_be_read_is_said(self, telegram: Telegram, body: bytes) -> None:
        with pytest.raises(Unreadable, match="update"):
            await self.told(telegram, body)

    async def test_from_the_end_of_time_happened_now(self, telegram: Telegram) -> None:
        body = update(**member("kicked")).replace(b"1773140000", b"99999999999999")
        (report,) = await self.told(telegram, body)
        assert report.at == NOW


@pytest.mark.parametrize(
    "wrong", [{"token": "no token"}, {"webhook_secret": "short"}, {"api": "https://x.example/path"}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(pydantic.ValidationError) as refused:
        TelegramSettings(**{"token": TOKEN, **wrong})  # type: ignore[arg-type]
    assert TOKEN not in str(refused.value)
