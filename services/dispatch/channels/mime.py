"""An e-mail as bytes: what SMTP sends and the inbox keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.errors import MessageError
from email.headerregistry import Address, HeaderRegistry
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime
from functools import lru_cache
from typing import Any

from services.dispatch.channels.base import Exchange

# One address without quoting: what could end it and begin another thing is not in it.
_ONE_ADDRESS = re.compile(r"[^\s<>()\[\],;:\\\"@\x00-\x1f\x7f]+@[A-Za-z0-9.-]+")


class Unsendable(ValueError):
    """The address or the subject cannot stand in a mail; the text says which, without quoting it."""


# Headers that say the same in letter after letter. Reading and folding headers is most of the work on a letter.
_REPEATED = frozenset(
    {
        "auto-submitted",
        "content-transfer-encoding",
        "content-type",
        "from",
        "list-unsubscribe-post",
        "mime-version",
    }
)


class _Registry(HeaderRegistry):
    """The library's registry, which makes the class of a header once and not for every header."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        name = name.lower()
        if name not in self._made:
            self._made[name] = super().__getitem__(name)
        return self._made[name]


class _Letters(EmailPolicy):
    """The library's policy, which reads and folds a header that repeats once."""

    def header_store_parse(self, name: str, value: Any) -> tuple[str, Any]:
        if name.lower() in _REPEATED and type(value) is str:
            return _parsed(self, name, value)
        return super().header_store_parse(name, value)

    def fold_binary(self, name: str, value: Any) -> bytes:
        # A boundary is another one each time.
        if name.lower() in _REPEATED and "boundary" not in value:
            return _folded(self, name, value)
        return super().fold_binary(name, value)


@lru_cache(256)
def _parsed(policy: _Letters, name: str, value: str) -> tuple[str, Any]:
    return EmailPolicy.header_store_parse(policy, name, value)


@lru_cache(256)
def _folded(policy: _Letters, name: str, value: str) -> bytes:
    return EmailPolicy.fold_binary(policy, name, value)


# What may be typed into 7 bits is: a relay that has to rewrite a letter breaks its signature.
_POLICY = _Letters(linesep="\r\n", cte_type="7bit", header_factory=_Registry())
_POLICY_UTF8 = _POLICY.clone(utf8=True)


def letter(exchange: Exchange, more: Mapping[str, str] | None = None) -> bytes:
    """The e-mail of an exchange. The Message-ID derives from the message, so that receivers recognise a repeat.

    Marketing mail carries RFC 8058's one-click unsubscribing. Header values cannot break out of their line: the
    library refuses line breaks, and an address is taken as one address or not at all.

    :param more: further headers, of our own making
    :raises Unsendable: the address or the subject is impossible
    """
    mail = EmailMessage(policy=_POLICY if exchange.address.isascii() else _POLICY_UTF8)
    name, address = exchange.sender
    mail["From"] = str(Address(display_name=name, addr_spec=address))
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
        # Nobody who writes a template knows the id; the library would look through all texts for one that is not in them.
        mail.make_alternative(boundary=f"={exchange.message.hex}=")
        mail.add_alternative(exchange.rendered.html, subtype="html")
    head, empty_line, body = mail.as_bytes().partition(b"\r\n\r\n")
    # The library begins a long value on a line of its own: allowed, and not understood by everybody who looks for a link.
    return head.replace(b"List-Unsubscribe:\r\n <", b"List-Unsubscribe: <") + empty_line + body


def message_id(exchange: Exchange) -> str:
    """`<message id@sender's domain>`."""
    return f"<{exchange.message}@{exchange.sender[1].rpartition('@')[2]}>"
