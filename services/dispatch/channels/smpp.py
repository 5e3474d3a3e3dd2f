"""SMS over SMPP 3.4: one kept transceiver session, long texts in parts, delivery receipts as reports.

When the outcome is unknown (no submit_sm_resp, or the line went dead after the bytes left): SMPP knows no key by which a
server would drop a repeat, and a message can only be asked for by the id that the missing answer would have told. So it
is neither `repeatable` nor asked: marketing is never sent again. A text in parts of which some were taken and one was
not is *unknown*, too.

Receipts come over the same session, whenever they come. They are acknowledged when they are stored (`World.tell`), so
what is lost on the way comes again; `attend` keeps the session up although nothing is sent.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from importlib.util import find_spec

import structlog

from services.dispatch.channels.base import Exchange, Result, World
from services.dispatch.channels.smpp_messages import (
    AFTER,
    ALREADY_BOUND,
    MOST_PARTS,
    THROTTLED,
    Part,
    SmppSettings,
    normal_id,
    parts_of,
    read_delivery,
    refused,
    submit_sm,
)
from services.dispatch.channels.smpp_session import Account, NoAnswer, NotBound, NotSent, Session
from services.dispatch.channels.sms import SmsAdapter
from shared.clock import pause
from shared.settings import Settings

log = structlog.get_logger(__name__)

# Within a text in parts a throttled part is tried again at once: the first parts are out.
_PART_TRIES = 5
_REBIND_SECONDS = 5.0
CONNECT_SECONDS = 5.0


class Smpp(SmsAdapter):
    """The channel sms over SMPP. Needs the extra `smpp`."""

    name = "smpp"
    settings_type = SmppSettings
    timeout = timedelta(seconds=45)
    repeatable = False
    sessions = 20
    preference = 10

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._session: Session | None = None
        self._with: SmppSettings | None = None
        self._opening = asyncio.Lock()
        self._refused: tuple[float, NotSent] | None = None
        self._reference = world.bits(8)

    @classmethod
    def usable(cls, settings: Settings) -> bool:
        """Whether the extra is installed."""
        return find_spec("smpp34") is not None

    async def send(self, exchange: Exchange) -> Result:
        settings: SmppSettings = exchange.settings
        try:
            parts = parts_of(exchange.rendered.text, settings, self._next_reference())
        except UnicodeEncodeError:
            return Result("failed", "the text holds half a character")
        if len(parts) > MOST_PARTS:
            return Result("failed", f"the text takes {len(parts)} segments; SMPP carries at most {MOST_PARTS}")
        exchange.check_start()
        result = await self._over_the_session(exchange, settings, parts)
        if result is None:  # the kept session had died unnoticed, and nothing has left: once more over a new one
            result = await self._over_the_session(exchange, settings, parts)
        return result or Result("retry", "the session ended before anything was sent")

    async def _over_the_session(self, exchange: Exchange, settings: SmppSettings, parts: list[Part]) -> Result | None:
        """None if the session ended before anything was sent."""
        try:
            session = await self._bound(settings)
        except NotSent as problem:
            if isinstance(problem, NotBound) and problem.status == ALREADY_BOUND:
                # A centre that takes one session an account has it with another process, which goes on sending.
                return Result("retry", str(problem), retry_after=timedelta(seconds=_REBIND_SECONDS), for_one=True)
            return Result("retry", str(problem))
        return await self._submit(session, exchange, settings, parts)

    async def _submit(
        self, session: Session, exchange: Exchange, settings: SmppSettings, parts: list[Part]
    ) -> Result | None:
        """Part by part; the last one is asked to be receipted, and its id stands for the message. None if the session
        ended before the first."""
        provider_id = ""
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            try:
                status, told = await self._submit_part(session, exchange, settings, part, first=number == 1, last=last)
            except NotSent:
                return _partly(number, len(parts))
            except NoAnswer as problem:
                return _partly(number, len(parts)) or Result("unknown", str(problem))
            if status != 0:
                return _partly(number, len(parts)) or refused(status)
            provider_id = normal_id(told, hexadecimal=settings.receipt_ids == "hex")
        return Result("sent", f"{len(parts)} accepted", provider_id=provider_id)

    async def _submit_part(
        self, session: Session, exchange: Exchange, settings: SmppSettings, part: Part, *, first: bool, last: bool
    ) -> tuple[int, str]:
        for attempt in range(1, _PART_TRIES + 1):
            status, told = await session.submit(
                lambda number: submit_sm(part, exchange.address, settings, number, receipt=last),
                exchange.check_start if first else lambda: None,
            )
            if first or status not in AFTER or attempt == _PART_TRIES:
                return status, told
            await pause(AFTER[THROTTLED].total_seconds())
        raise AssertionError("the loop returns")

    def _next_reference(self) -> int:
        """Of a text in parts; a phone puts together what has the same sender and reference."""
        self._reference = (self._reference + 1) % 256
        return self._reference

    async def _bound(self, settings: SmppSettings) -> Session:
        """The kept session, or a new one. Raises NotSent."""
        async with self._opening:
            if self._session is not None and (self._session.closed or self._with != settings):
                await self._session.close(unbind=True)
                self._session = None
            if self._session is None:
                if self._refused is not None and self._with == settings and time.monotonic() < self._refused[0]:
                    raise self._refused[1]  # a server that refuses is not asked by every message
                self._with = settings
                try:
                    self._session = await Session.open(self._account(settings), self._on_delivery)
                except NotSent as problem:
                    self._refused = (time.monotonic() + _REBIND_SECONDS, problem)
                    raise
                self._refused = None
            return self._session

    def _account(self, settings: SmppSettings) -> Account:
        return Account(
            host=settings.host,
            port=settings.port,
            system_id=settings.system_id,
            password=settings.password.get_secret_value(),
            system_type=settings.system_type,
            tls=settings.tls,
            authority=settings.authority,
            window=settings.window,
            enquire_seconds=settings.enquire_seconds,
            answer_seconds=settings.answer_seconds,
            connect_seconds=CONNECT_SECONDS,
            allow=self.world.settings.outside_allow,
        )

    async def attend(self, settings: SmppSettings) -> None:
        """Keeps the session up: receipts come over it."""
        await self._bound(settings)

    async def close(self) -> None:
        async with self._opening:
            session, self._session = self._session, None
            if session is not None:
                await session.close(unbind=True)

    async def _on_delivery(self, pdu: bytes) -> None:
        """Stores what a deliver_sm says. Raises where it is not stored; then the server keeps it."""
        assert self._with is not None
        try:
            report = read_delivery(pdu, self._with, self.world.clock.now())
        except ValueError as problem:
            log.warning("smpp.delivery_unreadable", problem=str(problem))  # it would be as unreadable the next time
            return
        if report is None:
            return
        if self.world.tell is None:
            raise RuntimeError("nobody takes reports")
        await self.world.tell(self.name, [report])


def _partly(number: int, total: int) -> Result | None:
    """What to say when part `number` failed and others are out; None for the first."""
    return Result("unknown", f"{number - 1} of {total} parts were taken") if number > 1 else None


ADAPTER = Smpp
