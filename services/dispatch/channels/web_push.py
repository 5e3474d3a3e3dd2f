"""Web Push (RFC 8030): encrypted for the browser (RFC 8291, aes128gcm), signed with the shop's VAPID key (RFC 8292).

The address is the browser's subscription, `web:<p256dh>.<auth>.<endpoint>`, the two keys in base64url as
`PushSubscription.toJSON()` gives them. docs/CHANNELS.md has the lines a site needs.

*Outcome unknown*: push services know no idempotency key and cannot be asked. So it is neither repeatable nor asked:
marketing is never sent again. What must arrive is repeated with the same Topic, which replaces a push that is still
waiting, and the same tag, which replaces one on the screen; who pressed the first one away sees it twice.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from datetime import timedelta
from importlib.util import find_spec
from urllib.parse import urlsplit

import jwt
import msgspec
import pydantic
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

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
    lifetime,
    notice,
    unexplained,
)
from shared.outside import Response
from shared.settings import Settings

# What every push service takes is 4096 bytes encrypted (RFC 8030 §7.2), of which aes128gcm needs 103 (RFC 8291 §4).
MOST_BYTES = 3993
# Pushes are filled up to a multiple of this many bytes, so that their length tells nothing.
STEP_BYTES = 512
# RFC 8292 §2 allows 24 hours; a token is used for half of what it is good for.
TOKEN_SECONDS = 12 * 3600
# A push service that asks to be left alone for longer is asked again after this.
LONGEST_REST = timedelta(hours=1)
# Origins come from outside: what is remembered of them is not to fill the memory.
_MOST_ORIGINS = 1_000


class Subscription(msgspec.Struct, frozen=True):
    """A browser's subscription: where its pushes go, and the keys (raw bytes) they are encrypted for."""

    endpoint: str
    p256dh: bytes
    auth: bytes

    @property
    def origin(self) -> str:
        parts = urlsplit(self.endpoint)
        return f"{parts.scheme}://{parts.netloc}"


class NoSubscription(ValueError):
    """The address is no subscription; the text says what is wrong with it, without repeating it."""


def subscription(address: str) -> Subscription:
    """Reads `web:<p256dh>.<auth>.<endpoint>`. Raises NoSubscription."""
    parts = address.removeprefix("web:").split(".", 2)
    if not address.startswith("web:") or len(parts) != 3:
        raise NoSubscription("is not of the form web:<p256dh>.<auth>.<endpoint>")
    p256dh, auth = (_unpacked(part) for part in parts[:2])
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), p256dh)
    except ValueError:
        raise NoSubscription("its p256dh is no point of P-256") from None
    if len(auth) != 16:
        raise NoSubscription(f"its auth has {len(auth)} bytes, not 16")
    try:
        endpoint = urlsplit(parts[2])
        usable = endpoint.scheme == "https" and endpoint.hostname and not endpoint.username and endpoint.port != 0
    except ValueError:
        usable = None
    if not usable or not parts[2].isascii() or any(c.isspace() for c in parts[2]):
        raise NoSubscription("its endpoint is no https address")
    return Subscription(parts[2], p256dh, auth)


def _unpacked(text: str) -> bytes:
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise NoSubscription("its keys are not in base64url") from None


class WebPushSettings(PushSettings):
    """The shop's VAPID keys, as `npx web-push generate-vapid-keys` or openssl make them."""

    public_key: str = pydantic.Field(
        max_length=200, description="What the site subscribes with (applicationServerKey): base64url, 87 characters."
    )
    private_key: pydantic.SecretStr = pydantic.Field(description="Of the same pair: base64url (43 characters) or PEM.")
    subject: str = pydantic.Field(
        pattern=r"^(mailto:[^@\s]+@[^@\s]+|https://\S+)$",
        max_length=200,
        description="Whom a push service writes to when something is wrong: mailto: or https:.",
    )

    @pydantic.model_validator(mode="after")
    def _are_a_pair(self) -> WebPushSettings:
        if self.public_key.rstrip("=") != application_server_key(self.signing_key()):
            raise ValueError("public_key and private_key are not of one pair")
        return self

    def signing_key(self) -> ec.EllipticCurvePrivateKey:
        """Raises ValueError if it is no key of P-256."""
        text = self.private_key.get_secret_value().strip()
        key: object = None
        try:
            if text.startswith("-----BEGIN"):
                key = serialization.load_pem_private_key(text.encode(), password=None)
            elif len(text.rstrip("=")) == 43:
                key = ec.derive_private_key(int.from_bytes(_unpacked(text), "big"), ec.SECP256R1())
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("private_key is no key of P-256 in base64url or PEM")
        return key


