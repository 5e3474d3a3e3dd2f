"""The line between a client and Dripline, as a process of its own with a ledger of its own: it breaks when it is told to.

    with Line("http://127.0.0.1:8080") as line:
        line.begin("503", "429:1", "cut")

Each POST takes the next order; without one, and for everything but POST, it passes on what it gets, both ways.

    503, 429:2   answers this itself, with Retry-After after the colon; Dripline hears nothing
    cut          passes the request on, takes the whole answer, and cuts the connection without a word of it
    pass         passes on; to reach a later POST

Every request is one JSON line in the ledger, on disk before the answer leaves.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.wait import until_blocking

ROOT = Path(__file__).resolve().parents[2]
# Of one connection only; the client's Host goes through, as a reverse proxy would pass it.
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"})


@dataclass(frozen=True)
class Request:
    """A request as the line saw it: `upstream` is Dripline's status, None if it was not asked; `answered` what the client
    got, None if the connection was cut. `body`: inflated; `headers` in lower case; `at`: seconds."""

    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: str
    upstream: int | None
    answered: int | None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message_ids(self) -> list[str]:
        """Of all events in it."""
        return [event["messageId"] for event in self.json.get("batch", [self.json])]


class Line:
    """The test's side: starts, steers and reads the process."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.folder = Path(tempfile.mkdtemp(prefix="dripline-test-line-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._beginning = 0  # line of the ledger

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{(self.folder / 'port').read_text()}"

    def begin(self, *orders: str) -> None:
        """A new ledger, and these orders for the next POSTs."""
        with open(self.folder / "orders.jsonl", "a") as book:
            book.write(json.dumps(orders) + "\n")
        self._beginning = len(self._lines())

    def requests(self, method: str | None = None) -> list[Request]:
        """What went over the line since `begin`, in the order of the answers; all or those of one method."""
        found = [Request(**json.loads(line)) for line in self._lines()[self._beginning :]]
        return [request for request in found if method in (None, request.method)]

    def accepted(self) -> set[str]:
        """Message ids that the client knows to have arrived."""
        return {one for post in self.requests("POST") if post.answered == 200 for one in post.message_ids}

    def _lines(self) -> list[str]:
        ledger = self.folder / "ledger.jsonl"
        return [line for line in ledger.read_text().splitlines() if line.endswith("}")] if ledger.exists() else []

    def __enter__(self) -> Self:
        arguments = ["--target", self.target, "--folder", str(self.folder), "--parent", str(os.getpid())]
        self._process = subprocess.Popen([sys.executable, "-m", "tests.clients.line", *arguments], cwd=ROOT)
        until_blocking((self.folder / "port").exists, what="the line is open")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(options.target)
        self.folder: Path = options.folder
        self.orders: list[str] = []
        self.books = 0  # sets of orders begun
        self.lock = threading.Lock()

    def next_order(self) -> str:
        with self.lock:
            book = self.folder / "orders.jsonl"
            sets = book.read_text().splitlines() if book.exists() else []
            if len(sets) > self.books:
                self.books, self.orders = len(sets), json.loads(sets[-1])
            return self.orders.pop(0) if self.orders else "pass"

    def write_down(self, **entry: Any) -> None:
        with self.lock, open(self.folder / "ledger.jsonl", "a") as ledger:
            ledger.write(json.dumps({"at": time.time(), **entry}) + "\n")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    server: _Server

    def do_GET(self) -> None:
        self._pass("pass")

    def do_OPTIONS(self) -> None:
        self._pass("pass")

    def do_POST(self) -> None:
        self._pass(self.server.next_order())

    def _pass(self, order: str) -> None:
        body = self._read_body()
        status, _, wait = order.partition(":")
        if status.isdigit():
            self._write_down(body, upstream=None, answered=int(status))
            # A browser shows a page no answer without the first header, and no Retry-After without the second.
            cors = [("Access-Control-Allow-Origin", "*"), ("Access-Control-Expose-Headers", "retry-after")]
            return self._answer(int(status), [*cors, *([("Retry-After", wait)] if wait else [])], b"{}")
        upstream, headers, answer = self._ask(body)
        if order == "cut":
            self._write_down(body, upstream=upstream, answered=None)
            return self._cut()
        self._write_down(body, upstream=upstream, answered=upstream)
        return self._answer(upstream, headers, answer)

    def _read_body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.target.netloc, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP | {"content-length"}:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        dropped = HOP_BY_HOP | {"content-length", "date", "server"}
        return answer.status, [item for item in answer.getheaders() if item[0].lower() not in dropped], content

    def _answer(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 204:
            self.wfile.write(body)

    def _cut(self) -> None:
        """RST instead of an answer."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _write_down(self, body: bytes, upstream: int | None, answered: int | None) -> None:
        plain = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.write_down(
            method=self.command,
            path=self.path,
            headers=headers,
            body=plain.decode(),
            upstream=upstream,
            answered=answered,
        )

    def log_message(self, *_: object) -> None:
        """The ledger says more."""


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server = _Server(options)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    unfinished = options.folder / "port.new"
    unfinished.write_text(str(server.server_address[1]))
    unfinished.replace(options.folder / "port")
    while os.getppid() == options.parent:  # whoever started us may have been killed
        time.sleep(0.5)


if __name__ == "__main__":
    _main()
