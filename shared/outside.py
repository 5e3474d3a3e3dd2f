"""Outgoing HTTP: the one door to addresses that somebody else named, and the one place that knows httpx.

Who configures a channel names hosts, and who answers may redirect: neither may lead into the network that Dripline
itself stands in. So a name is resolved once, what it resolves to must be a public address (or lie in a network that the
deployment allows, `OUTSIDE_ALLOW`), and the connection goes to exactly that address, with Host and SNI as they were
named. Redirects are not followed, cookies not kept, proxies of the environment not asked; an answer has a limit.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import certifi
import httpcore
import httpx

# Both write down addresses, in which a provider's token may stand (Telegram's does).
for _library in ("httpx", "httpcore"):
    logging.getLogger(_library).setLevel(logging.WARNING)

MOST_BYTES = 1 << 20
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 20.0
_IDLE_SECONDS = 30.0
# Addresses in which an IPv4 address travels (RFC 6052); `ipaddress` knows the other kinds by itself.
_NAT64 = IPv6Network("64:ff9b::/96")
_SPOKEN = "gzip, deflate"

Network = IPv4Network | IPv6Network
# For those who speak through this door, so that nobody else imports the library.
Client = httpx.AsyncClient
Response = httpx.Response


class Refused(httpx.ConnectError):
    """The host leads to no public address; nothing was sent."""


class TooLarge(httpx.ReadError):
    """The answer is larger than what is read, or packed in a way that cannot be limited; the request was received."""


# Nothing of the request has left: the provider certainly has not taken it.
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL)
# Whatever else may go wrong, `NOT_SENT` included: whoever is not told more must take it that the request arrived.
FAILED = (httpx.HTTPError, httpx.InvalidURL)


def client(
    allow: Iterable[Network] = (),
    *,
    http2: bool = False,
    http1: bool = True,
    verify: ssl.SSLContext | None = None,
    limit: int = MOST_BYTES,
    seconds: float = ANSWER_SECONDS,
) -> Client:
    """A client that reaches public addresses only; close it with `aclose`.

    Its errors are httpx's: `NOT_SENT` when nothing left this machine (`Refused` is one), else `FAILED`.

    :param allow: networks that may be reached although they are not public
    :param http1: False with `http2`: without TLS, too, HTTP/2 is spoken from the first byte
    :param verify: whom to trust; by default the system's authorities (SSL_CERT_FILE counts), or Mozilla's where it has none
    :param limit: bytes that an answer may have, unpacked
    :param seconds: how long the whole exchange may take after the connection stands
    """
    transport = _Transport(tuple(allow), verify or _authorities(), http1, http2, limit, seconds)
    return httpx.AsyncClient(
        transport=transport,
        timeout=httpx.Timeout(seconds, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
        follow_redirects=False,
        trust_env=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"User-Agent": "Dripline", "Accept-Encoding": _SPOKEN},
    )


def retry_after(response: Response, now: datetime) -> timedelta | None:
    """How long the answer asks to wait (RFC 9110 §10.2.3: seconds or a date); None if it does not say, or not readably.
    At most a day: what comes later is tried again anyway."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        wait = timedelta(seconds=min(int(value[:9]), 86_400))
    else:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return None
        wait = (at if at.tzinfo else at.replace(tzinfo=UTC)) - now
    return min(max(wait, timedelta(0)), timedelta(days=1))


def is_public(address: str) -> bool:
    """Whether this IP address (as resolved, not a name) is reached over the internet. An IPv6 address in which an IPv4
    address travels is judged by both."""
    found = _parse(address)
    return found is not None and all(_is_public(one) for one in [found, *_inside(found)])


def is_allowed(address: str, allow: Sequence[Network]) -> bool:
    """Whether it may be reached: public, or in one of these networks."""
    found = _parse(address)
    if found is None:
        return False
    plain = found.ipv4_mapped if isinstance(found, IPv6Address) and found.ipv4_mapped else found
    return any(plain in network for network in allow if network.version == plain.version) or is_public(address)


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(address)
    except ValueError:
        return None


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and (address.ipv4_mapped is not None or address in _NAT64):
        return True  # only a way of writing what is inside, which is judged, too
    return address.is_global and not (
        address.is_multicast
        or address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_reserved
        or address.is_unspecified
        # fec0::/10: deprecated, and still somebody's inner network; `is_global` takes it for a public one.
        or (isinstance(address, IPv6Address) and address.is_site_local)
    )


