"""Outgoing HTTP reaches what it may reach and nothing else. On real sockets; only the answers of the name server are ours."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared import outside

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
NOON = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)


class Server:
    """Answers every request with `answer`; keeps what it read and at which of its addresses."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self.requests: list[bytes] = []
        self.at: list[str] = []
        self.names: list[str | None] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                self.at.append(writer.get_extra_info("sockname")[0])
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def header(self, name: str) -> str:
        """Of the last request."""
        lines = self.requests[-1].decode().split("\r\n")
        return next(line.partition(": ")[2] for line in lines if line.lower().startswith(name + ":"))


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    if tls is not None:
        tls.sni_callback = lambda _socket, name, _context: server.names.append(name)
    listening = await asyncio.start_server(server.serve, "0.0.0.0", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as made:
        yield made


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """A name server: `names("provider.test", first answer, second answer …)`; the last answer stays."""
    answers: dict[str, list[list[str]]] = {}
    asked: list[str] = []

    async def getaddrinfo(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        if host not in answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        queue = answers[host]
        addresses = queue.pop(0) if len(queue) > 1 else queue[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    def tell(host: str, *of: list[str]) -> list[str]:
        monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", getaddrinfo)
        answers[host] = list(of)
        return asked

    return tell


@pytest.mark.parametrize(
    "address",
    """
    127.0.0.1 127.9.9.9 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1 192.0.0.1
    192.0.2.1 198.18.0.1 203.0.113.5 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
    ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd12::1 fec0::1 ff02::1 2001:db8::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1
    ::ffff:a9fe:a9fe 2002:7f00:0001::1 2002:0a00:0001:: 64:ff9b::7f00:1 64:ff9b::10.0.0.1 64:ff9b:1::1 ::127.0.0.1
    2001:0:4136:e378:8000:63bf:3fff:fdd2 not-an-address
    """.split(),
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not outside.is_allowed(address, ())


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_a_public_address_may_be_reached(address: str) -> None:
    assert outside.is_allowed(address, ())


def test_the_deployment_may_allow_a_network_of_its_own_and_no_other() -> None:
    allow = (ip_network("10.1.0.0/16"), ip_network("fd00:1::/32"))
    assert outside.is_allowed("10.1.2.3", allow) and outside.is_allowed("fd00:1::5", allow)
    assert outside.is_allowed("::ffff:10.1.2.3", allow)
    assert not outside.is_allowed("10.2.0.1", allow) and not outside.is_allowed("fd00:2::5", allow)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.1", "127.1", "0", "[::1]", "[::ffff:127.0.0.1]"],
)
async def test_no_spelling_of_this_machine_is_reached(host: str, server: Server) -> None:
    async with outside.client() as client:
        with pytest.raises(outside.Refused, match="no public address") as caught:
            await client.get(f"http://{host}:{server.port}/")
    assert isinstance(caught.value, outside.NOT_SENT)
    assert server.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "127.1"])
async def test_what_the_deployment_allows_is_reached(host: str, server: Server) -> None:
    async with outside.client(LOOPBACK) as client:
        assert (await client.get(f"http://{host}:{server.port}/")).text == "ok"


async def test_the_connection_goes_to_the_address_that_was_judged(
    server: Server, names: Callable[..., list[str]]
) -> None:
    """A name server that gives a good address to the first question and a bad one to the second gains nothing."""
    asked = names("provider.test", ["127.0.0.2"], ["127.0.0.1"])
    async with outside.client((ip_network("127.0.0.2/32"),)) as client:
        assert (await client.get(f"http://provider.test:{server.port}/")).text == "ok"
        assert asked == ["provider.test"]
        assert server.at == ["127.0.0.2"]
        assert server.header("host") == f"provider.test:{server.port}"
    async with outside.client((ip_network("127.0.0.2/32"),)) as client:
        with pytest.raises(outside.Refused):
            await client.get(f"http://provider.test:{server.port}/")


async def test_of_several_addresses_only_those_that_may_be_reached_are_tried(
    server: Server, names: Callable[..., list[str]]
) -> None:
    names("provider.test", ["127.0.0.1", "10.0.0.1", "127.0.0.3"])
    async with outside.client((ip_network("127.0.0.3/32"),)) as client:
        await client.get(f"http://provider.test:{server.port}/")
    assert server.at == ["127.0.0.3"]


async def test_a_host_that_is_not_found_was_not_sent_to(names: Callable[..., list[str]]) -> None:
    names("other.test", ["127.0.0.1"])
    async with outside.client(LOOPBACK) as client:
        with pytest.raises(outside.NOT_SENT, match=r"nowhere\.test is not found"):
            await client.get("http://nowhere.test/")


async def test_a_redirect_is_told_and_not_followed(server: Server) -> None:
    server.answer = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    async with outside.client(LOOPBACK) as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}/")).status_code == 302
    assert len(server.requests) == 1


