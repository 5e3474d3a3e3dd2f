"""Messengers by Telegram's Bot API. An address is `telegram:<chat id>`: an external id of the type *telegram*.

`sendMessage` knows no idempotency key and a bot cannot ask what it has sent: when the answer does not come, or comes as
5xx, the outcome is *unknown*, and neither `repeatable` nor `ask`.

Telegram's calls (`setWebhook` with `secret_token`, or passed on by the program that takes them) tell who blocked the bot,
who wrote /stop, and who answered to one of our messages. They link nobody: that an external id is somebody's chat, the
shop's server says.
"""

from __future__ import annotations

import hmac
import html
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from pydantic import ConfigDict, Field, SecretStr, field_validator

from services.dispatch.channels.base import (
    Adapter,
    AdapterSettings,
    Call,
    Exchange,
    Forged,
    Received,
    Report,
    Result,
    Unreadable,
    World,
)
from shared.outside import FAILED, NOT_SENT, Client, Response

PREFIX = "telegram:"
MOST_CHARACTERS = 4096  # UTF-16 code units, after the markup is taken out
_ADDRESS = re.compile(r"telegram:(-?[1-9]\d{0,18})")
_TOKEN = re.compile(r"\d{1,20}:[A-Za-z0-9_-]{20,100}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{16,256}")
# Of 400, those that speak of the person; 403 always does (blocked, deactivated, never began a conversation).
_NOBODY = ("chat not found", "user not found", "peer_id_invalid", "user_is_deactivated")
_STOP = re.compile(r"/stop(?:@\w+)?\s*", re.IGNORECASE)


class TelegramSettings(AdapterSettings):
    """A bot."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    token: SecretStr
    """What BotFather gave: `123456:ABC…`."""
    webhook_secret: SecretStr | None = None
    """`secret_token` of setWebhook: 16 to 256 of A-Z a-z 0-9 _ -. Without it no call from Telegram is believed."""
    api: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$")] = "https://api.telegram.org"
    """Another address for a Bot API server of one's own."""

    @field_validator("token")
    @classmethod
    def _token(cls, value: SecretStr) -> SecretStr:
        if not _TOKEN.fullmatch(value.get_secret_value()):
            raise ValueError("must look like 123456:ABC…, as BotFather gave it")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _SECRET.fullmatch(value.get_secret_value()):
            raise ValueError("must be 16 to 256 of the characters A-Z a-z 0-9 _ -")
        return value


