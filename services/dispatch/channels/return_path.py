"""The return path of a letter (VERP): `bounces+<token>@mail.shop.example`. What comes back there tells which message it
speaks of, and proves that whoever sent it has had that message: the token is signed.

26 bytes (message id and the first 10 bytes of an HMAC-SHA256 over it) in base32, since servers may change the case.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from uuid import UUID

_BODY, _MAC = 16, 10
_TOKEN = re.compile(r"(?<![A-Za-z2-7])[A-Za-z2-7]{42}(?![A-Za-z2-7])")
_MOST_TRIED = 50


class ReturnPath:
    """Makes and reads return paths with the adapter's bounce key."""

    def __init__(self, mailbox: str, key: str) -> None:
        """:param mailbox: such as `bounces@mail.shop.example`"""
        self._local, _, self._domain = mailbox.partition("@")
        self._key = hashlib.blake2b(key.encode(), person=b"dripline-verp").digest()

    def address(self, message: UUID) -> str:
        """The envelope's sender of this message."""
        return f"{self._local}+{self.token(message)}@{self._domain}"

    def token(self, message: UUID) -> str:
        """42 characters of [a-z2-7]."""
        return base64.b32encode(message.bytes + self._mac(message.bytes)).rstrip(b"=").decode().lower()

    def find(self, texts: Iterable[str]) -> UUID | None:
        """The message of the first valid token in these texts."""
        tried = 0
        for text in texts:
            for match in _TOKEN.finditer(text):
                if (message := self._read(match.group(0))) is not None:
                    return message
                tried += 1
                if tried == _MOST_TRIED:
                    return None
        return None

    def stands_in(self, text: str) -> bool:
        """Whether a valid token stands anywhere in this text; all of it is looked at."""
        return any(self._read(match.group(0)) is not None for match in _TOKEN.finditer(text))

    def _read(self, token: str) -> UUID | None:
        raw = base64.b32decode(token.upper() + "=" * (-len(token) % 8))
        body, mac = raw[:_BODY], raw[_BODY:]
        return UUID(bytes=body) if hmac.compare_digest(mac, self._mac(body)) else None

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:_MAC]