async def test_the_environment_s_proxy_and_a_server_s_cookies_count_for_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server.answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
    async with outside.client(LOOPBACK) as client:
        for _ in range(2):
            await client.get(f"http://127.0.0.1:{server.port}/")
    assert len(server.requests) == 2
    assert b"cookie" not in server.requests[1].lower()


async def test_an_answer_is_read_up_to_a_limit(server: Server) -> None:
    server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000
    async with outside.client(LOOPBACK, limit=5000) as client:
        assert len((await client.get(f"http://127.0.0.1:{server.port}/")).content) == 5000
    async with outside.client(LOOPBACK, limit=4999) as client:
        with pytest.raises(outside.TooLarge):
            await client.get(f"http://127.0.0.1:{server.port}/")


async def test_a_packed_answer_is_unpacked_up_to_the_limit(server: Server) -> None:
    packed = gzip.compress(b"x" * 3_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    server.answer = head % len(packed) + packed
    assert len(packed) < 10_000
    async with outside.client(LOOPBACK) as client:
        with pytest.raises(outside.TooLarge):
            await client.get(f"http://127.0.0.1:{server.port}/")
        packed = gzip.compress('{"ok": "да"}'.encode())
        server.answer = head % len(packed) + packed
        assert (await client.get(f"http://127.0.0.1:{server.port}/")).json() == {"ok": "да"}


async def test_a_peer_that_says_a_byte_now_and_then_does_not_hold_us(server: Server) -> None:
    server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nonly a part"
    async with outside.client(LOOPBACK, seconds=0.2) as client:
        with pytest.raises(outside.FAILED) as caught:
            await client.get(f"http://127.0.0.1:{server.port}/")
    assert not isinstance(caught.value, outside.NOT_SENT)


async def test_nobody_listening_means_that_nothing_was_sent() -> None:
    async with outside.client(LOOPBACK) as client:
        with pytest.raises(outside.NOT_SENT):
            await client.get("http://127.0.0.1:9/")


async def test_over_tls_the_name_that_was_meant_is_asked_for_and_verified(
    names: Callable[..., list[str]], tmp_path: Path
) -> None:
    trust, own = certificate("provider.test", tmp_path)
    async with serving(own) as server:
        names("provider.test", ["127.0.0.1"])
        async with outside.client(LOOPBACK, verify=trust) as client:
            assert (await client.get(f"https://provider.test:{server.port}/")).text == "ok"
        assert server.names == ["provider.test"]
        names("other.test", ["127.0.0.1"])
        async with outside.client(LOOPBACK, verify=trust) as client:
            with pytest.raises(outside.NOT_SENT, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(f"https://other.test:{server.port}/")


async def test_an_authority_that_nobody_knows_is_not_trusted(names: Callable[..., list[str]], tmp_path: Path) -> None:
    _, own = certificate("provider.test", tmp_path)
    async with serving(own) as server:
        names("provider.test", ["127.0.0.1"])
        async with outside.client(LOOPBACK) as client:
            with pytest.raises(outside.NOT_SENT, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(f"https://provider.test:{server.port}/")


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("7", timedelta(seconds=7)),
        ("Tue, 10 Mar 2026 09:01:30 GMT", timedelta(seconds=90)),
        ("Tue, 10 Mar 2026 08:00:00 GMT", timedelta(0)),
        ("99999999999999999999", timedelta(days=1)),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_how_long_an_answer_asks_to_wait(value: str, wait: timedelta | None) -> None:
    assert outside.retry_after(outside.Response(429, headers={"Retry-After": value}), NOON) == wait


def certificate(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(one that trusts it, one that serves with it)"""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(pem + secret)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(folder / "both.pem")
    return ssl.create_default_context(cadata=pem.decode()), own
