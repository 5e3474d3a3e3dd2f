"""Signed webhooks, out and in, after the Standard Webhooks specification 1.0: headers `webhook-id`, `webhook-timestamp`
and `webhook-signature`, the last an HMAC-SHA256 over `id.timestamp.body`.

For adapters whose provider is a system of the shop's own (`webhook.py`, `call_task.py`). That system takes a
`webhook-id` once, however often it comes: the id is the message's, so a message whose outcome is not known is sent
again (`repeatable`).
"""

from __future__ import annotations

import base64
import binascii
import hmac
from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from ipaddress import ip_address
from typing import Annotated, Any
from urllib.parse import urlsplit

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
from shared.outside import FAILED, NOT_SENT, Client, Response, retry_after

# How far a call's timestamp may be from now: the specification's own tolerance.
TOLERANCE = timedelta(minutes=5)
_PREFIX = "whsec_"
_LEAST_KEY, _MOST_KEY = 24, 64
_MOST_BODY = 256 * 1024
# Not taken, and no fault of the message: wrong addresses and secrets among them, which somebody will put right.
_LATER = {401, 403, 404, 408, 425, 429, 503}
_MOST_COST = Decimal(1_000_000)


class HookSettings(AdapterSettings):
    """Where the shop's system listens, and the secret that it shares with Dripline."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    url: Annotated[str, Field(max_length=2_000)]
    """Where messages are posted; https, but for machines of one's own network."""
    secret: SecretStr
    """`whsec_` and 24 to 64 random bytes in base64. Signs what is posted, and what comes back to `/webhooks/…`."""
    former_secret: SecretStr | None = None
    """While the secret is being changed: the one before. Both sign, either is believed."""

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.fragment:
            raise ValueError("must look like https://shop.example/dripline")
        if parts.scheme == "http" and not _near(parts.hostname):
            raise ValueError("must begin with https: it carries what people are written")
        return value

    @field_validator("secret", "former_secret")
    @classmethod
    def _key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _decoded(value)
        return value

    @property
    def keys(self) -> list[bytes]:
        """The present one first."""
        return [_decoded(one) for one in (self.secret, self.former_secret) if one is not None]


