"""DKIM (RFC 6376, RFC 8463): a letter's signature. dkimpy brings header and body into their canonical form,
`cryptography` signs; RSA and ed25519.

Signed are the headers that a reader or a receiving server acts upon, both List-Unsubscribe headers among them
(RFC 8058 §4). Those in `_SEALED` are named once more than they are there, so that nobody can add a second one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from dkim.canonicalization import (
    Relaxed,
    compress_whitespace,
    correct_empty_body,
    strip_trailing_lines,
    strip_trailing_whitespace,
)

LEAST_BITS = 1024  # RFC 8301; 2048 is what to use
_SIGNED = (
    "from to subject date message-id reply-to mime-version content-type content-transfer-encoding auto-submitted "
    "list-unsubscribe list-unsubscribe-post cfbl-address cfbl-feedback-id"
).split()
_SEALED = ("from", "subject", "list-unsubscribe", "list-unsubscribe-post")
_LINE = 72
# A regular expression holds up every thread of the process while it runs: long bodies go through in pieces of this size.
_PIECE = 64 * 1024

Key = RSAPrivateKey | Ed25519PrivateKey


class BadKey(ValueError):
    """The text is not a private key that can sign; never quotes it."""


@dataclass(frozen=True)
class Signing:
    """Who signs: `d=` and `s=` of the signature, and the private key in PEM."""

    domain: str
    selector: str
    pem: str


@lru_cache(maxsize=16)
def private_key(pem: str) -> Key:
    """Reads a private key once.

    :raises BadKey: no key, a short one, or of another kind
    """
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as problem:
        raise BadKey("is not a private key in PEM without a password") from problem
    if isinstance(key, RSAPrivateKey):
        if key.key_size < LEAST_BITS:
            raise BadKey(f"is an RSA key of {key.key_size} bits; at least {LEAST_BITS} are needed, 2048 are usual")
        return key
    if isinstance(key, Ed25519PrivateKey):
        return key
    raise BadKey("must be an RSA or an ed25519 key")


def sign(content: bytes, signing: Signing, at: datetime) -> bytes:
    """The letter with its DKIM-Signature in front.

    :param content: a whole letter with CRLF line ends
    :param at: when it was signed, for `t=`
    :raises BadKey: see `private_key`
    """
    key = private_key(signing.pem)
    head, _, body = content.partition(b"\r\n\r\n")
    headers = _headers(head + b"\r\n")
    present = [name for name in _SIGNED if any(found == name.encode() for found, _ in headers)]
    named = present + [name for name in _SEALED if name in present]
    hashed = base64.b64encode(hashlib.sha256(_canonical(body)).digest()).decode()
    algorithm = "rsa-sha256" if isinstance(key, RSAPrivateKey) else "ed25519-sha256"
    unsigned = _folded(
        f"v=1; a={algorithm}; c=relaxed/relaxed;",
        f"d={signing.domain}; s={signing.selector}; t={int(at.timestamp())}; bh={hashed};",
        f"h={':'.join(named)};",
        "b=",
    )
    # Of a header that is there once, the second naming stands for nothing.
    chosen = [next((name, value) for name, value in headers if name == wanted.encode()) for wanted in present]
    canonical = Relaxed.canonicalize_headers([*chosen, (b"dkim-signature", unsigned.encode())])
    data = b"".join(name + b":" + value for name, value in canonical).removesuffix(b"\r\n")
    signature = base64.b64encode(_signature(key, data)).decode()
    lines = "\r\n ".join(signature[i : i + _LINE] for i in range(0, len(signature), _LINE))
    return f"DKIM-Signature:{unsigned}\r\n {lines}\r\n".encode() + content


def _signature(key: Key, data: bytes) -> bytes:
    if isinstance(key, RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(hashlib.sha256(data).digest())


def _canonical(body: bytes) -> bytes:
    """`Relaxed.canonicalize_body`, in pieces."""
    lines = b"".join(compress_whitespace(strip_trailing_whitespace(piece)) for piece in _pieces(body))
    canonical: bytes = correct_empty_body(strip_trailing_lines(lines))
    return canonical


def _pieces(body: bytes) -> Iterator[bytes]:
    """Whole lines, about `_PIECE` bytes at a time."""
    begin = 0
    while begin < len(body):
        end = body.find(b"\r\n", begin + _PIECE)
        end = len(body) if end < 0 else end + 2
        yield body[begin:end]
        begin = end


def _headers(head: bytes) -> list[tuple[bytes, bytes]]:
    """(name in lower case, value with its line ends), from the top."""
    found: list[tuple[bytes, bytes]] = []
    for line in head.splitlines(keepends=True):
        if line[:1] in (b" ", b"\t") and found:
            name, value = found[-1]
            found[-1] = (name, value + line)
        else:
            name, _, value = line.partition(b":")
            found.append((name.strip().lower(), value))
    return found


def _folded(*parts: str) -> str:
    """The value on lines of at most `_LINE` characters where it can be broken: at spaces, and in h= at colons."""
    lines: list[str] = []
    for part in parts:
        line = ""
        for word in part.replace(":", ": ").split(" ") if part.startswith("h=") else part.split(" "):
            if line and len(line) + 1 + len(word) > _LINE:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return " " + "\r\n ".join(lines)
