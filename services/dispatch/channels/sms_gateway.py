"""SMS over a provider's HTTP gateway, as its preset describes it (`sms_preset.py`; the shipped ones in `sms_presets/`).

When the outcome is unknown (no answer, an answer that cannot be read, 5xx): no gateway of the shipped presets promises
that a repeat with the same id is dropped, so the adapter is not `repeatable`. It asks (`ask`) where the provider can be
asked without an id of its own: SMSC by our id, Twilio by the text with its link. SMS Aero and SMS Traffic can only be
asked by an id that the missing answer would have told: there, marketing is never sent again.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import timedelta
from ipaddress import ip_address
from typing import Any, Self
from urllib.parse import quote, urlsplit
from uuid import UUID

from pydantic import Field, SecretStr, model_validator

from services.dispatch.channels.base import AdapterSettings, Call, Exchange, Received, Report, Result, World
from services.dispatch.channels.sms import SmsAdapter
from services.dispatch.channels.sms_answers import NotReadable, asked, decoded, judged, looked_up, reported
from services.dispatch.channels.sms_callbacks import callback_url, received, stands_inside
from services.dispatch.channels.sms_preset import PLACEHOLDER, Preset, Query, Request, filled, presets
from shared.outside import FAILED, NOT_SENT, Client, Response, is_public, retry_after


class SmsGatewaySettings(AdapterSettings):
    """Which gateway, and the account there."""

    preset: str = Field(description="A shipped preset (sms_traffic, smsc, sms_aero, twilio), or custom.")
    custom: Preset | None = Field(default=None, description="With preset: custom, the gateway's description.")
    server: str = Field(
        default="",
        pattern=r"^(https?://[A-Za-z0-9.\[\]:-]+)?$",
        description="Instead of the preset's server: the provider's reserve server, such as https://api2.smstraffic.ru.",
    )
    login: str = Field(default="", max_length=200, description="Login, e-mail or account SID at the provider.")
    password: SecretStr = Field(description="Password, API key or auth token at the provider.")
    sender: str = Field(default="", max_length=40, description="The sender's name or number, as registered there.")
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="Proves delivery reports and incoming messages: the secret set in the account (SMSC), or any long "
        "random text (SMS Aero, SMS Traffic). Twilio needs none.",
    )

    @model_validator(mode="after")
    def _there_is_such_a_preset(self) -> Self:
        if (self.preset == "custom") != (self.custom is not None):
            raise ValueError("custom is given with preset: custom, and only then")
        if self.custom is None and self.preset not in presets():
            raise ValueError(f"there is no preset {self.preset}; there are {', '.join(presets())} and custom")
        if self.server.startswith("http://") and not _inside(self.server):
            raise ValueError("passwords travel over https only; http is for addresses (not names) in your own network")
        return self

    @property
    def described(self) -> Preset:
        """The gateway's description."""
        return self.custom if self.custom is not None else presets()[self.preset]


def _is_settled(exchange: Exchange) -> bool:
    """Whether a provider that says it knows no such message can be believed: not while it may still be taking it."""
    return time.monotonic() - exchange.start_by.deadline >= SmsGateway.settles.total_seconds()