class Telegram(Adapter):
    """A bot that writes to people who have begun a conversation with it."""

    name = "telegram"
    channel = "messenger"
    address_kind = "external_id"
    part = "messenger"
    settings_type = TelegramSettings
    timeout = timedelta(seconds=30)
    repeatable = False
    sessions = 8
    preference = 10

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._client: Client | None = None

    @classmethod
    def accepts(cls, address: str) -> bool:
        return _ADDRESS.fullmatch(address) is not None

    async def send(self, exchange: Exchange) -> Result:
        settings = exchange.settings
        assert isinstance(settings, TelegramSettings)
        address = _ADDRESS.fullmatch(exchange.address)
        if address is None:
            return Result("failed", f"the address is not {PREFIX}<chat id>")
        if _length(exchange) > MOST_CHARACTERS:
            return Result("failed", f"the text has more than {MOST_CHARACTERS} characters")
        request = {
            "chat_id": int(address.group(1)),
            "text": marked_up(exchange),
            "parse_mode": "HTML",
            # A preview would be fetched by Telegram: that is no click.
            "link_preview_options": {"is_disabled": True},
        }
        if self._client is None:
            self._client = self.world.http()
        url = f"{settings.api}/bot{settings.token.get_secret_value()}/sendMessage"
        exchange.check_start()
        try:
            response = await self._client.post(
                url, content=msgspec.json.encode(request), headers={"content-type": "application/json"}
            )
        except NOT_SENT as problem:
            return Result("retry", f"Telegram cannot be reached: {type(problem).__name__}")
        except FAILED as problem:
            return Result("unknown", f"no answer: {type(problem).__name__}")
        return judged(response)

    async def receive(self, call: Call) -> Received:
        """An update. Telegram repeats it until it hears 2xx; its `update_id` stays the same."""
        settings = call.settings
        if not isinstance(settings, TelegramSettings) or settings.webhook_secret is None:
            raise Forged("no webhook_secret is set: no call is believed")
        shown = call.headers.get("x-telegram-bot-api-secret-token", "")
        if not hmac.compare_digest(shown.encode(), settings.webhook_secret.get_secret_value().encode()):
            raise Forged("the header X-Telegram-Bot-Api-Secret-Token does not show the webhook_secret")
        try:
            update = _UPDATE.decode(call.body)
        except msgspec.ValidationError as problem:
            raise Unreadable(f"the update cannot be read: {problem}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Unreadable("the update is no JSON") from None
        return Received(reports_of(update, call.at))

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()


def marked_up(exchange: Exchange) -> str:
    """The title in bold, then the text; whatever looks like markup in either stands there as it is."""
    text = html.escape(exchange.rendered.text.strip(), quote=False)
    title = html.escape(exchange.rendered.subject.strip(), quote=False)
    return f"<b>{title}</b>\n\n{text}" if title else text


def _length(exchange: Exchange) -> int:
    plain = f"{exchange.rendered.subject.strip()}\n\n{exchange.rendered.text.strip()}".strip()
    return len(plain.encode("utf-16-le")) // 2


class _Parameters(msgspec.Struct):
    retry_after: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Sent(msgspec.Struct):
    message_id: int
    chat: _Chat


class _Chat(msgspec.Struct):
    id: int
    type: str = "private"


class _Answer(msgspec.Struct):
    ok: bool
    result: _Sent | None = None
    description: str = ""
    parameters: _Parameters | None = None


class _Member(msgspec.Struct):
    status: str


class _MemberUpdate(msgspec.Struct):
    chat: _Chat
    date: int
    new_chat_member: _Member


class _Quoted(msgspec.Struct):
    message_id: int


class _Message(msgspec.Struct):
    message_id: int
    chat: _Chat
    date: int
    text: str = ""
    reply_to_message: _Quoted | None = None


class _Update(msgspec.Struct):
    update_id: int
    message: _Message | None = None
    my_chat_member: _MemberUpdate | None = None


_ANSWER, _UPDATE = msgspec.json.Decoder(_Answer), msgspec.json.Decoder(_Update)


def judged(response: Response) -> Result:
    """What Telegram's answer means. Its descriptions go no further than here: they may quote."""
    status, detail = response.status_code, f"HTTP {response.status_code}"
    answer = _read(response.content)
    if 200 <= status < 300:
        if answer is None or not answer.ok or answer.result is None:
            return Result("unknown", "an answer that is none of Telegram's")
        return Result("sent", detail, provider_id=provider_id(answer.result.chat.id, answer.result.message_id))
    if status == 429:
        wait = answer.parameters.retry_after if answer and answer.parameters else None
        return Result("retry", detail, retry_after=timedelta(seconds=min(wait, 86_400)) if wait is not None else None)
    if status in (401, 404):
        return Result("retry", f"{detail}: the bot's token is not accepted")
    if status == 403:
        return Result("bounced", f"{detail}: the bot may not write to this person")
    said = answer.description.lower() if answer else ""
    if status == 400 and any(phrase in said for phrase in _NOBODY):
        return Result("bounced", f"{detail}: there is no such chat")
    return Result("unknown" if status >= 500 else "retry" if 300 <= status < 400 else "failed", detail)


def _read(content: bytes) -> _Answer | None:
    try:
        return _ANSWER.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def provider_id(chat: int, message: int) -> str:
    """What a message of ours is called: numbers of messages count within a chat."""
    return f"{chat}:{message}"


def reports_of(update: _Update, now: datetime) -> list[Report]:
    """What an update tells; nothing for groups, edits, messages that answer none of ours, and everything else."""
    id = f"update/{update.update_id}"
    member = update.my_chat_member
    if member is not None and member.chat.type == "private":
        if member.new_chat_member.status not in ("kicked", "left"):
            return []
        address = f"{PREFIX}{member.chat.id}"
        return [Report("unsubscribed", id, address=address, at=_time(member.date, now), detail="blocked the bot")]
    message = update.message
    if message is None or message.chat.type != "private":
        return []
    at, address = _time(message.date, now), f"{PREFIX}{message.chat.id}"
    if _STOP.fullmatch(message.text):
        return [Report("unsubscribed", id, address=address, at=at, detail="wrote /stop")]
    if message.reply_to_message is not None:
        ours = provider_id(message.chat.id, message.reply_to_message.message_id)
        return [Report("replied", id, provider_id=ours, at=at)]
    return []


def _time(seconds: int, now: datetime) -> datetime:
    try:
        return min(datetime.fromtimestamp(seconds, UTC), now)
    except (ValueError, OverflowError, OSError):
        return now


ADAPTER = Telegram