class SignedHook(Adapter):
    """An adapter that posts each message as a signed webhook."""

    settings_type = HookSettings
    timeout = timedelta(seconds=30)
    repeatable = True
    sessions = 8

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._client: Client | None = None

    @abstractmethod
    def told(self, exchange: Exchange) -> tuple[str, dict[str, Any]]:
        """What is posted: the type of the webhook, and its data."""

    @abstractmethod
    def reports(self, told: Told) -> list[Report]:
        """What a webhook that came back says. Raises Unreadable."""

    async def send(self, exchange: Exchange) -> Result:
        settings = exchange.settings
        assert isinstance(settings, HookSettings)
        type, data = self.told(exchange)
        body = msgspec.json.encode({"type": type, "timestamp": exchange.at, "data": data})
        now = self.world.clock.now()
        headers = {"content-type": "application/json", **signed(exchange.key, now, body, settings.keys)}
        if self._client is None:
            self._client = self.world.http()
        exchange.check_start()
        try:
            response = await self._client.post(settings.url, content=body, headers=headers)
        except NOT_SENT as problem:
            return Result("retry", f"the system cannot be reached: {type_name(problem)}")
        except FAILED as problem:
            return Result("unknown", f"no answer: {type_name(problem)}")
        return judged(response, now)

    async def receive(self, call: Call) -> Received:
        """A webhook from the shop's system. A repeat within the tolerance is reported under the same id."""
        settings = call.settings
        if not isinstance(settings, HookSettings):
            raise Forged("the adapter has no secret: nothing can prove itself")
        id = verified(call.headers, call.body, settings.keys, call.at)
        if len(call.body) > _MOST_BODY:
            raise Unreadable(f"the body has more than {_MOST_BODY} bytes")
        try:
            body = _BODY.decode(call.body)
        except msgspec.ValidationError as problem:
            raise Unreadable(f"the webhook cannot be read: {problem}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Unreadable("the webhook is no JSON") from None
        at = min(body.timestamp, call.at)
        return Received(self.reports(Told(id, body.type, at, body.data)), status=204)

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()


class Told(msgspec.Struct, frozen=True):
    """A webhook that came back: `id` is the same for a repeat, `at` is never later than now."""

    id: str
    type: str
    at: datetime
    data: msgspec.Raw


class _Body(msgspec.Struct):
    type: Annotated[str, msgspec.Meta(max_length=100)]
    timestamp: Annotated[datetime, msgspec.Meta(tz=True)]
    data: msgspec.Raw


_BODY = msgspec.json.Decoder(_Body)


def signed(id: str, at: datetime, body: bytes, keys: list[bytes]) -> dict[str, str]:
    """The three headers."""
    timestamp = str(int(at.timestamp()))
    signatures = " ".join("v1," + base64.b64encode(_mac(key, id, timestamp, body)).decode() for key in keys)
    return {"webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures}


def verified(headers: Mapping[str, str], body: bytes, keys: list[bytes], now: datetime) -> str:
    """The webhook's id.

    :param headers: in lower case
    :raises Forged: a header is missing, too old or from the future, or no signature fits
    """
    id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not id or len(id) > 200 or not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise Forged("webhook-id or webhook-timestamp is missing or impossible")
    expected = [_mac(key, id, timestamp, body) for key in keys]
    genuine = False
    for one in headers.get("webhook-signature", "").split(" ")[:10]:
        version, _, text = one.partition(",")
        given = _unpacked(text) if version == "v1" else None
        genuine |= given is not None and any(hmac.compare_digest(given, mac) for mac in expected)
    if not genuine:
        raise Forged("no signature in webhook-signature fits")
    if abs(now.timestamp() - int(timestamp)) > TOLERANCE.total_seconds():
        raise Forged(f"webhook-timestamp is more than {TOLERANCE.total_seconds():.0f} s from now")
    return id


def judged(response: Response, now: datetime) -> Result:
    """What the system's answer means. 5xx may come after it took the message: *unknown*; but 503 says it did not."""
    status = response.status_code
    detail = f"HTTP {status}"
    if 200 <= status < 300:
        answer = _answer(response.content)
        return Result("sent", detail, provider_id=answer.id[:200], charged=_cost(answer.cost))
    if status == 410:
        return Result("bounced", detail)
    if status in _LATER or 300 <= status < 400:
        return Result("retry", detail, retry_after=retry_after(response, now))
    return Result("unknown" if status >= 500 else "failed", detail)


class _Answer(msgspec.Struct):
    """What a 2xx may carry: what the system calls the message, and what it costs."""

    id: str = ""
    cost: str | int | float | None = None


def _answer(content: bytes) -> _Answer:
    try:
        return msgspec.json.decode(content, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Answer()  # an empty answer, or "ok": the message was taken all the same


def _cost(cost: str | int | float | None) -> Decimal | None:
    try:
        money = None if cost is None else Decimal(str(cost))
    except InvalidOperation:
        return None
    return money if money is not None and money.is_finite() and 0 <= money <= _MOST_COST else None


def type_name(problem: BaseException) -> str:
    """An error's kind: its text may quote addresses."""
    return type(problem).__name__


def _mac(key: bytes, id: str, timestamp: str, body: bytes) -> bytes:
    return hmac.digest(key, f"{id}.{timestamp}.".encode() + body, "sha256")


def _unpacked(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None


def _decoded(secret: SecretStr) -> bytes:
    text = secret.get_secret_value()
    key = _unpacked(text.removeprefix(_PREFIX)) if text.startswith(_PREFIX) else None
    if key is None or not _LEAST_KEY <= len(key) <= _MOST_KEY:
        raise ValueError(f"must be {_PREFIX} and {_LEAST_KEY} to {_MOST_KEY} bytes in base64")
    return key


def _near(host: str) -> bool:
    """A machine of one's own network by the look of it; whether it may be reached, OUTSIDE_ALLOW says."""
    try:
        address = ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".internal", ".local"))
    return address.is_private or address.is_loopback
