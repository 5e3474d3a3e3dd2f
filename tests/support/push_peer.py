"""What the stand-ins of the three push services share: a process of its own behind TLS, its ledger, and its moods.

    peer.answer(status=429, headers={"retry-after": "7"})       # the next push, instead of a proper answer
    peer.answer(status=500, take=True)                           # takes the push, and says that it failed
    peer.answer(hang=True, take=True)                            # takes it and never says a word
    peer.answer(die=True, take=True)                             # takes it, and the connection breaks
    peer.pushes()                                                # what it took

The ledger is the oracle: it is on disk before the answer leaves, and it survives `kill`. What a provider would check is
checked with `cryptography` alone, not with the libraries that the product signs and encrypts with.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID

from tests.support.peer_process import PeerProcess

Entry = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass
class Mood:
    """How one push is met. Without a `status` the peer answers as it thinks right."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    """Sent as JSON."""

    take: bool = False
    """The push is taken, whatever the answer says."""

    delay_seconds: float = 0.0
    hang: bool = False
    """Nothing comes after the request was read; the connection stays."""

    die: bool = False
    """The process ends at once: the connection breaks before the answer."""

    always: bool = False
    """For every push from now on, not only the next."""


class PushPeer(PeerProcess):
    """The test's side. The ledger's kinds: `taken`, `refused` (with `why`), and what the peer has besides."""

    def __init__(self) -> None:
        super().__init__()
        (self.folder / "moods").mkdir()
        self.authority = _certificates(self.folder)
        self._moods = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def answer(self, **mood: Any) -> None:
        """How the next push is met, after those said before. Fields of `Mood`."""
        self._moods += 1
        put(self.folder / "moods" / f"{self._moods:06d}.json", asdict(Mood(**mood)))

    def pushes(self) -> list[Entry]:
        """What it took, in order."""
        return self.entries("taken")

    def refusals(self) -> list[str]:
        """Why it refused what it refused."""
        return [entry["why"] for entry in self.entries("refused")]


def put(file: Path, content: Any) -> None:
    """Writes JSON so that the other process sees all of it or nothing."""
    unfinished = file.with_suffix(".new")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(file)


class Refusal(Exception):
    """The request is not as the provider documents it; the text goes into the ledger."""

    def __init__(self, why: str, status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(why)
        self.why, self.status, self.body, self.headers = why, status, body, dict(headers or {})


@dataclass(frozen=True)
class Request:
    """What came in. Header names in lower case; `http`: "1.1" or "2"; `connection`: the client's port."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    http: str
    connection: int


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None


class Desk(ABC):
    """The peer's side: judges requests. Subclasses say what a push is and what the provider checks."""

    alpn: ClassVar[list[str]] = ["http/1.1"]

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"https://127.0.0.1:{port}"
        self._ledger = open(folder / "ledger.jsonl", "a")  # noqa: SIM115 - open as long as the process lives

    @abstractmethod
    def examine(self, request: Request) -> tuple[Entry, Answer]:
        """What goes into the ledger of a push that is as it should be, and its answer. Raises Refusal."""

    def other(self, request: Request) -> Answer | None:
        """The answer to a request that is no push (a token is asked for); None if it is one."""
        return None

    async def answer(self, request: Request) -> Answer:
        """Judges, writes down, and does as the mood says."""
        try:
            if (other := self.other(request)) is not None:
                return other
            entry, answer = self.examine(request)
        except Refusal as problem:
            self.write("refused", why=problem.why, status=problem.status)
            return Answer(problem.status, problem.headers, problem.body)
        mood = self._mood()
        if mood.take or not (mood.status or mood.hang or mood.die):
            self.write("taken", **entry)
        else:
            self.write("turned away", status=mood.status)
        if mood.die:
            os._exit(1)
        if mood.hang:
            await asyncio.Event().wait()
        await asyncio.sleep(mood.delay_seconds)
        return Answer(mood.status, mood.headers, mood.body) if mood.status else answer

    def write(self, kind: str, **entry: Any) -> None:
        self._ledger.write(json.dumps({"kind": kind, "at": time.time(), **entry}) + "\n")
        self._ledger.flush()

    def _mood(self) -> Mood:
        for file in sorted((self.folder / "moods").glob("*.json")):
            mood = Mood(**json.loads(file.read_text()))
            if not mood.always:
                file.unlink()
            return mood
        return Mood()

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Entry]], send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        port = scope["client"][1]
        answer = await self.answer(Request(scope["method"], scope["path"], headers, body, scope["http_version"], port))
        content = b"" if answer.body is None else json.dumps(answer.body).encode()
        sent = {"content-type": "application/json", "content-length": str(len(content)), **answer.headers}
        raw = [(name.encode(), value.encode()) for name, value in sent.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        await send({"type": "http.response.body", "body": content})


def serve(desk: Callable[[Path, int], Desk]) -> None:
    """The peer's process, until it is told to end or its parent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(_serve(desk(options.folder, options.port), options.port, options.folder, options.parent))


async def _serve(desk: Desk, port: int, folder: Path, parent: int) -> None:
    from hypercorn.asyncio import serve as hypercorn
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.certfile, config.keyfile = str(folder / "server.pem"), str(folder / "server.key")
    config.alpn_protocols = desk.alpn
    config.loglevel = "CRITICAL"
    # Nothing needs to be put in order: the ledger is on disk. Clients that keep connections are not waited for.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)

    async def until_alone() -> None:
        while os.getppid() == parent:  # whoever started us may have been killed
            await asyncio.sleep(1)
        os._exit(0)

    await hypercorn(desk, config, shutdown_trigger=until_alone)  # type: ignore[arg-type]


# ── what providers check ──────────────────────────────────────────────────────────────────────────────────────────────


def unpadded(text: str) -> bytes:
    """base64url without padding, strictly."""
    if "=" in text or "+" in text or "/" in text:
        raise ValueError("padding, or the other alphabet")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def padded_off(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def opened(token: str, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> tuple[Entry, Entry]:
    """Header and claims of a JWT (RFC 7515) that this key signed: ES256 or RS256. Raises ValueError."""
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("not three parts")
    header, claims = (json.loads(unpadded(part)) for part in parts[:2])
    signed, signature = f"{parts[0]}.{parts[1]}".encode(), unpadded(parts[2])
    try:
        if isinstance(key, rsa.RSAPublicKey):
            if header.get("alg") != "RS256":
                raise ValueError(f"alg is {header.get('alg')}")
            key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
        else:
            if header.get("alg") != "ES256" or len(signature) != 64:
                raise ValueError(f"alg is {header.get('alg')}, the signature has {len(signature)} bytes")
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise ValueError("the signature is wrong") from None
    return header, claims


def _certificates(folder: Path) -> str:
    """Makes an authority and a server's certificate for 127.0.0.1; returns the authority's, in PEM."""
    now, name = datetime.now(UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Dripline test authority")])
    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def signed(
        subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: tuple[x509.ExtensionType, bool]
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    signs = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    root = signed(name, authority, (x509.BasicConstraints(ca=True, path_length=0), True), (signs, True))
    host = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    leaf = signed(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")]), server, (host, False))
    (folder / "server.pem").write_bytes(leaf)
    (folder / "server.key").write_bytes(pem(server))
    return root.decode()


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
