"""What the three push services share: whose token an address is, what a push says, and how their answers are told apart.

An address of the channel push is a device token as the app or the site sent it. Which service it belongs to is seen from
its form (`service_of`), so that several adapters serve the channel side by side.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal
from uuid import UUID

import msgspec
import pydantic
from msgspec.structs import replace

from services.dispatch.channels.base import Adapter, AdapterSettings, Exchange, Result, World
from shared.clock import SystemClock
from shared.outside import FAILED, NOT_SENT, Client, Refused, Response, retry_after

Service = Literal["web", "apns", "fcm"]
SERVICES: tuple[Service, ...] = ("web", "apns", "fcm")
# For messages that do not say how long they are good.
USUAL_TTL = timedelta(days=1)
# The longest that all three keep a push for a device that is off: four weeks.
LONGEST_TTL = timedelta(days=28)
# Who asks for it at once is asked after this all the same; who does not say when, after the other (Firebase's advice).
SHORTEST_WAIT, USUAL_WAIT = timedelta(seconds=10), timedelta(minutes=1)
# Provider tokens and providers' dates are compared with the provider's own clock, never with business time.
WALL = SystemClock()

_APNS = re.compile(r"[0-9a-fA-F]{64,200}")
_FCM = re.compile(r"[\w:-]{100,}", re.ASCII)


def service_of(address: str) -> Service | None:
    """Which push service a device token belongs to. Said outright by `web:`, `apns:` or `fcm:` in front of it, else seen
    from its form: hexadecimal is Apple's, a long word is Firebase's. None: nobody's."""
    for service in SERVICES:
        if address.startswith(f"{service}:"):
            return service
    if _APNS.fullmatch(address):
        return "apns"
    return "fcm" if _FCM.fullmatch(address) else None


def token_of(address: str) -> str:
    """The token as its service knows it, without the `apns:` or `fcm:` in front."""
    service, colon, token = address.partition(":")
    return token if colon and service in SERVICES else address


class Notice(msgspec.Struct, frozen=True):
    """What a push says. `url`: where a press leads, tracked; "" if nowhere. `message`: its id, for the app's own use."""

    title: str
    body: str
    url: str
    message: UUID


def notice(exchange: Exchange) -> Notice:
    """The exchange's text as a push. Without a title of its own it has the shop's name."""
    rendered = exchange.rendered
    return Notice(
        rendered.subject or exchange.sender[0], rendered.text, rendered.urls.get("click", ""), exchange.message
    )


def fitted(said: Notice, write: Callable[[Notice], bytes], limit: int) -> bytes | None:
    """What `write` makes of the push in at most `limit` bytes, its text cut short if need be; None if even that is too long."""
    whole = write(said)
    if len(whole) <= limit:
        return whole
    least, most = 0, len(said.body)
    while least < most:  # the longest beginning that fits
        middle = (least + most + 1) // 2
        least, most = (middle, most) if len(write(_cut(said, middle))) <= limit else (least, middle - 1)
    return write(_cut(said, least)) if least else None


def _cut(said: Notice, length: int) -> Notice:
    return replace(said, body=said.body[:length].rstrip() + "…")


def lifetime(exchange: Exchange) -> timedelta:
    """How long the service may keep the push for a device that is off: as long as the message is good."""
    if exchange.valid_until is None:
        return USUAL_TTL
    return min(max(exchange.valid_until - exchange.at, timedelta(0)), LONGEST_TTL)


class PushSettings(AdapterSettings):
    """What every push adapter may be told besides."""

    authority: str = pydantic.Field(
        default="",
        max_length=100_000,
        description="Certificates (PEM) to trust in place of the public authorities, where a proxy of yours reads TLS.",
    )

    @pydantic.field_validator("authority")
    @classmethod
    def _is_pem(cls, value: str) -> str:
        if value:
            _trusting(value)
        return value


class PushAdapter(Adapter):
    """The part of a push adapter that is not its protocol: one client for each set of trusted authorities, and for each
    `connection_of`."""

    channel = "push"
    address_kind = "device_token"
    part = "push"
    preference = 10
    sessions = 16
    timeout = timedelta(seconds=30)
    # Whether the service speaks HTTP/2 only.
    http2: ClassVar[bool] = False
    service: ClassVar[Service]

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._clients: dict[tuple[str, str], Client] = {}

    @classmethod
    def accepts(cls, address: str) -> bool:
        return service_of(address) == cls.service

    @classmethod
    def connection_of(cls, settings: Any) -> str:
        """What a connection is bound to besides the service: pushes of which this differs go over different ones."""
        return ""

    async def close(self) -> None:
        clients, self._clients = self._clients, {}
        await asyncio.gather(*(client.aclose() for client in clients.values()))

    async def post(
        self, exchange: Exchange, url: str, content: bytes, headers: Mapping[str, str], what: str = "push service"
    ) -> Response | Result:
        """The service's answer, or what it comes to that there is none. Raises TooLate.

        :param what: whom `url` belongs to, for the result's text
        """
        client = self._client(exchange.settings)
        exchange.check_start()
        try:
            return await client.post(url, content=content, headers=dict(headers))
        except Refused:
            return Result("failed", f"the {what} is at no public address")
        except NOT_SENT as problem:
            return Result("retry", f"the {what} was not reached: {type(problem).__name__}")
        except FAILED as problem:
            return Result("unknown", f"the {what} did not answer: {type(problem).__name__}")

    def _client(self, settings: PushSettings) -> Client:
        key = (settings.authority, self.connection_of(settings))
        if key not in self._clients:
            verify = _trusting(settings.authority) if settings.authority else None
            self._clients[key] = self.world.http(http2=self.http2, http1=not self.http2, verify=verify)
        return self._clients[key]


def _trusting(authority: str) -> ssl.SSLContext:
    """Whoever these certificates vouch for. Raises ValueError if they are none."""
    try:
        return ssl.create_default_context(cadata=authority)
    except ssl.SSLError as problem:
        raise ValueError(f"is no certificate in PEM: {problem.reason or 'not readable'}") from None


class Kept(msgspec.Struct, frozen=True):
    """A provider token and until when, on the monotonic clock, it is used. `made`: when it was made, by the wall clock."""

    value: str
    until: float
    made: datetime

    @property
    def good(self) -> bool:
        return time.monotonic() < self.until


def later(response: Response, what: str) -> Result:
    """The service took nothing, and says so: again later, and no earlier than it asks."""
    asked = retry_after(response, WALL.now())
    wait = max(asked, SHORTEST_WAIT) if asked is not None else None
    return Result("retry", f"{what} ({response.status_code})", retry_after=wait)


def crowded(response: Response, what: str, *, for_one: bool = False) -> Result:
    """Too many pushes. A service that does not say for how long means this device.

    :param for_one: it means this device in any case
    """
    result = later(response, what)
    return replace(result, retry_after=result.retry_after or USUAL_WAIT, for_one=for_one or result.retry_after is None)


def unexplained(response: Response) -> Result:
    """An answer that no documentation tells the meaning of. A fault of theirs (5xx) may come after the push was taken,
    unless they ask for it again; anything else is a refusal."""
    if response.status_code == 503 and "retry-after" in response.headers:
        return later(response, "the push service is overloaded")
    if response.status_code >= 500:
        return Result("unknown", f"the push service failed ({response.status_code})")
    return Result("failed", f"the push service refused ({response.status_code})")


def fields(response: Response) -> dict[str, Any]:
    """The JSON object of an answer; {} if it is none."""
    try:
        found = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
