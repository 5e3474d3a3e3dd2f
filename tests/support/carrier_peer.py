"""The carrier of `tests/support/channels/carrier.py`: a process of its own that keeps a ledger of what it took.

peer.behave(mode="hang")      # ok | hang | accept-then-hang | 429 | 503 | accept-then-500
peer.taken()                  # the messages that it took, as it was told them
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.support.wait import until_blocking

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "token-of-the-shop"


class CarrierPeer:
    """The test's side."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dripline-test-carrier-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def behave(self, **how: Any) -> None:
        """`mode`, `price` (said with the answer), `retry_after`."""
        (self.folder / "new").write_text(json.dumps({"mode": "ok", **how}))
        os.replace(self.folder / "new", self.folder / "behaviour")

    def taken(self) -> list[dict[str, Any]]:
        """What it took, oldest first."""
        ledger = self.folder / "ledger"
        return [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []

    def seen(self) -> int:
        """How many requests to send there were, taken or not."""
        file = self.folder / "seen"
        return len(file.read_text()) if file.exists() else 0

    def reset(self) -> None:
        """As it was when it began: for the next test."""
        for name in ("ledger", "seen"):
            (self.folder / name).unlink(missing_ok=True)
        self.behave()

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--folder", str(self.folder), "--parent", str(os.getpid())]
        self._process = subprocess.Popen([sys.executable, "-m", "tests.support.carrier_peer", *arguments], cwd=ROOT)
        until_blocking(self._answers, what="the carrier answers")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def __enter__(self) -> Self:
        self.behave()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        how = json.loads((self.folder / "behaviour").read_text())
        mode = how["mode"]
        with self.lock, (self.folder / "seen").open("a") as seen:
            seen.write(".")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._say(401, {"error": "who are you?"})
        if mode == "429":
            return self._say(429, {}, {"Retry-After": str(how.get("retry_after", 7))})
        if mode == "503":
            return self._say(503, {})
        if mode == "hang":
            time.sleep(60)
            return None
        number = self._take(body)
        if mode == "accept-then-500":
            return self._say(500, {})
        if mode == "accept-then-hang":
            time.sleep(60)
            return None
        said = {"carrier_id": f"c-{number}"}
        return self._say(200, said | ({"price": how["price"]} if "price" in how else {}))

    def do_GET(self) -> None:
        identity = self.path.rpartition("/")[2]
        ledger = self.folder / "ledger"
        lines = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
        found = next((line for line in lines if line["id"] == identity), None)
        self._say(200, {"carrier_id": found["carrier_id"]}) if found else self._say(404, {})

    def _take(self, body: dict[str, Any]) -> int:
        with self.lock:
            ledger = self.folder / "ledger"
            number = len(ledger.read_text().splitlines()) + 1 if ledger.exists() else 1
            with ledger.open("a") as file:
                file.write(json.dumps({**body, "carrier_id": f"c-{number}", "at": time.time()}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return number

    def _say(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--parent", type=int)
    given = parser.parse_args()
    _Handler.folder = given.folder
    server = ThreadingHTTPServer(("127.0.0.1", given.port), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while os.getppid() == given.parent:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
