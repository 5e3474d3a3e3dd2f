"""Public links, each with a signed token: what kind of link, of which message, which number.

A token is 19 bytes (kind, message id, number) and the first 12 bytes of an HMAC-SHA256 over them, base64url: 42
characters. The kind is signed, so that a token made for one purpose opens nothing else. Tokens carry no personal data.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Literal
from uuid import UUID

import msgspec

Kind = Literal["click", "open", "unsubscribe", "confirm"]
_CODES: dict[Kind, bytes] = {"click": b"c", "open": b"o", "unsubscribe": b"u", "confirm": b"f"}
_PATHS: dict[Kind, str] = {"click": "c", "open": "o", "unsubscribe": "u", "confirm": "confirm"}
_BODY, _MAC = 19, 12


class Token(msgspec.Struct, frozen=True):
    """What a token says. `number`: of the link within the message, for clicks; else 0."""

    kind: Kind
    message: UUID
    number: int = 0


class Signer:
    """Makes and reads tokens with the deployment's secret."""

    def __init__(self, secret: bytes, origin: str) -> None:
        self._key = hashlib.blake2b(secret, person=b"dripline-links").digest()
        self.origin = origin

    def url(self, kind: Kind, message: UUID, number: int = 0) -> str:
        """The absolute address of a public link."""
        return f"{self.origin}/{_PATHS[kind]}/{self.token(kind, message, number)}"

    def token(self, kind: Kind, message: UUID, number: int = 0) -> str:
        body = _CODES[kind] + message.bytes + number.to_bytes(2, "big")
        return base64.urlsafe_b64encode(body + self._mac(body)).rstrip(b"=").decode()

    def read(self, kind: Kind, token: str) -> Token | None:
        """What `token` says, if it was made here and for this kind of link; else None."""
        try:
            raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError, ValueError):
            return None
        body, mac = raw[:_BODY], raw[_BODY:]
        if len(raw) != _BODY + _MAC or body[:1] != _CODES[kind] or not hmac.compare_digest(mac, self._mac(body)):
            return None
        return Token(kind, UUID(bytes=body[1:17]), int.from_bytes(body[17:], "big"))

    def is_ours(self, url: str) -> bool:
        """Whether it is one of our public links: these are never wrapped in another one."""
        return any(url.startswith(f"{self.origin}/{path}/") for path in _PATHS.values())

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:_MAC]
