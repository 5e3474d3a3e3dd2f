"""Apple's push service by HTTP/2 and a provider token (ES256).

The address is the device token, in hexadecimal as the app sent it, or with `apns:` in front.

*Outcome unknown*: Apple documents `apns-id` as a name to find a push by, not as a key that makes a repeat harmless, and
a push cannot be asked for. So it is neither repeatable nor asked: marketing is never sent again. What must arrive is
repeated with the same `apns-collapse-id`, which replaces the first on the screen; who pressed it away sees it twice.
"""

from __future__ import annotations

import time
from datetime import timedelta

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
    later,
    lifetime,
    notice,
    token_of,
    unexplained,
)
from shared.outside import Response

PRODUCTION, SANDBOX = "https://api.push.apple.com", "https://api.sandbox.push.apple.com"
MOST_BYTES = 4096
# Apple wants a token not younger than 20 minutes replaced, and none older than an hour.
YOUNGEST, RENEW = timedelta(minutes=20), timedelta(minutes=50)


class ApnsSettings(PushSettings):
    """The signing key of the app's team, and the app."""

    team_id: str = pydantic.Field(pattern=r"^[A-Z0-9]{10}$", description="The team's ID, ten characters.")
    key_id: str = pydantic.Field(pattern=r"^[A-Z0-9]{10}$", description="The signing key's ID, ten characters.")
    private_key: pydantic.SecretStr = pydantic.Field(description="The signing key: the content of the .p8 file.")
    topic: str = pydantic.Field(pattern=r"^[A-Za-z0-9.-]{1,200}$", description="The app's bundle ID.")
    server: str = pydantic.Field(
        default=PRODUCTION,
        pattern=r"^https://[^/\s?#@]+$",
        max_length=200,
        description=f"Where Apple's service is; for apps in development {SANDBOX}.",
    )

    @pydantic.model_validator(mode="after")
    def _has_a_key(self) -> ApnsSettings:
        self.signing_key()
        return self

    def signing_key(self) -> ec.EllipticCurvePrivateKey:
        """Raises ValueError if it is no key of P-256 in PEM."""
        try:
            key = serialization.load_pem_private_key(self.private_key.get_secret_value().encode(), password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError(
                "private_key is no signing key of Apple's (the whole .p8 file, with its first and last line)"
            )
        return key


class Apns(PushAdapter):
    """Serves the channel push for Apple's devices."""

    name = "apns"
    service = "apns"
    settings_type = ApnsSettings
    http2 = True

    @classmethod
    def connection_of(cls, settings: ApnsSettings) -> str:
        """By the key: on a connection that began with one Apple takes tokens of no other (UnrelatedKeyIdInToken)."""
        return f"{settings.team_id} {settings.key_id}"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._tokens: dict[tuple[str, str, str], Kept] = {}

    async def send(self, exchange: Exchange) -> Result:
        settings: ApnsSettings = exchange.settings
        device = token_of(exchange.address)
        if not device.isascii() or not device.isalnum():
            return Result("failed", "no device token of Apple's: it is not hexadecimal")
        content = fitted(notice(exchange), _written, MOST_BYTES)
        if content is None:
            return Result("failed", "the push is too long, even without its text")
        token = self._token(settings)
        answer = await self._deliver(exchange, settings, device, content, token)
        if not isinstance(answer, Result) and _reason(answer) == "ExpiredProviderToken":
            newer = self._newer(settings, token)
            if newer is None:
                return Result(
                    "retry", "Apple takes the new provider token for an old one: is this machine's clock right?"
                )
            answer = await self._deliver(exchange, settings, device, content, newer)
        return answer if isinstance(answer, Result) else _meaning(answer)

    async def _deliver(
        self, exchange: Exchange, settings: ApnsSettings, device: str, content: bytes, token: str
    ) -> Response | Result:
        seconds = int(lifetime(exchange).total_seconds())
        headers = {
            "authorization": f"bearer {token}",
            "apns-id": str(exchange.message),
            "apns-topic": settings.topic,
            "apns-push-type": "alert",
            "apns-priority": "5" if exchange.purpose == "marketing" else "10",
            # 0: now or never.
            "apns-expiration": str(int(WALL.now().timestamp()) + seconds if seconds else 0),
            "apns-collapse-id": str(exchange.message),
            "content-type": "application/json",
        }
        return await self.post(exchange, f"{settings.server}/3/device/{device}", content, headers, "Apple's service")

    def _token(self, settings: ApnsSettings) -> str:
        """The provider token, made anew after 50 minutes: between the 20 and the 60 that Apple allows."""
        kept = self._tokens.get(_key(settings))
        return kept.value if kept is not None and kept.good else self._made(settings)

    def _newer(self, settings: ApnsSettings, refused: str) -> str | None:
        """Another token than the one that was refused as too old; None if that was made just now: a machine that slept
        has old ones, but one whose clock is wrong makes nothing else, and Apple refuses who makes many."""
        kept = self._tokens.get(_key(settings))
        if kept is None or (kept.value == refused and WALL.now() - kept.made >= YOUNGEST):
            return self._made(settings)
        return kept.value if kept.value != refused else None

    def _made(self, settings: ApnsSettings) -> str:
        now = WALL.now()
        claims = {"iss": settings.team_id, "iat": int(now.timestamp())}
        value = jwt.encode(claims, settings.signing_key(), algorithm="ES256", headers={"kid": settings.key_id})
        self._tokens[_key(settings)] = Kept(value, time.monotonic() + RENEW.total_seconds(), now)
        return value


def _key(settings: ApnsSettings) -> tuple[str, str, str]:
    return settings.team_id, settings.key_id, settings.private_key.get_secret_value()


def _meaning(answer: Response) -> Result:
    """What Apple documents of its answers ("Handling notification responses from APNs")."""
    if answer.status_code == 200:
        return Result("sent", "taken by Apple", provider_id=answer.headers.get("apns-id", "")[:100])
    reason = _reason(answer)
    said = f"{reason or 'no reason given'} ({answer.status_code})"
    match reason:
        case "Unregistered" | "ExpiredToken" | "BadDeviceToken":
            return Result("bounced", f"the device token is dead: {said}")
        case "BadTopic" | "MissingTopic" | "TopicDisallowed":
            return Result("retry", f"Apple does not take the topic: {said}")
        case "IdleTimeout":  # the connection, not the push: nothing was looked at
            return Result("retry", f"Apple gave the connection up: {said}")
        case "TooManyRequests":
            return crowded(answer, "too many pushes to this device", for_one=True)
        case "ServiceUnavailable" | "Shutdown" if answer.status_code == 503:
            return later(answer, f"Apple's service is not available: {reason}")
    if answer.status_code == 403:  # whatever reasons there are for it, now and later: "the certificate or the token"
        return Result("retry", f"Apple does not take the provider token: {said}")
    if answer.status_code == 410:
        return Result("bounced", f"the device token is dead: {said}")
    if answer.status_code == 429:
        return crowded(answer, f"too many for Apple's service: {reason}")
    if 400 <= answer.status_code < 500:
        return Result("failed", f"Apple refuses: {said}")
    return unexplained(answer)


def _reason(answer: Response) -> str:
    """Apple's word for what is wrong; "" if there is none."""
    reason = fields(answer).get("reason")
    return reason if isinstance(reason, str) and reason.isalnum() and len(reason) <= 60 else ""


def _written(said: Notice) -> bytes:
    return msgspec.json.encode(
        {
            "aps": {"alert": {"title": said.title, "body": said.body}, "sound": "default"},
            "message": str(said.message),
            "url": said.url,
        }
    )


ADAPTER = Apns
