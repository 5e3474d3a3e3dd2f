"""Providers of every channel but e-mail: told by API with secrets that must not be logged, they take a message to an address that
must not be logged, refuse one with that address in their answer, break off, call back, and are gone."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from services.dispatch.adapter_settings import split
from services.dispatch.channels.base import AdapterSettings
from services.dispatch.channels.signed_hook import HookSettings
from services.dispatch.channels.sms_gateway import SmsGatewaySettings
from services.dispatch.channels.telegram import TelegramSettings
from tests.support.apns_peer import ApnsPeer
from tests.support.channel_harnesses import apns, fcm, smpp, web_push
from tests.support.fcm_peer import FcmPeer
from tests.support.peer_process import PeerProcess
from tests.support.smpp_peer import SmppPeer
from tests.support.sms_gateway_peer import LOGINS, PASSWORD, SmsGatewayPeer
from tests.support.telegram_peer import TOKEN, TelegramPeer
from tests.support.web_push_peer import WebPushPeer
from tests.support.webhook_peer import SECRET, WebhookPeer, call_back

PHONE, CHAT, CUSTOMER = "+79991234567", "telegram:70112233445", "crm:zkanarejka-customer"
HOOK_SECRET = "zkanarejka-webhook-secret-0123"
LONG_ENOUGH = re.compile(r"[\w+/=-]{30,}")


@dataclass(frozen=True)
class Provider:
    """`refuse(words)`: the next message is refused with these words; `tear`: the next line is cut in the middle."""

    channel: str
    adapter: str
    settings: AdapterSettings
    address: str
    peer: PeerProcess
    refuse: Callable[[str], None]
    tear: Callable[[], None]

    @property
    def document(self) -> dict[str, Any]:
        """As the API takes it."""
        public, secrets = split(self.settings)
        return {**public, **secrets}

    @property
    def canaries(self) -> list[str]:
        """What no log may have: parts of the address and of each secret (of keys, their lines)."""
        _, secrets = split(self.settings)
        found = [self.address.partition(":")[2] if self.channel == "messenger" else self.address]
        for secret in secrets.values():
            value = json.loads(secret)["private_key"] if secret.startswith("{") else secret
            found += LONG_ENOUGH.findall(value) or [value]
        return found


@contextmanager
def providers() -> Iterator[list[Provider]]:
    """All of them, each a process of its own."""
    with ExitStack() as stack:

        def start(peer: Any) -> Any:
            return stack.enter_context(peer)

        gateway, centre, bot = start(SmsGatewayPeer()), start(SmppPeer()), start(TelegramPeer())
        google, apple, browsers = start(FcmPeer()), start(ApnsPeer()), start(WebPushPeer())
        shop, desk = start(WebhookPeer()), start(WebhookPeer())
        account = {"preset": "twilio", "server": gateway.url, "login": LOGINS["twilio"], "sender": "+15005550006"}
        yield [
            Provider(
                "sms",
                "sms-gateway",
                SmsGatewaySettings(**account, password=PASSWORD, webhook_secret=HOOK_SECRET),
                PHONE,
                gateway,
                lambda words: gateway.behave(garbage=words),
                lambda: gateway.behave(garbage="", hang_up=True),
            ),
            Provider(
                "sms",
                "smpp",
                smpp.told(centre),
                PHONE,
                centre,
                lambda _words: centre.behave(submit_statuses=[0x0B]),
                lambda: centre.behave(hang_up=True),
            ),
            _push("fcm", google, fcm.told(google), google.register()),
            _push("apns", apple, apns.told(apple), apple.register()),
            _push("web-push", browsers, web_push.told(browsers), browsers.subscribe()),
            _http(
                "messenger", "telegram", bot, TelegramSettings(token=TOKEN, webhook_secret=HOOK_SECRET, api=bot.origin)
            ),
            _http("messenger", "webhook", shop, HookSettings(url=shop.url, secret=SECRET)),
            _http("call", "call-task", desk, HookSettings(url=desk.url, secret=SECRET)),
        ]


def _push(name: str, peer: Any, settings: AdapterSettings, address: str) -> Provider:
    def refuse(words: str) -> None:
        peer.answer(status=400, body={"reason": words, "error": {"code": 400, "status": "X", "message": words}})

    return Provider("push", name, settings, address, peer, refuse, lambda: peer.answer(die=True, take=True))


def _http(channel: str, name: str, peer: Any, settings: AdapterSettings) -> Provider:
    address = {"telegram": CHAT, "webhook": CUSTOMER, "call-task": PHONE}[name]

    def refuse(words: str) -> None:
        peer.script({"status": 400, "body": {"ok": False, "error_code": 400, "description": words}})

    return Provider(channel, name, settings, address, peer, refuse, lambda: peer.script({"hang_up": True}))


async def drive(http: httpx.AsyncClient, bearer: dict[str, str], given: list[Provider], word: str) -> None:
    """Everything that may happen to each of them."""
    for provider in given:
        await _drive(http, bearer, provider, word)


async def _drive(http: httpx.AsyncClient, bearer: dict[str, str], provider: Provider, word: str) -> None:
    place = f"/v1/channels/{provider.channel}"
    wrong = {**{name: [word] for name in provider.document}, "nonsense": provider.canaries[-1]}
    assert (await http.put(f"{place}/adapters/{provider.adapter}", json=wrong, headers=bearer)).status_code == 422
    told = await http.put(f"{place}/adapters/{provider.adapter}", json=provider.document, headers=bearer)
    assert told.status_code == 200, f"{provider.adapter}: {told.text}"

    async def send() -> tuple[str, str]:
        said = {"address": provider.address, "adapter": provider.adapter, "text": f"Dear {word}"}
        answer = await http.post(f"{place}/test", json=said, headers=bearer)
        assert answer.status_code == 200, f"{provider.adapter}: {answer.text}"
        return answer.json()["outcome"], answer.json()["detail"]

    assert (taken := await send())[0] == "sent", (provider.adapter, taken)
    await _call_back(http, provider, word)
    provider.refuse(f"{word} {' '.join(provider.canaries)}")
    assert (await send())[0] != "sent", provider.adapter
    provider.tear()
    assert (await send())[0] != "sent", provider.adapter
    provider.peer.kill()
    assert (await send())[0] != "sent", provider.adapter


async def _call_back(http: httpx.AsyncClient, provider: Provider, word: str) -> None:
    """What is proven and cannot be read, what can, and what is forged."""
    place, text = f"/webhooks/{provider.adapter}", f"{word} {provider.address}"
    if isinstance(provider.peer, SmppPeer):
        await asyncio.to_thread(provider.peer.reply, PHONE.lstrip("+"), text)
        return
    update = {
        "update_id": 1,
        "message": {"message_id": 1, "text": text, "chat": {"id": 70112233445, "type": "private"}},
    }
    secret = {"X-Telegram-Bot-Api-Secret-Token": HOOK_SECRET}
    headers, signed = call_back("message.replied", {"message": text, "text": text}, at=datetime.now(UTC))
    statuses = [
        (await http.post(place, **said)).status_code
        for said in (
            {"json": update, "headers": secret},
            {"json": {"update_id": text}, "headers": secret},
            {"content": signed, "headers": headers},
            {"content": text, "headers": {**headers, "X-Telegram-Bot-Api-Secret-Token": text}},
            {"data": {"From": PHONE, "Body": text, "MessageSid": text}, "params": {"m": text, "t": HOOK_SECRET}},
        )
    ]
    assert set(statuses) <= {200, 204, 400, 403, 404}, f"{provider.adapter}: {statuses}"
