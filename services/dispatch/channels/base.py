"""The contract of a channel's adapter: one provider's way of serving a channel, one file in this folder.

A file declares `ADAPTER = <class>`; the registry finds it. `docs/ADDING.md` shows one, and
`tests/contracts/test_channels.py` holds every adapter to the promises below:

- `send` calls `exchange.check_start()` immediately before it opens the exchange with the provider, and again where the
  provider's own protocol has a later point of no return. It raises `TooLate`; nothing has been sent then.
- What came of it is one of five outcomes (`Result`), whatever the provider calls it. *unknown* is said only when the
  provider may have taken the message; *retry* only when it certainly has not.
- A `repeatable` adapter may be told the same message again, with the same `key`: the person gets it once.
- What it is told by API (`settings_type`) comes with each exchange; it keeps nothing of it but connections.
- `receive` believes a provider's call only when it is proven; reports may come twice, late and in any order.
"""

from __future__ import annotations

import secrets
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import UUID

import msgspec
import pydantic

from services.dispatch.rendered import Rendered
from shared.clock import Clock, SystemClock
from shared.ids import RandomBits
from shared.outside import Client, client
from shared.settings import Settings

Outcome = Literal["sent", "retry", "bounced", "failed", "unknown"]


# What a provider tells later of a message that it took. *replied*: the person answered; *done*: a task for people was
# worked off.
Told = Literal["delivered", "failed", "bounced", "complained", "opened", "clicked", "replied", "unsubscribed", "done"]


class AdapterSettings(pydantic.BaseModel):
    """What an adapter is told by API. Fields of the type SecretStr are written and never read back."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Price(msgspec.Struct, frozen=True):
    """What sending costs: `cost` in the shop's currency, `units` that the provider counts."""

    cost: Decimal
    units: int = 1


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of an exchange. `detail`: the provider's answer in a line, without personal data. `charged`: what the
    provider says it costs, None if it says nothing (the price then counts). `retry_after`: with *retry*, how long the
    provider asks to be left alone; nothing more is sent through the adapter until then, and nothing is held against it.
    `for_one`: a *retry* that concerns this address alone (a phone that got too many, one push service of many); the
    adapter goes on."""

    outcome: Outcome
    detail: str = ""
    provider_id: str = ""
    charged: Decimal | None = None
    retry_after: timedelta | None = None
    for_one: bool = False


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a provider tells of a message later. Names the message by our id, by the provider's own, or (complaints about
    mails of long ago) by the address. `id`: the provider's for this report, or made from its content: a report is
    applied once. `at`: when it happened, by the provider; None if it does not say. `detail`: without personal data.
    `properties`: what else the event carries (the outcome of a call)."""

    what: Told
    id: str
    message: UUID | None = None
    provider_id: str = ""
    address: str = ""
    at: datetime | None = None
    detail: str = ""
    charged: Decimal | None = None
    properties: dict[str, Any] = {}


class Call(msgspec.Struct, frozen=True):
    """A provider's HTTP call to `/webhooks/{adapter}`. `headers` in lower case; `query` decoded; `at`: business time."""

    method: str
    headers: dict[str, str]
    query: dict[str, str]
    body: bytes
    at: datetime
    settings: Any


class Received(msgspec.Struct, frozen=True):
    """What a provider's call said, and what it wants to hear."""

    reports: list[Report]
    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"


class Forged(Exception):
    """The call does not prove that it comes from the provider; answered with 403."""


class Unreadable(Exception):
    """The call is proven and cannot be read; answered with 400. The text says what is wrong with which field."""


class TooLate(Exception):
    """The moment by which the exchange had to start has passed; nothing was sent and the message goes back."""


@dataclass(frozen=True)
class StartBy:
    """The last moment at which an exchange may start, on the monotonic clock of the process that holds it."""

    deadline: float
    monotonic: Callable[[], float] = time.monotonic

    def check(self) -> None:
        """Raises TooLate when the moment has passed."""
        if self.monotonic() > self.deadline:
            raise TooLate


@dataclass(frozen=True)
class Exchange:
    """One attempt. `key` is the same for every attempt of the message: what providers call an idempotency key.

    `sender`: the shop's (name, e-mail address). `at`: business time at which the attempt began, for the message's own
    date; a question is about that moment, too, however late it is asked.
    """

    message: UUID
    attempt: int
    key: str
    address: str
    rendered: Rendered
    purpose: str
    sender: tuple[str, str]
    at: datetime
    start_by: StartBy
    # An instance of the adapter's `settings_type`; None for adapters that are told nothing by API.
    settings: Any = None
    # Of earlier attempts, what the provider called them: for `ask`.
    provider_id: str = ""
    # Until when the message is good: how long a provider may keep it for a device that is off. Business time.
    valid_until: datetime | None = None

    def check_start(self) -> None:
        """To be called immediately before the exchange opens. Raises TooLate."""
        self.start_by.check()


