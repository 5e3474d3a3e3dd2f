"""A push service and the browsers behind it: checks VAPID (RFC 8292), decrypts (RFC 8188, RFC 8291), shows.

with WebPushPeer() as peer:
    address = peer.subscribe()          # as a site would post it: web:<p256dh>.<auth>.<endpoint>
    …
    peer.pushes()[0]["payload"]         # as the service worker would read it
    peer.unsubscribe(address)           # 410 from now on
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.push_peer import (
    Answer,
    Desk,
    Entry,
    PushPeer,
    Refusal,
    Request,
    opened,
    padded_off,
    pem,
    put,
    serve,
    unpadded,
)

_CREDENTIALS = re.compile(r"vapid t=([\w.-]+), ?k=([\w-]+)")


class WebPushPeer(PushPeer):
    """The test's side. `public_key`, `private_key`: the shop's VAPID pair, as its generator prints it."""

    module = "tests.support.web_push_peer"

    def __init__(self) -> None:
        super().__init__()
        (self.folder / "browsers").mkdir()
        self.public_key, self.private_key = vapid_pair()

    def subscribe(self, server_key: str | None = None) -> str:
        """A browser subscribes with the shop's key, or with `server_key`; returns the address."""
        name, key, auth = uuid4().hex, ec.generate_private_key(ec.SECP256R1()), os.urandom(16)
        browser = {"key": pem(key).decode(), "auth": padded_off(auth), "server_key": server_key or self.public_key}
        put(self.folder / "browsers" / f"{name}.json", browser)
        return f"web:{padded_off(_point(key))}.{padded_off(auth)}.{self.url}/push/{name}"

    def unsubscribe(self, address: str) -> None:
        """The person takes the permission back."""
        file = self.folder / "browsers" / f"{address.rpartition('/')[2]}.json"
        put(file, {**json.loads(file.read_text()), "gone": True})


def vapid_pair() -> tuple[str, str]:
    """Public and private key, base64url."""
    key = ec.generate_private_key(ec.SECP256R1())
    return padded_off(_point(key)), padded_off(key.private_numbers().private_value.to_bytes(32, "big"))


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


class _PushService(Desk):
    def examine(self, request: Request) -> tuple[Entry, Answer]:
        name = Path(urlsplit(request.path).path).name
        file = self.folder / "browsers" / f"{name}.json"
        if request.method != "POST" or not request.path.startswith("/push/") or not file.exists():
            raise Refusal("there is no such subscription", 404)
        browser = json.loads(file.read_text())
        if browser.get("gone"):
            raise Refusal("the subscription is gone", 410)
        subject = self._vouched(request, browser["server_key"])
        headers = self._headers(request)
        if len(request.body) > 4096:
            raise Refusal("more than 4096 bytes", 413)
        try:
            plain = _decrypted(request.body, browser)
            payload = json.loads(plain)
        except (ValueError, InvalidTag) as problem:
            raise Refusal(f"the browser cannot read it: {type(problem).__name__} {problem}", 400) from None
        entry = {"browser": name, "payload": payload, "length": len(request.body), "subject": subject, **headers}
        return entry, Answer(201, {"location": f"{self.url}/message/{uuid4().hex}"})

    def _vouched(self, request: Request, server_key: str) -> str:
        """RFC 8292: whose token it is, for whom, until when. Returns whom to write to."""
        given = _CREDENTIALS.fullmatch(request.headers.get("authorization", ""))
        if given is None:
            raise Refusal("no VAPID credentials", 401)
        token, key = given.groups()
        if key != server_key:
            raise Refusal("the subscription was made with another key", 403)
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), unpadded(key))
            _, claims = opened(token, public)
        except ValueError as problem:
            raise Refusal(f"the VAPID token is wrong: {problem}", 401) from None
        if claims.get("aud") != self.url:
            raise Refusal(f"the VAPID token is for {claims.get('aud')}", 401)
        if not time.time() < claims.get("exp", 0) <= time.time() + 24 * 3600:
            raise Refusal("the VAPID token has expired, or is good for more than a day", 401)
        return str(claims.get("sub", ""))

    def _headers(self, request: Request) -> Entry:
        """RFC 8030 §5.2-5.4, RFC 8291 §4."""
        ttl, topic = request.headers.get("ttl", ""), request.headers.get("topic")
        urgency = request.headers.get("urgency")
        if not ttl.isdigit():
            raise Refusal("no TTL", 400)
        if topic is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", topic):
            raise Refusal("no Topic", 400)
        if urgency not in (None, "very-low", "low", "normal", "high"):
            raise Refusal("no Urgency", 400)
        if request.headers.get("content-encoding") != "aes128gcm":
            raise Refusal("not aes128gcm", 415)
        return {"ttl": int(ttl), "topic": topic, "urgency": urgency}


def _decrypted(body: bytes, browser: Entry) -> bytes:
    """As the browser does it: RFC 8291 §3.4 over RFC 8188, one record."""
    own = serialization.load_pem_private_key(browser["key"].encode(), password=None)
    assert isinstance(own, ec.EllipticCurvePrivateKey)
    salt, record_size, length = body[:16], int.from_bytes(body[16:20], "big"), body[20]
    sender, sealed = body[21 : 21 + length], body[21 + length :]
    if len(sealed) > record_size:
        raise ValueError("more than one record")
    shared = own.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender))
    seed = _mac(_mac(unpadded(browser["auth"]), shared), b"WebPush: info\x00" + _point(own) + sender + b"\x01")
    pseudo = _mac(salt, seed)
    key = _mac(pseudo, b"Content-Encoding: aes128gcm\x00\x01")[:16]
    nonce = _mac(pseudo, b"Content-Encoding: nonce\x00\x01")[:12]
    plain = AESGCM(key).decrypt(nonce, sealed, None).rstrip(b"\x00")
    if not plain.endswith(b"\x02"):
        raise ValueError("no delimiter of a last record")
    return plain[:-1]


def _mac(key: bytes, data: bytes) -> bytes:
    made = hmac.HMAC(key, hashes.SHA256())
    made.update(data)
    return made.finalize()


if __name__ == "__main__":
    serve(_PushService)
