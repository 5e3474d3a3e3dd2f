"""Firebase Cloud Messaging by its HTTP v1 API: Android, and whatever else an app registers with Firebase.

The address is the registration token, as the app sent it or with `fcm:` in front.

*Outcome unknown*: the API knows no idempotency key, and a message cannot be asked for. So it is neither repeatable nor
asked: marketing is never sent again. What must arrive is repeated with the same tag, which replaces the first on the
screen; who pressed it away sees it twice. (A collapse key for each message would be worse: Firebase keeps four of them
for a device and drops the others.)
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import jwt
import msgspec
import pydantic
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from services.dispatch.channels.base import Exchange, Result, World
from services.dispatch.channels.push import (
    WALL,
    Kept,
    Notice,
    PushAdapter,
    PushSettings,
    crowded,
    fields,
    fitted,
    later,
    lifetime,
    notice,
    token_of,
    unexplained,
)
from shared.outside import Response

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
# The documented limit of what a message carries; measured on the whole of ours, which is more.
MOST_BYTES = 4096
ASSERTION_SECONDS = 3600
# An access token is renewed this long before it expires.
EARLIER_SECONDS = 300.0
_DETAIL = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_TOKEN = re.compile(r"not a valid FCM registration token|invalid registration token", re.IGNORECASE)


class ServiceAccount(msgspec.Struct, frozen=True):
    """What is used of the JSON file that the Firebase console makes for a service account."""

    project_id: str
    client_email: str
    private_key: str
    private_key_id: str = ""
    token_uri: str = "https://oauth2.googleapis.com/token"


class FcmSettings(PushSettings):
    """The service account of the app's Firebase project."""

    service_account: pydantic.SecretStr = pydantic.Field(
        description="The whole JSON file of a service account that may send (Firebase console: Project settings, "
        "Service accounts, Generate new private key)."
    )
    server: str = pydantic.Field(
        default="https://fcm.googleapis.com",
        pattern=r"^https://[^/\s?#@]+$",
        max_length=200,
        description="Where Firebase's API is.",
    )

    @pydantic.model_validator(mode="after")
    def _has_an_account(self) -> FcmSettings:
        account_key(self.account())
        return self

    def account(self) -> ServiceAccount:
        """Raises ValueError if the file is none of a service account."""
        try:
            account = msgspec.json.decode(self.service_account.get_secret_value(), type=ServiceAccount)
        except (msgspec.DecodeError, UnicodeEncodeError):
            # What is wrong with it is not said in the decoder's words: they may repeat the secret.
            raise ValueError(
                "service_account is not the JSON file of one: project_id, client_email, private_key are needed"
            ) from None
        if urlsplit(account.token_uri).scheme != "https":
            raise ValueError("service_account has a token_uri that is no https address")
        return account


