"""Secrets of adapters at rest: AES-256-GCM under a key derived (HKDF-SHA256) from the deployment's secret.

The adapter's name is authenticated with them, so that one adapter's secrets cannot be put into another's row.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.ids import RandomBits

_PURPOSE = b"dripline/dispatch/adapter-secrets/1"
_NONCE_BYTES = 12


class Unsealable(Exception):
    """The secrets were sealed under another deployment's secret, or changed since."""


class Sealer:
    """Seals and opens with one deployment's secret."""

    def __init__(self, secret: bytes, bits: RandomBits) -> None:
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(secret)
        self._cipher, self._bits = AESGCM(key), bits

    def seal(self, adapter: str, secrets: Mapping[str, str]) -> bytes | None:
        """None if there are none."""
        if not secrets:
            return None
        nonce = self._bits(8 * _NONCE_BYTES).to_bytes(_NONCE_BYTES, "big")
        return nonce + self._cipher.encrypt(nonce, msgspec.json.encode(dict(secrets)), adapter.encode())

    def open(self, adapter: str, sealed: bytes | None) -> dict[str, str]:
        """Raises Unsealable."""
        if sealed is None:
            return {}
        try:
            plain = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], adapter.encode())
        except InvalidTag:
            raise Unsealable(
                "the secrets were stored under another SECRET_KEY: tell the adapter its secrets again"
            ) from None
        return msgspec.json.decode(plain, type=dict[str, str])
