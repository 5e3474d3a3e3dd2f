"""E-mail that stays on this machine: a Maildir under `<data>/inbox/email`, which any mail program opens."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from services.dispatch.channels.base import Adapter, Exchange, Result
from services.dispatch.channels.files import write_once
from services.dispatch.channels.mime import Unsendable, letter


class InboxEmail(Adapter):
    """Serves the channel email until SMTP_URL is set."""

    name = "inbox-email"
    channel = "email"
    address_kind = "email"
    part = "email"
    timeout = timedelta(seconds=5)
    repeatable = True
    leaves_machine = False

    async def send(self, exchange: Exchange) -> Result:
        try:
            content = letter(exchange)
        except Unsendable as problem:
            return Result("failed", str(problem))
        exchange.check_start()
        await asyncio.to_thread(_deliver, self.world.inbox / "email", str(exchange.message), content)
        return Result("sent", "written to the Maildir")


def _deliver(maildir: Path, name: str, content: bytes) -> None:
    """Maildir's `new`, under a name that derives from the message: written twice it is there once."""
    for folder in ("cur", "new", "tmp"):
        (maildir / folder).mkdir(parents=True, exist_ok=True)
    write_once(maildir / "new", name, content)


ADAPTER = InboxEmail
