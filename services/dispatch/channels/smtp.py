"""E-mail by SMTP, on kept connections. A 250 to the end of DATA means *sent*; *delivered* is what a report says.

When the line goes dead after the letter was said, or the answer cannot be read, nobody knows whether the server has it,
and it cannot be asked: *unknown*, and neither `repeatable` nor `ask`. Up to the answer to the command DATA nothing of the
letter was said: *retry*. A repeat carries the same Message-ID, which receivers may or may not heed.

Settings by API (`SmtpSettings`), or SMTP_URL alone: then letters are not signed and nothing is read back.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from aiosmtplib import (
    SMTP,
    SMTPException,
    SMTPRecipientRefused,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)

from services.dispatch.channels import bounces, maildir
from services.dispatch.channels.base import (
    Adapter,
    Call,
    Exchange,
    Forged,
    Received,
    Result,
    TooLate,
    Unreadable,
    World,
)
from services.dispatch.channels.dkim_signing import Signing, sign
from services.dispatch.channels.mime import Unsendable, letter
from services.dispatch.channels.return_path import ReturnPath
from services.dispatch.channels.smtp_lines import COMMAND_SECONDS, CONNECT_SECONDS, CannotConnect, Lines
from services.dispatch.channels.smtp_settings import Server, SmtpSettings, server_at, server_of
from shared.settings import Settings

log = structlog.get_logger(__name__)

# Connecting, EHLO, MAIL and RCPT together, over as many connections as it takes; then DATA, then the letter.
ENVELOPE_SECONDS = CONNECT_SECONDS + 3 * COMMAND_SECONDS
DATA_SECONDS = 20.0
_GO_ON = 354
_FIRST_DOT = re.compile(rb"(?m)^\.")
_LINE_END = re.compile(rb"\r\n|\r|\n")
MAILS_A_ROUND = 200
_READ_AT_A_TIME = 2
# A letter of this many characters takes milliseconds to write and to sign; longer ones are not written on the loop.
_LONG = 20_000


@dataclass(frozen=True)
class Posting:
    """A letter as it leaves: over which server, from and to whom the envelope says, with which content. `envelope_id`:
    asks for delivery reports under this name, where the server can."""

    server: Server
    sender: str
    recipient: str
    content: bytes
    envelope_id: str = ""


class Smtp(Adapter):
    """The channel email over a mail server."""

    name = "smtp"
    channel = "email"
    address_kind = "email"
    part = "email"
    settings_type = SmtpSettings
    # `start by` is checked again before DATA: DATA, the letter and, if it is refused, RSET come after it. The envelope of one
    # that may not start any more takes no longer.
    timeout = timedelta(seconds=COMMAND_SECONDS + DATA_SECONDS + COMMAND_SECONDS)
    repeatable = False
    sessions = 16
    preference = 10

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._reading = asyncio.Semaphore(_READ_AT_A_TIME)
        self._lines = Lines(world.settings.outside_allow, self.sessions, _host_name(world.origin))

    @classmethod
    def serves_untold(cls, settings: Settings) -> bool:
        return settings.smtp_url is not None

    async def send(self, exchange: Exchange) -> Result:
        try:
            if len(exchange.rendered.text) + len(exchange.rendered.html) > _LONG:
                posting = await asyncio.to_thread(self._posting, exchange)
            else:
                posting = self._posting(exchange)
        except Unsendable as problem:
            return Result("failed", str(problem))
        try:
            async with asyncio.timeout(ENVELOPE_SECONDS):
                client = await self._envelope(exchange, posting)
        except CannotConnect as problem:
            return Result("retry", str(problem))
        except SMTPResponseException as refusal:
            return _refused(refusal)
        except (SMTPException, OSError, TimeoutError) as problem:
            # Nothing of the letter has been said yet.
            return Result("retry", f"the server cannot be reached: {type(problem).__name__}")
        return await self._content(client, exchange, posting)

    async def receive(self, call: Call) -> Received:
        """A raw mail that came to the return path, as a mail server pipes it; `?recipient=` may say to whom."""
        settings = call.settings
        if not isinstance(settings, SmtpSettings) or settings.bounce_key is None:
            raise Forged("no bounce_key is set: nothing is read back")
        key = settings.bounce_key.get_secret_value()
        shown = call.headers.get("authorization", "")
        if not hmac.compare_digest(shown.encode(), f"Bearer {key}".encode()):
            raise Forged("the header Authorization does not show the bounce_key")
        paths = ReturnPath(settings.return_path, key)
        # Not on the loop: strangers write such mails, and taking a contrived one apart takes long.
        async with self._reading:
            return Received(
                await asyncio.to_thread(bounces.read, call.body, call.query.get("recipient", ""), paths, call.at)
            )

    async def attend(self, settings: Any) -> None:
        """Reads what lies in the `bounce_folder`. A mail is put away after its reports are stored; what is read twice,
        here or by a neighbour, is told under the same ids."""
        if not isinstance(settings, SmtpSettings) or not settings.bounce_folder or self.world.tell is None:
            return
        assert settings.bounce_key is not None
        paths = ReturnPath(settings.return_path, settings.bounce_key.get_secret_value())
        for mail in await asyncio.to_thread(maildir.waiting, Path(settings.bounce_folder), MAILS_A_ROUND):
            raw = await asyncio.to_thread(maildir.content, mail)
            if raw is None:
                continue
            try:
                reports = await asyncio.to_thread(bounces.read, raw, "", paths, self.world.clock.now())
            except (Forged, Unreadable) as problem:
                log.warning("bounce.not_believed", problem=str(problem))
                reports = []
            if reports:
                await self.world.tell(self.name, reports)
            await asyncio.to_thread(maildir.put_away, mail)

    def _posting(self, exchange: Exchange) -> Posting:
        """:raises Unsendable: see `mime.letter`"""
        settings = exchange.settings
        if settings is None:
            url = self.world.settings.smtp_url
            assert url is not None, "an adapter serves once it was told its settings, or SMTP_URL is set"
            server = server_at(url.get_secret_value())
            return Posting(server, exchange.sender[1], exchange.address, letter(exchange))
        assert isinstance(settings, SmtpSettings)
        return posting_of(settings, exchange)

    async def _envelope(self, exchange: Exchange, posting: Posting) -> SMTP:
        """MAIL and RCPT on a kept connection, or on a new one if that has died meanwhile."""
        while True:
            exchange.check_start()
            client, kept = await self._lines.take(posting.server)
            try:
                return await self._introduce(client, posting)
            except (SMTPServerDisconnected, OSError, TimeoutError) as problem:
                client.close()
                if not kept:
                    raise
                if isinstance(problem, TimeoutError):
                    self._lines.distrust(posting.server)
            except SMTPResponseException as refusal:
                # 421, "closing": what a server says to a connection that was idle for long.
                if not kept or refusal.code != 421:
                    raise

    async def _introduce(self, client: SMTP, posting: Posting) -> SMTP:
        mail_options, rcpt_options, encoding = [], [], "ascii"
        if not posting.recipient.isascii():
            mail_options, encoding = ["SMTPUTF8"], "utf-8"
        try:
            if posting.envelope_id and await _can_report(client):
                mail_options += ["RET=HDRS", f"ENVID={posting.envelope_id}"]
                rcpt_options += ["NOTIFY=SUCCESS,FAILURE"]
            await client.mail(posting.sender, options=mail_options, encoding=encoding, timeout=COMMAND_SECONDS)
            await client.rcpt(posting.recipient, options=rcpt_options, encoding=encoding, timeout=COMMAND_SECONDS)
        except SMTPResponseException as refusal:
            await self._keep(posting, client, refusal)
            raise
        except BaseException:
            client.close()
            raise
        return client

    async def _content(self, client: SMTP, exchange: Exchange, posting: Posting) -> Result:
        try:
            exchange.check_start()
        except TooLate:
            await self._lines.keep(posting.server, client, reset=True)
            raise
        try:
            answer = await client.execute_command(b"DATA", timeout=COMMAND_SECONDS)
            if answer.code == _GO_ON:
                return await self._letter(client, posting)
            refusal = SMTPResponseException(answer.code, answer.message)
        except SMTPResponseException as unreadable:
            refusal = unreadable
        except (SMTPException, OSError, TimeoutError) as problem:
            client.close()
            return Result("retry", f"the line went dead before the letter: {type(problem).__name__}")
        except BaseException:
            client.close()
            raise
        await self._keep(posting, client, refusal)
        return _refused(refusal)

    async def _letter(self, client: SMTP, posting: Posting) -> Result:
        """From here on the server may have the letter, whatever is heard of it: only a refusal that can be read says no.

        :raises SMTPServerDisconnected: the line was gone before the first byte
        """
        if client.protocol is None:
            raise SMTPServerDisconnected("the line is gone")
        client.protocol.write(_dotted(posting.content))
        try:
            answer = await client.protocol.read_response(timeout=DATA_SECONDS)
        except SMTPResponseException:
            client.close()
            return Result("unknown", "the answer to the letter cannot be read")
        except (SMTPException, OSError, TimeoutError) as problem:
            client.close()
            return Result("unknown", f"the line went dead in DATA: {type(problem).__name__}")
        if _is_refusal(answer.code):
            refusal = SMTPResponseException(answer.code, answer.message)
            await self._keep(posting, client, refusal)
            return _refused(refusal)
        if not 200 <= answer.code < 300:
            client.close()
            return Result("unknown", f"the answer to the letter is neither yes nor no: {answer.code}")
        await self._lines.keep(posting.server, client)
        return Result("sent", f"{answer.code} {bounces.enhanced_code(answer.message)}".strip())

    async def _keep(self, posting: Posting, client: SMTP, refusal: SMTPResponseException) -> None:
        if refusal.code == 421 or not _is_refusal(refusal.code):
            client.close()  # it ends the session, or is out of step with us
        else:
            await self._lines.keep(posting.server, client, reset=True)

    async def close(self) -> None:
        await self._lines.close()


def posting_of(settings: SmtpSettings, exchange: Exchange) -> Posting:
    """The letter as the settings say, signed.

    :raises Unsendable: see `mime.letter`
    """
    if settings.sender:
        exchange = dataclasses.replace(exchange, sender=(exchange.sender[0], settings.sender))
    sender, headers, envelope_id = exchange.sender[1], {}, ""
    if settings.bounce_key is not None:
        paths = ReturnPath(settings.return_path, settings.bounce_key.get_secret_value())
        sender, token = paths.address(exchange.message), paths.token(exchange.message)
        # RFC 9477: whoever offers his users a complaint button may send the complaint here.
        headers = {"CFBL-Address": f"{settings.return_path}; report=arf", "CFBL-Feedback-ID": token}
        envelope_id = token if settings.delivery_reports else ""
    content = letter(exchange, headers)
    if settings.dkim_key is not None:
        domain = settings.dkim_domain or exchange.sender[1].rpartition("@")[2]
        signing = Signing(domain, settings.dkim_selector, settings.dkim_key.get_secret_value())
        content = sign(content, signing, exchange.at)
    return Posting(server_of(settings), sender, exchange.address, content, envelope_id)


def _host_name(origin: str) -> str | None:
    """The name under which the world knows this deployment; None if it is but a machine's address."""
    host = urlsplit(origin).hostname or ""
    return host if "." in host and host.rpartition(".")[2].isalpha() else None