def account_key(account: ServiceAccount) -> rsa.RSAPrivateKey:
    """The key that signs. Raises ValueError if it is none of RSA in PEM."""
    try:
        key = serialization.load_pem_private_key(account.private_key.encode(), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("service_account has a private_key that is no RSA key in PEM")
    return key


class Fcm(PushAdapter):
    """Serves the channel push for registration tokens of Firebase."""

    name = "fcm"
    service = "fcm"
    settings_type = FcmSettings

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._tokens: dict[str, Kept] = {}
        self._renewing = asyncio.Lock()

    async def send(self, exchange: Exchange) -> Result:
        settings: FcmSettings = exchange.settings
        account = settings.account()
        content = fitted(notice(exchange), lambda said: _written(said, exchange), MOST_BYTES)
        if content is None:
            return Result("failed", "the push is too long, even without its text")
        url = f"{settings.server}/v1/projects/{quote(account.project_id, safe='')}/messages:send"
        answer, token = await self._deliver(exchange, account, url, content)
        if not isinstance(answer, Result) and _wants_another_token(answer):
            self._forget(account, token)  # it was taken back before its time; the message was not looked at
            answer, _ = await self._deliver(exchange, account, url, content)
        return answer if isinstance(answer, Result) else _meaning(answer)

    async def _deliver(
        self, exchange: Exchange, account: ServiceAccount, url: str, content: bytes
    ) -> tuple[Response | Result, str]:
        """The answer, and the token that it was asked with."""
        token = await self._token(exchange, account)
        if isinstance(token, Result):
            return token, ""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return await self.post(exchange, url, content, headers, "Firebase API"), token

    async def _token(self, exchange: Exchange, account: ServiceAccount) -> str | Result:
        """An access token, kept until shortly before it expires; or why there is none, in which case nothing was sent."""
        async with self._renewing:
            kept = self._tokens.get(_account_id(account))
            if kept is not None and kept.good:
                return kept.value
            answer = await self._ask_for_token(exchange, account)
            if isinstance(answer, Result):
                # Whatever came of it: the message has not left.
                return Result("retry", f"no access token: {answer.detail}")
            given = fields(answer)
            value, seconds = given.get("access_token"), given.get("expires_in")
            if answer.status_code != 200 or not isinstance(value, str) or not isinstance(seconds, (int, float)):
                code = given.get("error")
                return later(answer, f"no access token: {code if isinstance(code, str) else 'not readable'}"[:100])
            good = max(seconds - EARLIER_SECONDS, seconds / 2)
            self._tokens[_account_id(account)] = Kept(value, time.monotonic() + good, WALL.now())
            return value

    async def _ask_for_token(self, exchange: Exchange, account: ServiceAccount) -> Response | Result:
        now = int(WALL.now().timestamp())
        claims = {
            "iss": account.client_email,
            "scope": SCOPE,
            "aud": account.token_uri,
            "iat": now,
            "exp": now + ASSERTION_SECONDS,
        }
        headers = {"kid": account.private_key_id} if account.private_key_id else None
        assertion = jwt.encode(claims, account_key(account), algorithm="RS256", headers=headers)
        body = urlencode({"grant_type": GRANT, "assertion": assertion}).encode()
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return await self.post(exchange, account.token_uri, body, form, "token endpoint")

    def _forget(self, account: ServiceAccount, token: str) -> None:
        kept = self._tokens.get(_account_id(account))
        if kept is not None and kept.value == token:
            del self._tokens[_account_id(account)]


def _account_id(account: ServiceAccount) -> str:
    return f"{account.client_email} {account.private_key_id} {account.token_uri}"


def _wants_another_token(answer: Response) -> bool:
    return answer.status_code == 401 and _error(answer)[0] != "THIRD_PARTY_AUTH_ERROR"


def _meaning(answer: Response) -> Result:
    """What Firebase documents of its error codes (FCM v1 ErrorCode)."""
    if answer.status_code == 200:
        name = fields(answer).get("name")
        return Result("sent", "taken by Firebase", provider_id=str(name or "").rpartition("/")[2][:200])
    code, status, message, violations = _error(answer)
    match code or status:
        case "UNREGISTERED" if code:
            return Result("bounced", "the token is no longer registered")
        case "INVALID_ARGUMENT":
            # The token or anything else may be wrong; only the first says something about the person's device.
            if any(field == "message.token" for field in violations) or _BAD_TOKEN.search(message):
                return Result("bounced", "no registration token of Firebase")
            return Result("failed", f"Firebase does not take the message: {', '.join(violations) or code}"[:200])
        case "SENDER_ID_MISMATCH":
            # Of an app of another project, or ours is the wrong account: then all would be dropped.
            return Result("failed", "the token belongs to another Firebase project")
        case "QUOTA_EXCEEDED" | "RESOURCE_EXHAUSTED":
            return crowded(answer, "over Firebase's quota")
        case "UNAVAILABLE" if answer.status_code == 503:
            return later(answer, "Firebase is overloaded")
        case "THIRD_PARTY_AUTH_ERROR" | "PERMISSION_DENIED" | "UNAUTHENTICATED":
            return Result("retry", f"Firebase does not let the account send: {code or status}")
    if answer.status_code == 404:
        # Not of the token: of the project, or of the service itself, which has answered so by mistake.
        return Result("retry", f"Firebase knows nothing under this project: {status or 'no status given'} (404)"[:200])
    if answer.status_code == 429:
        return crowded(answer, "too many messages for Firebase")
    return unexplained(answer)


def _error(answer: Response) -> tuple[str, str, str, list[str]]:
    """Firebase's own code, the general status, the text (never to be shown: it may repeat the token), fields at fault."""
    error = fields(answer).get("error")
    if not isinstance(error, dict):
        return "", "", "", []
    details = _objects(error.get("details"))
    code = next((str(one.get("errorCode", "")) for one in details if one.get("@type") == _DETAIL), "")
    violations = [str(v.get("field", "")) for one in details for v in _objects(one.get("fieldViolations"))]
    return code, str(error.get("status", "")), str(error.get("message", "")), violations


def _objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _written(said: Notice, exchange: Exchange) -> bytes:
    message, seconds = str(said.message), int(lifetime(exchange).total_seconds())
    urgent = exchange.purpose != "marketing"
    expires = int(WALL.now().timestamp()) + seconds if seconds else 0
    web: dict[str, Any] = {"headers": {"TTL": str(seconds), "Urgency": "high" if urgent else "normal"}}
    if said.url.startswith("https://"):
        web["fcm_options"] = {"link": said.url}
    return msgspec.json.encode(
        {
            "message": {
                "token": token_of(exchange.address),
                "notification": {"title": said.title, "body": said.body},
                "data": {"message": message, "url": said.url},
                "android": {
                    "priority": "HIGH" if urgent else "NORMAL",
                    "ttl": f"{seconds}s",
                    "notification": {"tag": message},
                },
                "apns": {
                    "headers": {
                        "apns-collapse-id": message,
                        "apns-expiration": str(expires),
                        "apns-priority": "10" if urgent else "5",
                    }
                },
                "webpush": web,
            }
        }
    )


ADAPTER = Fcm
