"""An e-mail as bytes: what SMTP sends and the inbox keeps."""

from __future__ import annotations

import re
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime

from services.dispatch.channels.base import Exchange

# One address without quoting: what could end it and begin another thing is not in it.
_ONE_ADDRESS = re.compile(r"[^\s<>()\[\],;:\\\"@\x00-\x1f\x7f]+@[A-Za-z0-9.-]+")


class Unsendable(ValueError):
    """The address or the subject cannot stand in a mail; the text says which, without quoting it."""


def letter(exchange: Exchange) -> bytes:
    """The e-mail of an exchange. The Message-ID derives from the message, so that receivers recognise a repeat.

    Marketing mail carries RFC 8058's one-click unsubscribing. Header values cannot break out of their line: the
    library refuses line breaks, and an address is taken as one address or not at all.

    :raises Unsendable: the address or the subject is impossible
    """
    mail = EmailMessage(policy=SMTP if exchange.address.isascii() else SMTPUTF8)
    name, address = exchange.sender
    mail["From"] = Address(display_name=name, addr_spec=address)
    if not _ONE_ADDRESS.fullmatch(exchange.address):
        raise Unsendable("the address cannot stand in a mail")
    local, _, domain = exchange.address.rpartition("@")
    try:
        mail["To"] = Address(username=local, domain=domain)
        mail["Subject"] = exchange.rendered.subject
    except (ValueError, MessageError, IndexError) as problem:
        raise Unsendable(f"the address or the subject cannot stand in a mail ({type(problem).__name__})") from problem
    mail["Date"] = format_datetime(exchange.at)
    mail["Message-ID"] = message_id(exchange)
    if exchange.purpose == "marketing" and (unsubscribe := exchange.rendered.urls.get("unsubscribe")):
        mail["List-Unsubscribe"] = f"<{unsubscribe}>"
        mail["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(exchange.rendered.text)
    if exchange.rendered.html:
        mail.add_alternative(exchange.rendered.html, subtype="html")
    return mail.as_bytes()


def message_id(exchange: Exchange) -> str:
    """`<message id@sender's domain>`."""
    return f"<{exchange.message}@{exchange.sender[1].rpartition('@')[2]}>"
