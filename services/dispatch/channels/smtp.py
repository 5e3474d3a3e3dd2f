"""E-mail by SMTP, on kept connections. A 250 to the end of DATA means *sent*; *delivered* is another matter."""

from __future__ import annotations

import re
from datetime import timedelta
from urllib.parse import unquote, urlsplit

from aiosmtplib import (
    SMTP,
    SMTPException,
    SMTPRecipientRefused,
    SMTPResponseException,
    SMTPServerDisconnected,
)

from services.dispatch.channels.base import Adapter, Exchange, Result, TooLate, World
from services.dispatch.channels.mime import Unsendable, letter
from shared.settings import Settings

CONNECT_SECONDS = 5.0
COMMAND_SECONDS = 5.0
DATA_SECONDS = 20.0

# Enhanced codes (RFC 3463) and plain ones that speak of the recipient, not of the message or of us.
_NO_SUCH_ADDRESS = re.compile(r"\b5\.(?:1\.[0-9]+|2\.1)\b")
_NO_SUCH_ADDRESS_PLAIN = (550, 551, 553)
_ENHANCED = re.compile(r"\b[245]\.\d{1,3}\.\d{1,3}\b")


class Smtp(Adapter):
    """The channel email over SMTP_URL."""

    name = "smtp"
    channel = "email"
    address_kind = "email"
    part = "email"
    # From the start of the exchange; `start by` is checked again before DATA, which has 20 s.
    timeout = timedelta(seconds=CONNECT_SECONDS + 4 * COMMAND_SECONDS + DATA_SECONDS)
    repeatable = False
    sessions = 16
    preference = 10

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._idle: list[SMTP] = []

    @classmethod
    def usable(cls, settings: Settings) -> bool:
        return settings.smtp_url is not None

    async def send(self, exchange: Exchange) -> Result:
        try:
            content = letter(exchange)
        except Unsendable as problem:
            return Result("failed", str(problem))
        exchange.check_start()
        try:
            client = await self._envelope(exchange)
        except (SMTPRecipientRefused, SMTPResponseException) as refusal:
            return _refused(refusal, recipient=isinstance(refusal, SMTPRecipientRefused))
        except (SMTPException, OSError, TimeoutError) as problem:
            # Nothing of the letter has been said yet.
            return Result("retry", f"the server cannot be reached: {type(problem).__name__}")
        return await self._content(client, exchange, content)

    async def _envelope(self, exchange: Exchange) -> SMTP:
        """MAIL and RCPT on a kept connection, or on a new one if that has died meanwhile."""
        while self._idle:
            client = self._idle.pop()
            try:
                return await self._introduce(client, exchange)
            except (SMTPServerDisconnected, OSError, TimeoutError):
                client.close()
            except SMTPResponseException as refusal:
                if refusal.code != 421:  # "closing": what a server says to a connection that was idle for long
                    raise
                client.close()
        return await self._introduce(await self._connect(), exchange)

    async def _introduce(self, client: SMTP, exchange: Exchange) -> SMTP:
        options, encoding = [], "ascii"
        if not exchange.address.isascii():
            options, encoding = ["SMTPUTF8"], "utf-8"
        try:
            await client.mail(exchange.sender[1], options=options, encoding=encoding, timeout=COMMAND_SECONDS)
            await client.rcpt(exchange.address, encoding=encoding, timeout=COMMAND_SECONDS)
        except SMTPResponseException as refusal:
            await self._keep(client, reset=refusal.code != 421)
            raise
        except BaseException:
            client.close()
            raise
        return client

    async def _content(self, client: SMTP, exchange: Exchange, content: bytes) -> Result:
        try:
            exchange.check_start()
        except TooLate:
            await self._keep(client, reset=True)
            raise
        try:
            answer = await client.data(content, timeout=DATA_SECONDS)
        except SMTPResponseException as refusal:
            await self._keep(client, reset=refusal.code != 421)
            return _refused(refusal, recipient=False)
        except (SMTPException, OSError, TimeoutError) as problem:
            client.close()
            return Result("unknown", f"the line went dead in DATA: {type(problem).__name__}")
        except BaseException:
            client.close()
            raise
        await self._keep(client)
        return Result("sent", f"{answer.code} {_enhanced(answer.message)}".strip())

    async def _connect(self) -> SMTP:
        secret = self.world.settings.smtp_url
        assert secret is not None
        url = urlsplit(secret.get_secret_value())
        client = SMTP(
            hostname=url.hostname,
            port=url.port,
            username=unquote(url.username) if url.username else None,
            password=unquote(url.password) if url.password else None,
            use_tls=url.scheme == "smtps",
            start_tls=True if url.scheme == "smtp+starttls" else None if url.scheme == "smtp" else False,
            timeout=CONNECT_SECONDS,
        )
        await client.connect()
        return client

    async def _keep(self, client: SMTP, *, reset: bool = False) -> None:
        """Keeps the connection for the next letter, if it still answers."""
        try:
            if reset:
                await client.rset(timeout=COMMAND_SECONDS)
            if client.is_connected and len(self._idle) < self.sessions:
                self._idle.append(client)
                return
        except (SMTPException, OSError, TimeoutError):
            pass  # it is closed below, and the next letter takes another one
        client.close()

    async def close(self) -> None:
        while self._idle:
            client = self._idle.pop()
            try:
                await client.quit(timeout=1)
            except (SMTPException, OSError, TimeoutError):
                client.close()


def _refused(refusal: SMTPResponseException, *, recipient: bool) -> Result:
    """4xx: later. 5xx: for good, and of RCPT's those that say the address does not exist."""
    detail = f"{refusal.code} {_enhanced(refusal.message)}".strip()
    if 400 <= refusal.code < 500 or refusal.code < 0:
        return Result("retry", detail)
    enhanced = _ENHANCED.search(refusal.message)
    no_such = _NO_SUCH_ADDRESS.search(refusal.message) if enhanced else refusal.code in _NO_SUCH_ADDRESS_PLAIN
    return Result("bounced" if recipient and no_such else "failed", detail)


def _enhanced(message: str) -> str:
    """The enhanced status code alone: servers quote addresses in the rest."""
    found = _ENHANCED.search(message)
    return found.group(0) if found else ""


ADAPTER = Smtp