@dataclass(frozen=True)
class World:
    """What an adapter may use of the process it runs in. `clock`: business time, for what a protocol signs; `bits`: chance.
    `origin`: the address at which providers reach `/webhooks/…`. `tell(adapter, reports)`: for reports that come over a
    connection of the adapter's own, not by a call; when it has returned they are stored, as those of a call are."""

    settings: Settings
    inbox: Path
    clock: Clock = field(default_factory=SystemClock)
    bits: RandomBits = secrets.randbits
    tell: Callable[[str, Sequence[Report]], Awaitable[None]] | None = None

    @property
    def origin(self) -> str:
        return self.settings.origin

    def http(self, *, http2: bool = False, http1: bool = True, verify: ssl.SSLContext | None = None) -> Client:
        """A client of outgoing HTTP that reaches public addresses, and what OUTSIDE_ALLOW names (`shared.outside` has its
        errors). To be made once, kept, and closed in the adapter's `close`."""
        return client(self.settings.outside_allow, http2=http2, http1=http1, verify=verify)


class Adapter(ABC):
    """One provider's way of serving a channel."""

    name: ClassVar[str]
    channel: ClassVar[str]
    # Which kind of node (`shared.identifiers.KINDS`) is an address of this channel.
    address_kind: ClassVar[str]
    # Which part of a template it sends: email, sms, push, messenger, call.
    part: ClassVar[str]
    # What it is told by API (`PUT /v1/channels/{channel}/adapters/{name}`); None: nothing. An adapter with settings serves
    # once it has been told them.
    settings_type: ClassVar[type[AdapterSettings] | None] = None
    # How long an exchange may take after it started; longer is *unknown*.
    timeout: ClassVar[timedelta] = timedelta(seconds=30)
    # How long after the last moment to start its provider, asked about a message, cannot be believed that it has none such:
    # it may still be taking it. An unknown that would be the end is asked about once more when that is over.
    settles: ClassVar[timedelta] = timedelta(0)
    # Whether a repeat with the same key reaches the person once.
    repeatable: ClassVar[bool] = False
    # How many exchanges one process holds at a time.
    sessions: ClassVar[int] = 8
    # Whether messages leave the machine; as long as no such adapter is used, `/inbox` is open to this machine.
    leaves_machine: ClassVar[bool] = True
    # Of several usable adapters of a channel the one preferred most serves it, unless its row names another.
    preference: ClassVar[int] = 0

    def __init__(self, world: World) -> None:
        self.world = world

    @classmethod
    def usable(cls, settings: Settings) -> bool:
        """Whether this deployment holds what it needs besides what it is told by API: a setting, a library."""
        return True

    @classmethod
    def serves_untold(cls, settings: Settings) -> bool:
        """Whether it serves although it was told nothing by API: with settings of its own only where the deployment's
        stand in for them."""
        return cls.settings_type is None

    @classmethod
    def accepts(cls, address: str) -> bool:
        """Whether this address is one of its provider's. Of a channel's adapters that serve side by side (three push
        services) each takes what it accepts."""
        return True

    @classmethod
    def price(cls, rendered: Rendered, unit_cost: Decimal) -> Price:
        """What this text costs."""
        return Price(unit_cost)

    @abstractmethod
    async def send(self, exchange: Exchange) -> Result:
        """Sends. Raises TooLate; every other error is taken as *unknown*."""

    async def ask(self, exchange: Exchange) -> Result | None:
        """What became of an earlier attempt whose outcome is not known; None if the provider cannot be asked."""
        return None

    async def follow(self, exchange: Exchange) -> list[Report]:
        """What became of a message that was taken (`exchange.provider_id`) and of which no report came. It is asked a few
        times within a day; a report that comes after all must have the same `id`."""
        return []

    async def attend(self, settings: Any) -> None:  # noqa: B027 - most adapters wait for nothing
        """Called every few seconds while the adapter is told `settings`: what must stand although nothing is sent (a
        session over which receipts come, told by `World.tell`) is put up here. Errors are logged; it is called again."""

    async def receive(self, call: Call) -> Received:
        """Reads a provider's call. Raises Forged, Unreadable."""
        raise Unreadable(f"{self.name} takes no calls")

    async def close(self) -> None:  # noqa: B027 - most adapters keep nothing
        """Ends kept connections."""
