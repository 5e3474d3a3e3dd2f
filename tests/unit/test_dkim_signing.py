"""DKIM signatures, verified by dkimpy's verifier; `test_channel_smtp.py` has OpenDKIM verify what arrived."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from services.dispatch.channels.dkim_signing import BadKey, Key, Signing, private_key, sign

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
LETTER = (
    b"From: Shop <shop@shop.example>\r\n"
    b"To: anna@example.com\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n an offer  \r\n"
    b"Date: Tue, 10 Mar 2026 09:00:00 +0000\r\n"
    b"List-Unsubscribe: <https://shop.example/u/token>\r\n"
    b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    b"\r\n"
    b"Hello \t world \r\n\r\n.\r\nend\r\n\r\n\r\n"
)


def pem(key: Key | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def record(key: Key) -> bytes:
    """What lies in the DNS."""
    if isinstance(key, rsa.RSAPrivateKey):
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)
    return b"v=DKIM1; k=ed25519; p=" + base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


@pytest.fixture(scope="module", params=["rsa", "ed25519"])
def key(request: pytest.FixtureRequest) -> Key:
    return rsa.generate_private_key(65537, 2048) if request.param == "rsa" else Ed25519PrivateKey.generate()


def verifies(letter: bytes, key: Key) -> bool:
    asked: list[bytes] = []

    def look_up(name: bytes, timeout: float = 0) -> bytes:
        asked.append(name)
        return record(key)

    good: bool = dkim.verify(letter, dnsfunc=look_up)
    assert not good or asked == [b"drip._domainkey.shop.example."]
    return good


def signed(key: Key, letter: bytes = LETTER) -> bytes:
    return sign(letter, Signing("shop.example", "drip", pem(key)), NOON)


def test_a_signature_verifies(key: Key) -> None:
    assert verifies(signed(key), key)


def test_it_survives_what_relays_do_to_white_space(key: Key) -> None:
    relayed = signed(key).replace(b"Hello \t world \r\n", b"Hello world\r\n").replace(b"end\r\n\r\n\r\n", b"end\r\n")
    assert verifies(b"Received: by mx.example\r\n" + relayed, key)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (b"Hello", b"Hullo"),
        (b"<https://shop.example/u/token>", b"<https://thief.example/u/token>"),
        (b"List-Unsubscribe=One-Click", b"List-Unsubscribe=Two-Click"),
        (b"Shop <shop@", b"Bank <shop@"),
        (b"To: anna", b"To: bert"),
        (b"Date: Tue, 10", b"Date: Wed, 11"),
    ],
)
def test_whatever_is_changed_breaks_it(key: Key, was: bytes, becomes: bytes) -> None:
    changed = signed(key).replace(was, becomes)
    assert changed != signed(key) and not verifies(changed, key)


@pytest.mark.parametrize(
    "header", ["From: thief@evil.example", "Subject: urgent", "List-Unsubscribe: <https://evil.example>"]
)
def test_no_second_header_can_be_put_in_front(key: Key, header: str) -> None:
    assert not verifies(f"{header}\r\n".encode() + signed(key), key)


def test_both_unsubscribe_headers_are_named_in_it(key: Key) -> None:
    signature = signed(key).partition(b"From: Shop")[0].replace(b"\r\n ", b"").decode()
    named = signature.partition(";h=")[2].partition(";")[0].replace(" ", "").split(":")
    assert {"list-unsubscribe", "list-unsubscribe-post", "from", "date", "to"} <= set(named)
    assert named.count("from") == 2 and "reply-to" not in named
    assert max(len(line) for line in signed(key).split(b"\r\n")) <= 78


@pytest.mark.parametrize(
    "body", [b"", b"\r\n", b" \r\n\r\n", b"no line end", b"x" * 200_000, b"long  line \r\n" * 20_000]
)
def test_every_body_can_be_signed(key: Key, body: bytes) -> None:
    assert verifies(signed(key, b"From: a@shop.example\r\n\r\n" + body), key)


def test_a_usual_letter_takes_less_time_than_the_loop_may_be_held_up() -> None:
    key, letter = (
        rsa.generate_private_key(65537, 2048),
        LETTER + b"a line of an ordinary letter, as it may be\r\n" * 400,
    )
    signed(key, letter)
    begun = time.process_time()
    for _ in range(10):
        signed(key, letter)
    assert (time.process_time() - begun) / 10 < 0.020


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "not a private key"),
        (pem(rsa.generate_private_key(65537, 1024)).replace("PRIVATE", "PUBLIC"), "not a private key"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "RSA or an ed25519"),
    ],
)
def test_what_is_no_key_for_this_is_said(text: str, says: str) -> None:
    with pytest.raises(BadKey, match=says):
        private_key(text)
