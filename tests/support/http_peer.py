"""What providers that are called by HTTP have in common in tests: a process of its own on a port, with a ledger on disk
that is written before each answer, and answers on order.

    peer.script({"status": 429, "headers": {"retry-after": "7"}}, {"status": 500, "after": True})
    peer.entries()      # [{"kind": "request", …}, {"kind": "taken", …}]

An order is obeyed once, in turn; then the peer behaves. Its fields: `status`, `headers`, `body` of the answer;
`after`: the message is taken first; `delay`: seconds before the answer; `hang_up`: the connection is cut instead of
answering; `silent`: neither answered nor cut.

A provider is a module with a class `Desk(folder)` and `python -m` of it; see `webhook_peer.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.peer_process import PeerProcess


class HttpPeer(PeerProcess):
    """The test's side."""

    def __init__(self, **told: Any) -> None:
        """:param told: what the desk is told (its secrets), as JSON"""
        super().__init__()
        (self.folder / "told.json").write_text(json.dumps(told))
        self._scripts = 0

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def script(self, *orders: dict[str, Any]) -> None:
        """From the next request on, these orders in turn."""
        self._scripts += 1
        unfinished = self.folder / "script.new"
        unfinished.write_text(json.dumps({"number": self._scripts, "orders": orders}))
        unfinished.replace(self.folder / "script.json")


@dataclass
class Request:
    """As the desk sees it; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


class Desk(ABC):
    """The peer's side. `judge` says what is wrong with a request, `take` takes it. Both under one lock."""

    def __init__(self, folder: Path) -> None:
        self.told: dict[str, Any] = json.loads((folder / "told.json").read_text())
        self._folder = folder
        self._ledger = (folder / "ledger.jsonl").open("a")
        self._script: tuple[int, list[dict[str, Any]]] = (0, [])
        self._lock = threading.Lock()

    @abstractmethod
    def judge(self, request: Request) -> Answer | None:
        """A refusal, or None."""

    @abstractmethod
    def take(self, request: Request) -> Answer:
        """Takes the message and says so, in the ledger too."""

    def write(self, kind: str, **entry: Any) -> None:
        self._ledger.write(json.dumps({"kind": kind, "at": time.time(), **entry}) + "\n")
        self._ledger.flush()

    def handle(self, request: Request) -> tuple[Answer, dict[str, Any]]:
        """The answer, and the order that was obeyed."""
        with self._lock:
            refusal = self.judge(request)
            verdict = refusal.body if refusal else "good"
            self.write("request", path=request.path, headers=request.headers, verdict=verdict)
            if refusal is not None:
                return refusal, {}
            order = self._next()
            if not order or order.get("after"):
                answer = self.take(request)
            if order:
                answer = Answer(order.get("status", 200), order.get("body"), order.get("headers", {}))
            return answer, order

    def _next(self) -> dict[str, Any]:
        file = self._folder / "script.json"
        if file.exists():
            script = json.loads(file.read_text())
            if script["number"] != self._script[0]:
                self._script = (script["number"], list(script["orders"]))
        return self._script[1].pop(0) if self._script[1] else {}


def serve(desk: Callable[[Path], Desk]) -> None:
    """What a peer's module does when it is run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    handler = type("Handler", (_Handler,), {"desk": desk(options.folder)})
    server = ThreadingHTTPServer(("127.0.0.1", options.port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while os.getppid() == options.parent:  # whoever started us may have been killed
        time.sleep(0.5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    desk: Desk

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer, order = self.desk.handle(Request(self.command, self.path, headers, body))
        time.sleep(order.get("delay", 0))
        if order.get("silent"):
            time.sleep(3600)
        if order.get("hang_up"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        content = answer.body if isinstance(answer.body, str) else json.dumps(answer.body or {})
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_: Any) -> None:
        """The ledger tells it."""
