"""The collecting endpoints: the Segment tracking API as a bare ASGI app, because every event passes here.

The answer follows the durable write. Clients drop what is answered with 4xx, except 429, which they retry like 5xx: so
nothing of ours (a database that is away, too much at once) is ever answered with another 4xx, nor ever with 410.

How a public source's server vouches for a user id: `context.dripline.signature` is the HMAC-SHA256, in hex, of the
userId under the source's signing secret. A wrong signature makes the event an unsigned one, and is counted.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import zlib
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.types import Receive, Scope, Send

from services.ingest import metrics
from services.ingest.gate import PublicRates
from services.ingest.intake import IN_A_THREAD, Intake, body_problem, refusal_problem, refused_errors
from services.ingest.parse import Arrival, Source
from services.ingest.reading import TYPES, WRITE_KEY, Envelope, Reading, read_body
from services.ingest.refusal import Refusal, Refused
from services.ingest.sources import KeyCache
from shared.bus.base import OutOfRange
from shared.errors import PROBLEM_JSON, Problem, is_transient
from shared.limits import Gate, outside_network
from shared.log import get_logger

MAX_BODY = 500 * 1024  # bytes, after inflating
SLOWEST_BODY = 30.0  # seconds
MAX_MEMBERS = 16  # of a gzip body: clients send one, and each costs a copy of the rest
RETRY = {"Retry-After": "1"}

_CALLS = (*TYPES, "batch")
PATHS: dict[str, str] = {
    **{f"/v1/{call}": call for call in _CALLS},
    **{f"/v1/{call[0]}": call for call in _CALLS},
    **{f"/api/s/{call}": call for call in _CALLS},
    **{f"/api/s/s2s/{call}": call for call in _CALLS},  # Jitsu's library on a server
}
_PROJECTS = "/v1/projects"
PREFIXES = (*(path for path in PATHS if path.startswith("/v1/")), "/api/s", _PROJECTS)

_CORS = [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", b"retry-after")]
# A star would not cover Authorization.
_PREFLIGHT = [
    *_CORS,
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (
        b"access-control-allow-headers",
        b"authorization, content-type, x-retry-count, anonymousid, x-write-key, x-enable-debug, x-ip-policy",
    ),
    (b"access-control-max-age", b"86400"),
]
_JSON = b"application/json"
_SUCCESS = b'{"success": true}'

log = get_logger(__name__)


class _Gone(Exception):
    """The client hung up before its body was complete: there is nobody to answer."""


class Limits(msgspec.Struct, frozen=True):
    """How much at once, and how often."""

    gate: Gate
    rates: PublicRates


class Collector:
    """The ASGI app. `now`: business time; `public_url`: the address of this API as browsers reach it, if it is set."""

    def __init__(
        self, intake: Intake, keys: KeyCache, limits: Limits, now: Callable[[], datetime], public_url: str = ""
    ) -> None:
        self._intake, self._keys, self._limits, self._now, self._public_url = intake, keys, limits, now, public_url
        self._answered = {status: metrics.ANSWERS.labels(str(status)) for status in (200, 400, 401, 413, 429, 503)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        if method == "OPTIONS":
            await _send(send, 204, b"", _JSON, _PREFLIGHT)
            return
        call = PATHS.get(scope["path"].rstrip("/"))
        try:
            if call is None:
                answer = await self._settings(scope)
            elif method != "POST":
                raise Problem(
                    405, "Method not allowed", "Events are sent with POST.", headers={"Allow": "POST, OPTIONS"}
                )
            else:
                answer = await self._collect(scope, receive, call)
        except _Gone:
            return
        except Problem as problem:
            await self._refuse(send, problem)
        except Exception as failure:
            await self._refuse(send, _of_failure(failure))
        else:
            if call is not None:
                self._answered[200].inc()
            await _send(send, 200, answer, _JSON, _CORS)

    async def _refuse(self, send: Send, problem: Problem) -> None:
        (self._answered.get(problem.status) or metrics.ANSWERS.labels(str(problem.status))).inc()
        headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
        await _send(
            send, problem.status, msgspec.json.encode(_told(problem)), PROBLEM_JSON.encode(), [*_CORS, *headers]
        )

    async def _collect(self, scope: Scope, receive: Receive, call: str) -> bytes:
        """Keeps or appends every event of the body. Returns the answer's body; raises Problem for any other answer."""
        headers = dict(scope["headers"])
        # Whoever has no valid key to show holds no memory while the key is looked up.
        name = user_of(headers[b"authorization"]) if b"authorization" in headers else None
        source = await self._known(name) if name else None
        address = scope["client"][0] if scope["client"] else None
        # A secret key is not known to everybody: whoever shows it first shares with nobody.
        taken = _Taken(self._limits.gate, None if source and source.kind == "secret" else outside_network(address))
        try:
            body = await _body(headers, receive, taken)
            arrived = _Arrived(call, body, headers, address, self._now())
            return await self._take(arrived, source)
        finally:
            taken.release()

    async def _take(self, arrived: _Arrived, source: Source | None) -> bytes:
        try:
            reading = await _read(arrived.body, arrived.call)
        except Refusal as refusal:
            raise await self._unreadable(arrived, Refused.because(refusal), source) from None
        if source is None:
            source = await self._known(reading.write_key or arrived.key_header())
        if source.kind == "public":
            self._slow_down(source, arrived, len(reading.items))
        arrival = Arrival(source, arrived.at, reading.envelope, arrived.address)
        understood = await self._intake.understand(reading, arrival)
        if understood.refused:
            await self._intake.keep_refused(understood, arrival)
        if not understood.good:
            raise refusal_problem(understood)
        await self._intake.append(understood.good)
        if not understood.refused:
            return _SUCCESS
        count = len(understood.refused)
        return msgspec.json.encode({"success": True, "refused": count, "errors": refused_errors(understood)})

    def _slow_down(self, source: Source, arrived: _Arrived, events: int) -> None:
        """Raises Problem 429 when a public source, or this network with its key, posts more than it may."""
        if over := self._limits.rates.take(source.id, outside_network(arrived.address), events):
            who, seconds = over
            detail = f"This {who} posts more events with a public key than it may; try again."
            raise Problem(429, "Too many events", detail, headers={"Retry-After": str(math.ceil(seconds))})

    async def _unreadable(self, arrived: _Arrived, why: Refused, source: Source | None) -> Problem:
        """Keeps the body if a key beside it says whose it is; without a key it is only counted."""
        if source is None and (key := arrived.key_header()):
            source = await self._known(key)
        if source is not None:
            arrival = Arrival(source, arrived.at, Envelope(), arrived.address)
            await self._intake.keep_body(arrived.body, arrived.call, why, arrival)
        return body_problem(why)

    async def _known(self, key: str | None) -> Source:
        source = await self._keys.find_fresh(key) if key else None
        if source is None:
            how = "send it as the user name of HTTP Basic, as writeKey in the body, or as X-Write-Key"
            raise Problem(401, "No valid write key", f"The write key is missing, unknown or revoked: {how}.")
        return source

    async def _settings(self, scope: Scope) -> bytes:
        """What Segment's browser library asks for first; its `apiKey` replaces the key that the page was loaded with."""
        parts = scope["path"].split("/")
        if len(parts) != 5 or not scope["path"].startswith(_PROJECTS + "/") or parts[4] != "settings":
            raise Problem(404, "Not Found", "There is no such endpoint.")
        if scope["method"] not in ("GET", "HEAD"):
            raise Problem(405, "Method not allowed", "Settings are read with GET.", headers={"Allow": "GET, OPTIONS"})
        source = await self._known(parts[3])
        if source.kind != "public":
            raise Problem(401, "Not a public key", "This is a secret source's key: it must never stand in a web page.")
        url = urlsplit(
            self._public_url or f"{scope['scheme']}://{dict(scope['headers']).get(b'host', b'').decode('latin-1')}"
        )
        integration = {"apiKey": parts[3], "apiHost": f"{url.netloc}{url.path}/v1", "protocol": url.scheme}
        answer: dict[str, Any] = {
            "integrations": {"Segment.io": integration},
            "plan": {"track": {"__default": {"enabled": True}}},
        }
        return msgspec.json.encode(answer)


