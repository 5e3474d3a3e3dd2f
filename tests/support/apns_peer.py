"""Apple's push service: HTTP/2 only, checks the provider token (ES256) and the headers.

with ApnsPeer() as peer:
    device = peer.register()            # an app registers
    peer.uninstall(device)              # 410 Unregistered from now on
    peer.screen(device)                 # what the person sees: a collapse id replaces
"""

from __future__ import annotations

import json
import re
import secrets
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.push_peer import Answer, Desk, Entry, PushPeer, Refusal, Request, opened, pem, put, serve

TEAM_ID, KEY_ID, TOPIC = "TEAM123456", "KEY1234567", "com.example.shop"
SECOND_ID = "KEY7654321"
PATH = re.compile(r"/3/device/([0-9a-f]+)")


class ApnsPeer(PushPeer):
    """The test's side. `private_key`: the content of the .p8 file."""

    module = "tests.support.apns_peer"

    def __init__(self) -> None:
        super().__init__()
        (self.folder / "devices").mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        self.private_key = pem(key).decode()
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self.folder / "team.pem").write_bytes(public)

    def another_key(self) -> str:
        """The team makes a second signing key (the same letters under another ID); returns its ID."""
        (self.folder / "second").touch()
        return SECOND_ID

    def register(self) -> str:
        """An app registers; returns its device token."""
        device = secrets.token_hex(32)
        put(self.folder / "devices" / f"{device}.json", {})
        return device

    def uninstall(self, device: str) -> None:
        put(self.folder / "devices" / f"{device}.json", {"gone": int(time.time() * 1000)})

    def screen(self, device: str) -> list[Any]:
        """The alerts that lie on the screen, oldest first."""
        shown: dict[str, Any] = {}
        for push in self.pushes():
            if push["device"] == device:
                name = push["headers"].get("apns-collapse-id") or str(uuid4())
                shown[name] = push["payload"]["aps"]["alert"]
        return list(shown.values())


class _Apple(Desk):
    alpn = ["h2"]

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder, port)
        # By key, since the limit on new tokens is one of each.
        self._tokens: dict[tuple[str, str], float] = {}
        self._key_of: dict[int, str] = {}

    def examine(self, request: Request) -> tuple[Entry, Answer]:
        if request.http != "2":
            raise Refusal(f"HTTP/{request.http}", 400, {"reason": "IdleTimeout"})
        name = request.headers.get("apns-id", str(uuid4()))
        told = {"apns-id": name}
        match = PATH.fullmatch(request.path)
        if request.method != "POST" or match is None:
            raise _refusal(404, "BadPath", told)
        self._vouched(request, told)
        self._headers(request, told)
        if len(request.body) > 4096:
            raise _refusal(413, "PayloadTooLarge", told)
        try:
            payload = json.loads(request.body)
            alert = payload["aps"]["alert"]
        except (ValueError, KeyError, TypeError):
            raise _refusal(400, "PayloadEmpty", told) from None
        file = self.folder / "devices" / f"{match[1]}.json"
        if not file.exists():
            raise _refusal(400, "BadDeviceToken", told)
        if gone := json.loads(file.read_text()).get("gone"):
            raise Refusal("Unregistered", 410, {"reason": "Unregistered", "timestamp": gone}, told)
        assert alert
        headers = {name: value for name, value in request.headers.items() if name.startswith("apns-")}
        wire = {"http": request.http, "connection": request.connection}
        return {"device": match[1], "payload": payload, "headers": headers, **wire}, Answer(200, told)

    def _vouched(self, request: Request, told: dict[str, str]) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise _refusal(403, "MissingProviderToken", told)
        key = serialization.load_pem_public_key((self.folder / "team.pem").read_bytes())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        try:
            header, claims = opened(token, key)
        except ValueError as problem:
            raise _refusal(403, "InvalidProviderToken", told, str(problem)) from None
        keys = (KEY_ID, SECOND_ID) if (self.folder / "second").exists() else (KEY_ID,)
        if header.get("kid") not in keys or claims.get("iss") != TEAM_ID or type(claims.get("iat")) is not int:
            raise _refusal(403, "InvalidProviderToken", told, "another key or team, or no time")
        if not time.time() - 3600 < claims["iat"] <= time.time() + 60:
            raise _refusal(403, "ExpiredProviderToken", told)
        # As documented: a token is not to be replaced by another within 20 minutes. One that had expired does not count.
        kid = header["kid"]
        if any(
            time.time() - since < 1200
            for (key_id, other), since in self._tokens.items()
            if key_id == kid and other != token
        ):
            raise _refusal(429, "TooManyProviderTokenUpdates", told)
        if self._key_of.setdefault(request.connection, kid) != kid:
            raise _refusal(403, "UnrelatedKeyIdInToken", told)
        self._tokens.setdefault((kid, token), time.time())

    def _headers(self, request: Request, told: dict[str, str]) -> None:
        given = request.headers
        try:
            UUID(told["apns-id"])
        except ValueError:
            raise _refusal(400, "BadMessageId", {}) from None
        if given.get("apns-topic") != TOPIC:
            raise _refusal(400, "DeviceTokenNotForTopic" if given.get("apns-topic") else "MissingTopic", told)
        if given.get("apns-push-type") != "alert":
            raise _refusal(400, "InvalidPushType", told)
        if given.get("apns-priority", "10") not in ("1", "5", "10"):
            raise _refusal(400, "BadPriority", told)
        if not given.get("apns-expiration", "0").isdigit():
            raise _refusal(400, "BadExpirationDate", told)
        if len(given.get("apns-collapse-id", "").encode()) > 64:
            raise _refusal(400, "BadCollapseId", told)


def _refusal(status: int, reason: str, told: dict[str, str], why: str = "") -> Refusal:
    return Refusal(f"{reason} {why}".strip(), status, {"reason": reason}, told)


if __name__ == "__main__":
    serve(_Apple)
