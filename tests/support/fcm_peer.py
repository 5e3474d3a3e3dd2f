"""Google's token endpoint and Firebase's HTTP v1 API: checks the assertion (RFC 7523) and the message.

with FcmPeer() as peer:
    token = peer.register()             # an app registers
    peer.service_account()              # the JSON file that an operator downloads
    peer.uninstall(token)               # 404 UNREGISTERED from now on
    peer.take_back_tokens()             # access tokens handed out so far are good no more
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.push_peer import Answer, Desk, Entry, PushPeer, Refusal, Request, opened, pem, put, serve

PROJECT, EMAIL, KEY_ID = "corner-shop", "sender@corner-shop.iam.gserviceaccount.com", "0123456789abcdef"


@cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class FcmPeer(PushPeer):
    """The test's side."""

    module = "tests.support.fcm_peer"

    def __init__(self) -> None:
        super().__init__()
        for folder in ("apps", "access"):
            (self.folder / folder).mkdir()
        public = (
            _key()
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        (self.folder / "account.pem").write_bytes(public)
        self.access_tokens_last(3600)

    def service_account(self, **changes: str) -> str:
        """The JSON file, as the console makes it."""
        return json.dumps(
            {
                "type": "service_account",
                "project_id": PROJECT,
                "private_key_id": KEY_ID,
                "private_key": pem(_key()).decode(),
                "client_email": EMAIL,
                "client_id": "1",
                "token_uri": f"{self.url}/token",
                **changes,
            }
        )

    def register(self) -> str:
        """An app registers; returns its token, as long as a real one."""
        token = f"{secrets.token_urlsafe(16)}:APA91b{secrets.token_urlsafe(100)}"
        put(self._app(token), {"token": token})
        return token

    def uninstall(self, token: str) -> None:
        put(self._app(token), {"token": token, "gone": True})

    def install_again(self, token: str) -> None:
        put(self._app(token), {"token": token})

    def take_back_tokens(self) -> None:
        for file in (self.folder / "access").glob("*.json"):
            file.unlink()

    def access_tokens_last(self, seconds: int) -> None:
        put(self.folder / "lifetime.json", seconds)

    def _app(self, token: str) -> Path:
        return self.folder / "apps" / f"{_file_name(token)}.json"


def _file_name(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class _Google(Desk):
    def other(self, request: Request) -> Answer | None:
        """The token endpoint."""
        if request.path != "/token":
            return None
        try:
            claims = self._assertion(request)
        except ValueError as problem:
            self.write("refused", why=f"assertion: {problem}", status=400)
            return Answer(400, body={"error": "invalid_grant", "error_description": str(problem)})
        token, seconds = f"ya29.{secrets.token_urlsafe(40)}", json.loads((self.folder / "lifetime.json").read_text())
        put(self.folder / "access" / f"{token}.json", {"until": time.time() + seconds})
        self.write("token", issuer=claims["iss"])
        return Answer(200, body={"access_token": token, "expires_in": seconds, "token_type": "Bearer"})

    def _assertion(self, request: Request) -> Entry:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if form.get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer":
            raise ValueError("another grant type")
        key = serialization.load_pem_public_key((self.folder / "account.pem").read_bytes())
        assert isinstance(key, rsa.RSAPublicKey)
        header, claims = opened(form.get("assertion", ""), key)
        now = time.time()
        wanted = {"iss": EMAIL, "aud": f"{self.url}/token"}
        if header.get("kid") != KEY_ID or any(claims.get(name) != value for name, value in wanted.items()):
            raise ValueError("another key, issuer or audience")
        if "https://www.googleapis.com/auth/firebase.messaging" not in claims.get("scope", "").split():
            raise ValueError("not for messaging")
        if not (claims.get("iat", 0) <= now + 60 and now < claims.get("exp", 0) <= claims["iat"] + 3600):
            raise ValueError("expired, or for longer than an hour")
        return claims

    def examine(self, request: Request) -> tuple[Entry, Answer]:
        scheme, _, access = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not self._good(access):
            raise Refusal("no access token, or one that is good no more", 401, _error(401, "UNAUTHENTICATED"))
        if request.method != "POST" or request.path != f"/v1/projects/{PROJECT}/messages:send":
            raise Refusal(f"no such address: {request.path}", 403, _error(403, "PERMISSION_DENIED"))
        message = _message(request.body)
        file = self.folder / "apps" / f"{_file_name(message['token'])}.json"
        if not file.exists():
            text = "The registration token is not a valid FCM registration token"
            raise Refusal("no such token", 400, _error(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", text=text))
        if json.loads(file.read_text()).get("gone"):
            raise Refusal("unregistered", 404, _error(404, "NOT_FOUND", "UNREGISTERED"))
        return {"message": message}, Answer(200, body={"name": f"projects/{PROJECT}/messages/0:{secrets.token_hex(8)}"})

    def _good(self, access: str) -> bool:
        file = self.folder / "access" / f"{access}.json"
        return "/" not in access and file.exists() and json.loads(file.read_text())["until"] > time.time()


def _message(body: bytes) -> Entry:
    """The message, if it is as documented (FCM v1 Message)."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        raise Refusal("no message", 400, _error(400, "INVALID_ARGUMENT")) from None
    problems = list(_problems(message))
    if problems:
        raise Refusal(f"wrong: {', '.join(problems)}", 400, _error(400, "INVALID_ARGUMENT", violations=problems))
    carried = {"notification": message.get("notification", {}), "data": message.get("data", {})}
    if len(json.dumps(carried, ensure_ascii=False).encode()) > 4096:
        raise Refusal("too big", 400, _error(400, "INVALID_ARGUMENT", violations=["message"]))
    return dict(message)


def _problems(message: Any) -> Any:
    known = {"token", "notification", "data", "android", "apns", "webpush", "fcm_options"}
    yield from (f"message.{name}" for name in message if name not in known)
    if not isinstance(message.get("token"), str) or not message["token"]:
        yield "message.token"
    yield from (
        f"message.data[{k}]" for k, v in message.get("data", {}).items() if not isinstance(v, str) or k == "from"
    )
    android = message.get("android", {})
    if not re.fullmatch(r"\d+(\.\d+)?s", android.get("ttl", "0s")) or float(android.get("ttl", "0s")[:-1]) > 2_419_200:
        yield "message.android.ttl"
    if android.get("priority", "NORMAL") not in ("NORMAL", "HIGH"):
        yield "message.android.priority"
    link = message.get("webpush", {}).get("fcm_options", {}).get("link", "https://")
    if not link.startswith("https://"):
        yield "message.webpush.fcm_options.link"
    if any(not isinstance(value, str) for value in message.get("apns", {}).get("headers", {}).values()):
        yield "message.apns.headers"


def _error(
    code: int, status: str, fcm: str = "", *, text: str = "Request is not right.", violations: list[str] | None = None
) -> Entry:
    details: list[Entry] = []
    if fcm:
        details.append({"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": fcm})
    if violations:
        found = [{"field": field, "description": "wrong"} for field in violations]
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": found})
    return {"error": {"code": code, "message": text, "status": status, "details": details}}


def error_body(code: int, status: str, fcm: str = "", violations: list[str] | None = None) -> Entry:
    """An error as Google writes it, for `answer(body=…)`."""
    return _error(code, status, fcm, violations=violations)


if __name__ == "__main__":
    serve(_Google)
