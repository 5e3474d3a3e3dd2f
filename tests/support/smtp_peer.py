"""An SMTP server for tests: a process of its own that writes down, itself, what it was told and what it answered.

    peer.reply("bob@example.com", "550 5.1.1 no such person")    # answer to RCPT, from now on
    peer.behave(hang_up_after_data=True)                           # takes the letter, then the line goes dead
    peer.letters()                                                 # what it answered 250 for
    SmtpPeer(security="starttls", users={"shop": "password"})      # with a certificate of `peer.authority`, and AUTH

The ledger is the oracle: it is on disk before the answer leaves, and it survives `kill`.
"""

from __future__ import annotations

import argparse
import asyncio
import email
import email.policy
import json
import os
import signal
import socket
import ssl
import time
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Literal

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.support.authority import Authority
from tests.support.peer_process import SteeredPeer


@dataclass
class Behaviour:
    """How the peer answers; written by the test, read by the peer before each answer."""

    replies: dict[str, str] = field(default_factory=dict)
    """Recipient → answer to its RCPT, such as `451 4.3.0 try later`."""

    mail_reply: str = ""
    """Answer to MAIL instead of 250: the sender is not taken."""

    data_reply: str = ""
    """Answer to the end of DATA instead of 250; the letter is not taken."""

    delay_seconds: float = 0.0
    """Pause before the answer to the end of DATA; the letter is in the ledger already."""

    unreadable_reply: str = ""
    """The letter is taken, and this is said instead of 250."""

    data_command_reply: str = ""
    """Answer to the command DATA instead of 354: no letter comes."""

    hang_up_after_data: bool = False
    """The letter is taken and the connection is cut before the answer: the sender cannot know."""


@dataclass(frozen=True)
class Letter:
    """One letter that the peer took."""

    sender: str
    recipients: list[str]
    at: float
    """Seconds of the peer's wall clock at which DATA ended."""
    message: EmailMessage


class SmtpPeer(SteeredPeer):
    """The server. The ledger's kinds: `rcpt`, `refused`, `taken`, `auth`."""

    module = "tests.support.smtp_peer"
    behaviours = Behaviour

    def __init__(
        self,
        *,
        security: Literal["none", "starttls", "tls"] = "none",
        name: str = "127.0.0.1",
        users: dict[str, str] | None = None,
        mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN"),
    ) -> None:
        """:param name: for whom its certificate is made out

        :param users: who may send, by password; by default everybody
        """
        super().__init__()
        self.authority = Authority(self.folder)
        certificate, key = self.authority.server(name)
        server = {"security": security, "certificate": str(certificate), "key": str(key)}
        (self.folder / "server.json").write_text(
            json.dumps({**server, "users": users or {}, "mechanisms": list(mechanisms)})
        )
        self._greets = security != "tls"

    @property
    def url(self) -> str:
        """As SMTP_URL takes it."""
        return f"smtp://127.0.0.1:{self.port}"

    def reply(self, recipient: str, answer: str) -> None:
        """Answer RCPT of `recipient` with `answer` from now on."""
        self.behave(replies={**self.behaviour.replies, recipient: answer})

    def letters(self, recipient: str | None = None) -> list[Letter]:
        """The letters it took, all or those to one recipient."""
        return [
            Letter(
                sender=entry["sender"],
                recipients=entry["recipients"],
                at=entry["at"],
                message=email.message_from_string(entry["content"], policy=email.policy.default),
            )
            for entry in self.entries("taken")
            if recipient is None or recipient in entry["recipients"]
        ]

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return not self._greets or connection.recv(3) == b"220"
        except OSError:
            return False


class _Desk:
    """The peer's side: aiosmtpd's handler."""

    def __init__(self, folder: Path, users: dict[str, str]) -> None:
        self._users = users
        self._behaviour = folder / "behaviour.json"
        self._ledger = open(folder / "ledger.jsonl", "a")  # noqa: SIM115 - open as long as the process lives

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, login: LoginPassword
    ) -> AuthResult:
        known = self._users.get(login.login.decode()) == login.password.decode()
        self._write(kind="auth", mechanism=mechanism, user=login.login.decode(), good=known, tls=bool(session.ssl))
        return AuthResult(success=known, handled=False)

    async def handle_MAIL(self, server: SMTP, session: Session, envelope: Envelope, address: str, o: list[str]) -> str:
        if answer := self.now().mail_reply:
            return answer
        envelope.mail_from = address
        envelope.mail_options.extend(o)
        return "250 OK"

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, _o: list[str]) -> str:
        answer = self.now().replies.get(address, "250 OK")
        self._write(kind="rcpt", recipient=address, answer=answer)
        if answer.startswith("2"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        behaviour = self.now()
        letter = {"sender": envelope.mail_from, "recipients": envelope.rcpt_tos}
        if behaviour.data_reply and not behaviour.data_reply.startswith("2"):
            self._write(kind="refused", answer=behaviour.data_reply, **letter)
            return behaviour.data_reply
        content = envelope.original_content or b""
        letter["tls"] = session.ssl is not None or server.transport.get_extra_info("sslcontext") is not None
        self._write(kind="taken", content=content.decode("utf-8", "surrogateescape"), **letter)
        if behaviour.hang_up_after_data:
            assert server.transport is not None
            server.transport.abort()
        await asyncio.sleep(behaviour.delay_seconds)
        return behaviour.unreadable_reply or behaviour.data_reply or "250 OK"

    def now(self) -> Behaviour:
        return Behaviour(**json.loads(self._behaviour.read_text()))

    def _write(self, **entry: Any) -> None:
        self._ledger.write(json.dumps({"at": time.time(), **entry}) + "\n")
        self._ledger.flush()


class _Server(SMTP):
    """aiosmtpd's server, and what it answers to DATA."""

    async def smtp_DATA(self, arg: str) -> None:
        assert isinstance(self.event_handler, _Desk)
        if answer := self.event_handler.now().data_command_reply:
            await self.push(answer)
        else:
            await super().smtp_DATA(arg)


async def _serve(port: int, folder: Path, parent: int) -> None:
    told = json.loads((folder / "server.json").read_text())
    desk = _Desk(folder, told["users"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(told["certificate"], told["key"])
    secured = told["security"] == "starttls"
    more: dict[str, Any] = {"tls_context": context, "require_starttls": True} if secured else {}
    if told["users"]:
        others = [name for name in ("PLAIN", "LOGIN") if name not in told["mechanisms"]]
        more |= {"authenticator": desk.authenticate, "auth_required": True, "auth_exclude_mechanism": others}
        more |= {"auth_require_tls": secured}
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await loop.create_server(
        lambda: _Server(desk, enable_SMTPUTF8=True, timeout=60, **more),
        "127.0.0.1",
        port,
        ssl=context if told["security"] == "tls" else None,
    )
    async with server:
        while not ended.is_set() and os.getppid() == parent:  # whoever started us may have been killed
            try:
                await asyncio.wait_for(ended.wait(), 1)
            except TimeoutError:
                continue


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(_serve(options.port, options.folder, options.parent))
