"""One origin in front of four services: every route leads to the service that has it, through Caddy and through the
chart's ingress, and what is for operators leads nowhere."""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter

from shared.settings import SERVICE_NAMES
from tests.contracts.test_deployment import VALUES, manifests, template, tool
from tests.support.contexts import context_for

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {name: f"127.0.1.{number}" for number, name in enumerate(SERVICE_NAMES, 1)}
FOR_OPERATORS = [
    f"{prefix}/{probe}"
    for prefix in ("", *(f"/{name}" for name in SERVICE_NAMES))
    for probe in ("metrics", "readyz", "livez", "version")
]


def paths_of(router: APIRouter) -> Iterator[str]:
    """The paths of its routes, and of the routers that it includes."""
    for route in router.routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route.path  # type: ignore[attr-defined]
        else:
            yield from paths_of(inner)


@pytest.fixture
async def routes(database_url: str) -> AsyncIterator[dict[str, str]]:
    """Every path that a service answers, with an example for each parameter → the service."""
    found: dict[str, str] = {}
    async with context_for(database_url, leases=False) as context:
        for name in SERVICE_NAMES:
            service = await import_module(f"services.{name}.service").build(context)
            paths = [*(path for router in service.routers for path in paths_of(router)), *service.asgi]
            found |= {re.sub(r"\{[^}]*\}", "x1", path): name for path in paths}
            described = ("openapi.json", "docs", "docs/static/swagger-ui-bundle.js")
            found |= {f"/{name}/{page}": name for page in described}
            if service.close is not None:
                await service.close()
        yield found


class _Says(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        said = str(self.server.server_address[0]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def upstreams() -> Iterator[int]:
    """A server on each service's address; they say theirs. Yields the port that they share."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port = int(probe.getsockname()[1])
    servers = [ThreadingHTTPServer((address, port), _Says) for address in ADDRESSES.values()]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield port
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@contextmanager
def names() -> Iterator[int]:
    """What Docker's DNS does: each service's name has an address. Yields the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns:
        dns.bind(("127.0.0.1", 0))
        dns.settimeout(0.2)
        ending = threading.Event()
        thread = threading.Thread(target=_answer, args=(dns, ending))
        thread.start()
        try:
            yield int(dns.getsockname()[1])
        finally:
            ending.set()
            thread.join()


def _answer(dns: socket.socket, ending: threading.Event) -> None:
    while not ending.is_set():
        try:
            query, asker = dns.recvfrom(512)
        except TimeoutError:
            continue
        end = query.index(b"\0", 12) + 5
        kind = struct.unpack("!H", query[end - 4 : end - 2])[0]
        address = ADDRESSES.get(query[13 : 13 + query[12]].decode())
        there = address is not None and kind == 1
        head = query[:2] + struct.pack("!5H", 0x8180, 1, there, 0, 0)
        record = struct.pack("!3HIH", 0xC00C, 1, 1, 5, 4) + socket.inet_aton(address or "0.0.0.0") if there else b""
        dns.sendto(head + query[12:end] + record, asker)


@contextmanager
def proxy(folder: Path, site: str = "localhost") -> Iterator[tuple[httpx.Client, dict[str, str]]]:
    """Caddy with deploy/Caddyfile: other ports and another DNS, nothing else changed. `site`: the name it answers for.

    Yields a client of `site`, and the ports by scheme.
    """
    with socket.socket() as https, socket.socket() as inside, socket.socket() as health, socket.socket() as plain:
        for one in (https, inside, health, plain):
            one.bind(("127.0.0.1", 0))
        ports = [str(one.getsockname()[1]) for one in (https, inside, health, plain)]
    with upstreams() as port, names() as dns:
        text = (ROOT / "deploy/Caddyfile").read_text()
        for old, new in (
            ("port 8080", f"port {port}\n\t\t\t\tresolvers udp/127.0.0.1:{dns}"),
            ("http://:8081 {", f"http://:{ports[1]} {{"),
            ("http://:2020 {", f"http://:{ports[2]} {{"),
            ("\tadmin off\n", f"\tadmin off\n\thttp_port {ports[3]}\n"),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (folder / "Caddyfile").write_text(text)
        environment = {
            **os.environ,
            "XDG_DATA_HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "HTTPS_PORT": ports[0],
            "SITE_HOST": site,
        }
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                [tool("caddy"), "run", "--config", folder / "Caddyfile"], env=environment, stdout=log, stderr=log
            )
        try:
            root = folder / "caddy/pki/authorities/local/root.crt"
            with _client(root, site, int(ports[0]), process, folder / "log") as client:
                yield client, {"https": ports[0], "http": ports[3]}
        finally:
            process.terminate()
            process.wait(10)


def _client(root: Path, site: str, port: int, process: subprocess.Popen[bytes], log: Path) -> httpx.Client:
    """Trusts the authority that Caddy makes for itself, as docs/OPERATIONS.md tells people to."""
    deadline = time.monotonic() + 30
    while not (root.exists() and _shakes_hands(root, site, port)):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    trust = ssl.create_default_context(cafile=str(root))
    client = httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trust, timeout=10, trust_env=False)
    client.headers["Host"] = f"{site}:{port}"
    client.event_hooks = {"request": [lambda request: request.extensions.update(sni_hostname=site)]}
    return client


def _shakes_hands(root: Path, site: str, port: int) -> bool:
    """Whether the certificate is there: Caddy listens before it has made it."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as plain:
            with ssl.create_default_context(cafile=str(root)).wrap_socket(plain, server_hostname=site):
                return True
    except OSError:
        return False


def test_caddy_takes_each_route_to_its_service(routes: dict[str, str], tmp_path: Path) -> None:
    assert set(routes.values()) == set(SERVICE_NAMES)
    with proxy(tmp_path) as (client, _):
        led = {path: client.get(path) for path in routes}
        astray = {
            path: (service, led[path].text) for path, service in routes.items() if led[path].text != ADDRESSES[service]
        }
        assert astray == {}
        assert [path for path in FOR_OPERATORS if client.get(path).status_code != 404] == []
        answer = client.get("/c/x")
        assert "server" not in answer.headers
        assert "strict-transport-security" not in answer.headers, "it would count for all ports of localhost"


def test_caddy_leads_from_http_to_the_port_that_has_tls(tmp_path: Path) -> None:
    with proxy(tmp_path, "drip.example.com") as (client, ports):
        answer = client.get(f"http://127.0.0.1:{ports['http']}/u/x?y=1", headers={"Host": "drip.example.com"})
        assert (answer.status_code, answer.headers["location"]) == (
            308,
            f"https://drip.example.com:{ports['https']}/u/x?y=1",
        )
        assert "max-age" in client.get("/c/x").headers["strict-transport-security"]


def test_the_ingress_takes_each_route_to_its_service(routes: dict[str, str]) -> None:
    [ingress] = [one for one in manifests(template("-f", VALUES["everything"])) if one["kind"] == "Ingress"]
    [rule] = ingress["spec"]["rules"]
    led = {one["path"]: one["backend"]["service"]["name"].removeprefix("drip-") for one in rule["http"]["paths"]}
    assert {one["pathType"] for one in rule["http"]["paths"]} == {"Prefix"}

    def leads_to(path: str) -> str | None:
        fitting = [prefix for prefix in led if path == prefix or path.startswith(prefix + "/")]
        return led[max(fitting, key=len)] if fitting else None

    assert {path: (service, leads_to(path)) for path, service in routes.items() if leads_to(path) != service} == {}
    assert [path for path in FOR_OPERATORS if leads_to(path) is not None] == []
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]