def _inside(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    try:
        return not is_public(str(ip_address(host)))
    except ValueError:
        return False


class SmsGateway(SmsAdapter):
    """The channel sms over HTTP."""

    name = "sms-gateway"
    settings_type = SmsGatewaySettings
    timeout = timedelta(seconds=30)
    # After a call could last start, a provider has taken the message by then, or never will.
    settles = timedelta(seconds=60)
    repeatable = False
    sessions = 16
    preference = 10

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._kept: Client | None = None
        # By login and number: where a provider takes so many requests at a time.
        self._rooms: dict[tuple[str, int], asyncio.Semaphore] = {}

    async def send(self, exchange: Exchange) -> Result:
        settings: SmsGatewaySettings = exchange.settings
        preset = settings.described
        values = self._values(exchange)
        async with self._room(settings):
            exchange.check_start()
            try:
                response = await self._request(settings, preset.send, values)
            except NOT_SENT as problem:
                return Result("retry", f"{preset.title} cannot be reached: {type(problem).__name__}")
            except FAILED as problem:
                return Result("unknown", f"{preset.title} did not answer: {type(problem).__name__}")
        wait = retry_after(response, self.world.clock.now())
        return judged(preset, response.status_code, response.content, wait, self._currency)

    async def ask(self, exchange: Exchange) -> Result | None:
        """By the provider's id if it is known, else by ours, else by the text. Raises what httpx raises."""
        preset = exchange.settings.described
        for query in (preset.query, preset.search):
            if query is not None and self._may_ask(query, exchange):
                document = await self._look_up(exchange, query)
                answer = asked(preset, query, document, self._currency) if document is not None else None
                return answer if answer is None or answer.outcome == "sent" or _is_settled(exchange) else None
        return None

    async def follow(self, exchange: Exchange) -> list[Report]:
        preset, query = exchange.settings.described, exchange.settings.described.query
        if query is None or not self._may_ask(query, exchange):
            return []
        document = await self._look_up(exchange, query)
        report = reported(preset, query, document, self._currency) if document is not None else None
        return [report] if report is not None else []

    async def receive(self, call: Call) -> Received:
        settings: SmsGatewaySettings = call.settings
        secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
        password = settings.password.get_secret_value()
        return received(settings.described, call, self._address, password, secret, self._currency)

    async def close(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            await kept.aclose()

    @property
    def _address(self) -> str:
        return f"{self.world.origin}/webhooks/{self.name}"

    @property
    def _currency(self) -> str:
        return self.world.settings.shop_currency

    def _may_ask(self, query: Query, exchange: Exchange) -> bool:
        if query.rows:
            return self.world.origin in exchange.rendered.text
        return bool(exchange.provider_id) or not query.needs_id

    async def _look_up(self, exchange: Exchange, query: Query) -> Any:
        values = self._values(exchange)
        async with self._room(exchange.settings):
            response = await self._request(exchange.settings, query.request, values)
        if not 200 <= response.status_code < 300:
            return None
        try:
            document = decoded(response.content, query.format)
        except NotReadable:
            return None
        return looked_up(exchange.settings.described, query, document, values)

    def _values(self, exchange: Exchange) -> dict[str, str]:
        settings: SmsGatewaySettings = exchange.settings
        return {
            "login": settings.login,
            "password": settings.password.get_secret_value(),
            "sender": settings.sender,
            "phone": exchange.address,
            "digits": re.sub(r"\D", "", exchange.address),
            "text": exchange.rendered.text,
            "key": str(exchange.message),
            "id": exchange.provider_id,
            "date": exchange.at.date().isoformat(),
            "callback": self._callback(settings, exchange.message),
        }

    def _room(self, settings: SmsGatewaySettings) -> AbstractAsyncContextManager[None]:
        """Held as long as a request is open."""
        most = settings.described.at_once
        return self._rooms.setdefault((settings.login, most), asyncio.Semaphore(most)) if most else nullcontext()

    def _callback(self, settings: SmsGatewaySettings, message: UUID) -> str:
        """Where the gateway shall call; "" if it cannot: Twilio refuses a message whose callback is not on the internet
        (21609), and reports that nobody can bring are asked for (`follow`). A gateway of one's own may lie inside, too."""
        described = settings.described
        server = (settings.server if settings.custom is not None else "") or described.send.server
        if described.callbacks is None or (stands_inside(self._address) and not stands_inside(server)):
            return ""
        secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
        return callback_url(self._address, described.callbacks, message, secret)

    async def _request(self, settings: SmsGatewaySettings, request: Request, values: dict[str, str]) -> Response:
        if self._kept is None:
            self._kept = self.world.http()
        path = PLACEHOLDER.sub(lambda found: quote(values.get(found.group(1), ""), safe=""), request.path)
        fields = {name: text for name, given in request.fields.items() if (text := filled(given, values))}
        extra: dict[str, Any] = {}
        if request.auth == "basic":
            extra["auth"] = (settings.login, settings.password.get_secret_value())
        if request.body == "json":
            extra["json"] = {n: int(v) if n in request.integers and v.isdecimal() else v for n, v in fields.items()}
        elif fields:
            extra["params" if request.body == "query" else "data"] = fields
        return await self._kept.request(request.method, (settings.server or request.server) + path, **extra)


ADAPTER = SmsGateway