def _inside(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """IPv4 addresses that an IPv6 address stands for: mapped, 6to4, Teredo, NAT64."""
    if isinstance(address, IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(IPv4Address(int(address) & 0xFFFF_FFFF))
    return [one for one in found if one is not None]


def _authorities() -> ssl.SSLContext:
    """The system's authorities; Mozilla's where the system has none (small images)."""
    return _loaded(ssl.get_default_verify_paths())


@lru_cache(maxsize=4)
def _loaded(_paths: ssl.DefaultVerifyPaths) -> ssl.SSLContext:
    """Reading them takes longer than all else about a client: once for the same paths (SSL_CERT_FILE is among them)."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        context.load_verify_locations(certifi.where())
    return context


class _NotPublic(httpcore.ConnectError):
    """What the network says of a refused host; `Refused` once it has passed httpx."""


class _Network(httpcore.AsyncNetworkBackend):
    """Resolves a name once, and connects to what it judged."""

    def __init__(self, allow: Sequence[Network]) -> None:
        self._allow = allow
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """:raises _NotPublic: none of the host's addresses may be reached"""
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolve(host, port)
                return await self._first(addresses, port, socket_options)
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} did not answer in {timeout} s") from None

    async def _resolve(self, host: str, port: int) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as problem:
            raise httpcore.ConnectError(f"the host {host} is not found") from problem
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        allowed = [address for address in addresses if is_allowed(address, self._allow)]
        if not allowed:
            raise _NotPublic(f"the host {host} leads to no public address; OUTSIDE_ALLOW may name its network")
        return allowed

    async def _first(
        self, addresses: Sequence[str], port: int, socket_options: Iterable[Any] | None
    ) -> httpcore.AsyncNetworkStream:
        """The first that takes the connection."""
        problem: httpcore.ConnectError | None = None
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, None, None, socket_options)
            except httpcore.ConnectError as one:
                problem = one
        assert problem is not None
        raise problem

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise _NotPublic("sockets of this machine are not outside")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Transport(httpx.AsyncHTTPTransport):
    """Through `_Network`; an answer is read whole here, up to the limit."""

    def __init__(
        self, allow: Sequence[Network], verify: ssl.SSLContext, http1: bool, http2: bool, limit: int, seconds: float
    ) -> None:
        super().__init__(verify=verify, http1=http1, http2=http2, trust_env=False)
        # httpx has no parameter for the network below it; that this takes effect is what the tests show.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=verify,
            http1=http1,
            http2=http2,
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=_Network(allow),
        )
        self._limit, self._seconds = limit, seconds

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """:raises Refused, TooLarge: and what httpx raises"""
        try:
            async with asyncio.timeout(self._seconds + CONNECT_SECONDS):
                return await self._exchange(request)
        except TimeoutError:
            # A peer that says a byte now and then keeps every single wait short.
            raise httpx.ReadTimeout(f"the answer took longer than {self._seconds} s", request=request) from None
        except httpx.ConnectError as problem:
            if isinstance(problem.__cause__, _NotPublic):
                raise Refused(str(problem), request=request) from None
            raise

    async def _exchange(self, request: httpx.Request) -> httpx.Response:
        await self._drop_closed()
        response = await super().handle_async_request(request)
        try:
            body = await self._read(response, request)
        finally:
            await response.aclose()
        headers = [(name, value) for name, value in response.headers.raw if name.lower() not in _OF_THE_WIRE]
        return httpx.Response(
            response.status_code, headers=headers, content=body, request=request, extensions=response.extensions
        )

    async def _drop_closed(self) -> None:
        """HTTP/2 connections that the other side closed while nothing went over them. The library would find out by writing
        into one, and then nobody could say whether the request arrived. (For HTTP/1.1 it looks by itself.)"""
        for one in list(self._pool.connections):
            inner = getattr(one, "_connection", None)
            if isinstance(inner, httpcore.AsyncHTTP2Connection) and inner.is_idle():
                if inner._network_stream.get_extra_info("is_readable"):
                    await one.aclose()

    async def _read(self, response: httpx.Response, request: httpx.Request) -> bytes:
        packing = response.headers.get("content-encoding", "identity").strip().lower()
        if packing not in _PACKINGS:
            raise TooLarge(f"the answer is packed as {packing[:30]!r}, which was not asked for", request=request)
        unpack = zlib.decompressobj(_PACKINGS[packing]) if _PACKINGS[packing] else None
        body = b""
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for part in response.stream:
            room = self._limit + 1 - len(body)
            try:
                body += part if unpack is None else unpack.decompress(part, room)
            except zlib.error as problem:
                raise httpx.DecodingError(f"the answer cannot be unpacked: {problem}", request=request) from None
            if len(body) > self._limit:
                raise TooLarge(f"the answer is larger than {self._limit} bytes", request=request)
        return body


# How zlib calls them: 47 takes gzip and zlib; deflate is what either of two things are called, nearly always zlib's.
_PACKINGS = {"identity": 0, "": 0, "gzip": 47, "x-gzip": 47, "deflate": 47}
_OF_THE_WIRE = (b"content-encoding", b"content-length", b"transfer-encoding")