class _Arrived(msgspec.Struct, frozen=True):
    """A body that is here whole: `call` by its path, `address` of the peer, `at`: when it was received."""

    call: str
    body: bytes
    headers: dict[bytes, bytes]
    address: str | None
    at: datetime

    def key_header(self) -> str | None:
        return self.headers.get(b"x-write-key", b"").decode("latin-1").strip() or None


class _Taken:
    """The bytes that one request holds in the gate, as part of its network's share if one is named."""

    def __init__(self, gate: Gate, network: str | None) -> None:
        self._gate, self._network, self._size = gate, network, 0

    def take(self, size: int) -> None:
        if not self._gate.enter(size, self._network):
            whose = "" if self._gate.in_flight + size > self._gate.limit else " of your network"
            detail = f"Too many events{whose} are waiting to be written; try again."
            raise Problem(429, "Too much at once", detail, headers=RETRY)
        self._size += size

    def release(self) -> None:
        self._gate.leave(self._size, self._network)


async def _body(headers: dict[bytes, bytes], receive: Receive, taken: _Taken) -> bytes:
    """The whole body, inflated. Raises Problem."""
    declared = headers.get(b"content-length", b"0")
    if len(declared) > 10 or (declared.isdigit() and int(declared) > MAX_BODY):
        raise _too_large()
    message = await receive()
    body: bytes = message.get("body", b"")
    taken.take(len(body))
    if message.get("more_body", False):
        async with asyncio.timeout(SLOWEST_BODY):
            body = await _rest_of_body(body, receive, taken)
    elif message["type"] != "http.request":
        raise _Gone
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if encoding in (b"gzip", b"x-gzip") or body[:2] == b"\x1f\x8b":
        body = inflate(body)
        taken.take(len(body))
    elif encoding not in (b"", b"identity"):
        raise Problem(400, "Unknown content encoding", "Send the body as it is, or with Content-Encoding: gzip.")
    return body