def application_server_key(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half as browsers take it."""
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return base64.urlsafe_b64encode(point).rstrip(b"=").decode()


class WebPush(PushAdapter):
    """Serves the channel push for browsers, whatever push service they use."""

    name = "web-push"
    service = "web"
    settings_type = WebPushSettings

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._tokens: dict[tuple[str, str, str], Kept] = {}
        # Until when, on the monotonic clock, a push service wants to be left alone; the others are sent to meanwhile.
        self._resting: dict[str, float] = {}

    @classmethod
    def usable(cls, settings: Settings) -> bool:
        """Whether the extra is installed that encrypts."""
        return find_spec("pywebpush") is not None

    async def send(self, exchange: Exchange) -> Result:
        settings: WebPushSettings = exchange.settings
        try:
            to = subscription(exchange.address)
        except NoSubscription as problem:
            return Result("failed", f"the subscription cannot be used: {problem}")
        if (left := self._resting.get(to.origin, 0.0) - time.monotonic()) > 0:
            wait = timedelta(seconds=left)
            return Result("retry", "the push service asked to be left alone", retry_after=wait, for_one=True)
        plain = fitted(notice(exchange), _written, MOST_BYTES)
        if plain is None:
            return Result("failed", "the push is too long, even without its text")
        content = await asyncio.to_thread(_encrypted, to, _padded(plain))
        headers = {
            "Authorization": f"vapid t={self._token(settings, to.origin)}, k={settings.public_key.rstrip('=')}",
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(int(lifetime(exchange).total_seconds())),
            "Urgency": "normal" if exchange.purpose == "marketing" else "high",
            "Topic": base64.urlsafe_b64encode(exchange.message.bytes).rstrip(b"=").decode(),
        }
        answer = await self.post(exchange, to.endpoint, content, headers)
        result = answer if isinstance(answer, Result) else self._meaning(answer, settings, to.origin)
        return self._of_one_service(result, to.origin) if result.outcome == "retry" else result

    def _meaning(self, answer: Response, settings: WebPushSettings, origin: str) -> Result:
        """RFC 8030 §5 and §8.4, and what the services add to it."""
        match answer.status_code:
            case 200 | 201 | 202:
                return Result("sent", f"taken by the push service ({answer.status_code})")
            case 404 | 410:
                return Result("bounced", f"the subscription is gone ({answer.status_code})")
            # The token, not the person: the next attempt makes a new one. Apple says 403 to a subject that it does not like
            # or a clock that is wrong; whose subscription belongs to another key is told otherwise (VapidPkHashMismatch).
            case 401 | 403 as status if status == 401 or fields(answer).get("reason") == "BadJwtToken":
                self._tokens.pop(_token_key(settings, origin), None)
                return Result("retry", f"the push service does not take the VAPID token ({status})")
            case 403:
                return Result("failed", "the subscription was made with another VAPID key (403)")
            case 413:
                return Result("failed", "too large for the push service (413)")
            case 406 | 429:  # Windows says 406 where the others say 429
                return crowded(answer, "too many pushes for the push service")
        return unexplained(answer)

    def _of_one_service(self, result: Result, origin: str) -> Result:
        """Leaves this push service alone for as long as it asks. The adapter as a whole goes on: there are many services,
        and anybody may subscribe with one of their own that is away, or asks for a day."""
        if result.retry_after is None:
            return msgspec.structs.replace(result, for_one=True)
        wait = min(result.retry_after, LONGEST_REST)
        if len(self._resting) >= _MOST_ORIGINS:
            self._resting.clear()
        self._resting[origin] = time.monotonic() + wait.total_seconds()
        return msgspec.structs.replace(result, retry_after=wait, for_one=True)

    def _token(self, settings: WebPushSettings, origin: str) -> str:
        """A token for this push service; the same for half of the time that it is good for."""
        key = _token_key(settings, origin)
        kept = self._tokens.get(key)
        if kept is None or not kept.good:
            now = WALL.now()
            claims = {"aud": origin, "exp": int(now.timestamp()) + TOKEN_SECONDS, "sub": settings.subject}
            value = jwt.encode(claims, settings.signing_key(), algorithm="ES256")
            kept = Kept(value, time.monotonic() + TOKEN_SECONDS / 2, now)
            if len(self._tokens) >= _MOST_ORIGINS:
                self._tokens.clear()
            self._tokens[key] = kept
        return kept.value


def _token_key(settings: WebPushSettings, origin: str) -> tuple[str, str, str]:
    return origin, settings.public_key, settings.subject


def _written(said: Notice) -> bytes:
    """As the service worker reads it: `tag` lets a repeat replace the first on the screen."""
    message = str(said.message)
    return msgspec.json.encode(
        {"title": said.title, "body": said.body, "url": said.url, "tag": message, "message": message}
    )


def _padded(plain: bytes) -> bytes:
    """Filled up with blanks, which JSON does not mind."""
    size = min(-(-len(plain) // STEP_BYTES) * STEP_BYTES, MOST_BYTES)
    return plain.ljust(size)


def _encrypted(to: Subscription, plain: bytes) -> bytes:
    from pywebpush import WebPusher  # an extra, and slow to import

    keys = {name: base64.urlsafe_b64encode(key) for name, key in (("p256dh", to.p256dh), ("auth", to.auth))}
    body: bytes = WebPusher({"endpoint": to.endpoint, "keys": keys}).encode(plain, "aes128gcm")["body"]
    return body


ADAPTER = WebPush
