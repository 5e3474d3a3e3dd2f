"""An e-mail as bytes: what SMTP sends and the inbox keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping
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


# What may be typed into 7 bits is: a relay that has to rewrite a letter breaks its signature.
_POLICY, _POLICY_UTF8 = SMTP.clone(cte_type="7bit"), SMTPUTF8.clone(cte_type="7bit")


def letter(exchange: Exchange, more: Mapping[str, str] | None = None) -> bytes:
    """The e-mail of an exchange. The Message-ID derives from the message, so that receivers recognise a repeat.

    Marketing mail carries RFC 8058's one-click unsubscribing. Header values cannot break out of their line: the
    library refuses line breaks, and an address is taken as one address or not at all.

    :param more: further headers, of our own making
    :raises Unsendable: the address or the subject is impossible
    """
    mail = EmailMessage(policy=_POLICY if exchange.address.isascii() else _POLICY_UTF8)
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
    for header, value in (more or {}).items():
        mail[header] = value
    mail.set_content(exchange.rendered.text)
    if exchange.rendered.html:
        mail.add_alternative(exchange.rendered.html, subtype="html")
    head, empty_line, body = mail.as_bytes().partition(b"\r\n\r\n")
    # The library begins a long value on a line of its own: allowed, and not understood by everybody who looks for a link.
    return head.replace(b"List-Unsubscribe:\r\n <", b"List-Unsubscribe: <") + empty_line + body


def message_id(exchange: Exchange) -> str:
    """`<message id@sender's domain>`."""
    return f"<{exchange.message}@{exchange.sender[1].rpartition('@')[2]}>"