async def _rest_of_body(first: bytes, receive: Receive, taken: _Taken) -> bytes:
    parts, size = [first], len(first)
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise _Gone
        part = message.get("body", b"")
        taken.take(len(part))
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            raise _too_large()
        more = message.get("more_body", False)
    return b"".join(parts)


def inflate(body: bytes) -> bytes:
    """A gzip body inflated, as far as it may go. Raises Problem 413 beyond that, 400 for what is no gzip."""
    parts: list[bytes] = []
    size = 0
    while body:
        if len(parts) == MAX_MEMBERS:
            raise Problem(400, "The body cannot be inflated", f"It has more than {MAX_MEMBERS} gzip parts: send one.")
        member = zlib.decompressobj(wbits=31)
        try:
            part = member.decompress(body, MAX_BODY + 1 - size)
        except zlib.error as problem:
            raise Problem(400, "The body cannot be inflated", f"It is not gzip: {problem}.") from None
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            raise _too_large()
        if not member.eof:
            raise Problem(400, "The body cannot be inflated", "The gzip stream ends too early.")
        body = member.unused_data.lstrip(b"\0")
    return b"".join(parts)


def _too_large() -> Problem:
    return Problem(
        413, "The body is too large", f"At most {MAX_BODY // 1024} KiB are taken, after inflating; send fewer events."
    )


async def _read(body: bytes, call: str) -> Reading:
    if len(body) < IN_A_THREAD:
        return read_body(body, call)
    return await asyncio.to_thread(read_body, body, call)


@lru_cache(maxsize=1024)
def user_of(authorization: bytes) -> str | None:
    """The user name of HTTP Basic if it may be a key; None for anything else: the key is looked for elsewhere then."""
    kind, _, value = authorization.partition(b" ")
    if kind.lower() != b"basic":
        return None
    try:
        name = base64.b64decode(value.strip()).decode().partition(":")[0]
    except (binascii.Error, ValueError):
        return None
    return name if WRITE_KEY.fullmatch(name) else None


def _of_failure(failure: Exception) -> Problem:
    # A bus topic that was made anew takes nothing from this process: whoever asks again may meet one that knows it.
    if is_transient(failure) or isinstance(failure, OutOfRange):
        log.warning("ingest.unavailable", error=f"{type(failure).__name__}: {failure}")
        return Problem(503, "Not available at the moment", "The events could not be written; try again.", headers=RETRY)
    log.error("ingest.failed", exc_info=failure)
    return Problem(500, "Unexpected error", "The server's log has the cause.")


def _told(problem: Problem) -> dict[str, Any]:
    """The problem, with the two members that Segment's and RudderStack's libraries read.

    Without them RudderStack's for Python takes a 400 for a broken line, and tries again for a quarter of an hour.
    """
    code = problem.title.lower().replace(" ", "_")
    return {**problem.to_dict(), "code": code, "message": problem.detail or problem.title}


async def _send(send: Send, status: int, body: bytes, kind: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = [] if status == 204 else [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*length, *headers]})
    await send({"type": "http.response.body", "body": body})