async def _can_report(client: SMTP) -> bool:
    if not client.is_ehlo_or_helo_needed:
        return client.supports_extension("dsn")
    await client.ehlo(timeout=COMMAND_SECONDS)
    return client.supports_extension("dsn")


def _refused(refusal: SMTPResponseException) -> Result:
    """Of an exchange in which nothing of the letter was said, or whose answer is a clear no. 5xx: for good, and of RCPT's
    those that say the address does not exist; but what is said of the sender is the shop's to mend. Whatever else: later."""
    enhanced = bounces.enhanced_code(refusal.message)
    detail = f"{refusal.code} {enhanced}".strip()
    if not 500 <= refusal.code < 600:
        return Result("retry", detail)
    if _of_the_sender(refusal, enhanced):
        return Result("retry", f"{detail}: the server does not take the sender, or wants another login")
    no_such = isinstance(refusal, SMTPRecipientRefused) and bounces.no_such_address(refusal.code, refusal.message)
    return Result("bounced" if no_such else "failed", detail)


def _of_the_sender(refusal: SMTPResponseException, enhanced: str) -> bool:
    """Whatever MAIL is answered is, but for what else may stand there: that the server knows no addresses in other scripts
    (RFC 6531 §3.5: 5.6.7; a parameter that it does not know), which this letter needs."""
    if isinstance(refusal, SMTPSenderRefused):
        return refusal.code not in (504, 555) and enhanced != "5.6.7"
    return bounces.of_the_sender(refusal.code, enhanced, refusal.message)


def _is_refusal(code: int) -> bool:
    return 400 <= code < 600


def _dotted(content: bytes) -> bytes:
    """The letter as DATA takes it (RFC 5321, 4.5.2): lines that begin with a dot get another, a lone dot ends it."""
    lines = _LINE_END.sub(b"\r\n", content)
    ended = lines if lines.endswith(b"\r\n") else lines + b"\r\n"
    return _FIRST_DOT.sub(b"..", ended) + b".\r\n"


ADAPTER = Smtp
