"""A tracking API as a process of its own, with a ledger of its own: what importers and the simulated shop are tried on.

    python tests/support/tracking_peer.py --ledger FILE --key KEY [--answers "503:7,429:0,200"] [--delay 0.01]

Prints its port on the first line of its output. It checks what the protocol asks for: Basic authentication with an
empty password, JSON of the batch form, the limits of size and number, a type and an id for every event, `messageId` of
100 characters at most. Scripted answers (`status:Retry-After`) come first. An event whose properties say
`{"refuse": true}` is bad: a batch without a good event is answered 400, else 200 and only the good ones go into the
ledger, one JSON line each, `{"request": n, "event": {…}}`. As ingest does, both answers list the first twenty bad ones
with their pointers, and 200 says how many there are.

`GET /v1/messages` (Bearer key) lists what `--messages FILE` (JSON list) says, two a page; links (`/c/…`, `/o/…`,
`/u/…`, `/confirm/…`) are answered 200 and recorded as `{"request": n, "method": …, "path": …}`.
"""

from __future__ import annotations

import argparse
import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

TYPES = {"identify", "track", "page", "screen", "group", "alias"}


class Api(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.options = options
        self.lock = threading.Lock()
        self.requests = 0
        self.answers = [
            (int(status), wait)
            for status, _, wait in (answer.partition(":") for answer in options.answers.split(",") if answer)
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = (
        True  # headers and body are two writes; together with delayed ACKs that is 40 ms an answer
    )
    server: Api

    def do_GET(self) -> None:
        if not self.path.startswith("/v1/messages"):
            return self._link()
        if self.headers.get("Authorization") != f"Bearer {self.server.options.key}":
            return self._answer(401, {"title": "unauthorized"})
        listed = json.loads(self.server.options.messages.read_text()) if self.server.options.messages else []
        begin = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        page = listed[begin : begin + 2]
        return self._answer(200, {"items": page, "next": str(begin + 2) if begin + 2 < len(listed) else None})

    def _link(self) -> None:
        if not self.path.startswith(("/c/", "/o/", "/u/", "/confirm/")):
            return self._answer(404, {"title": "not found"})
        with self.server.lock, self.server.options.ledger.open("a") as ledger:
            self.server.requests += 1
            known = {"request": self.server.requests, "method": self.command, "path": self.path}
            ledger.write(json.dumps(known) + "\n")
        return self._answer(200, {"title": "done"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith(("/u/", "/confirm/")):
            return self._link()
        with self.server.lock:
            self.server.requests += 1
            number = self.server.requests
            scripted = self.server.answers.pop(0) if self.server.answers else (200, "")
        time.sleep(self.server.options.delay)
        if scripted[0] != 200:
            return self._answer(scripted[0], {"title": "scripted"}, {"Retry-After": scripted[1]} if scripted[1] else {})
        wanted = "Basic " + base64.b64encode(f"{self.server.options.key}:".encode()).decode()
        if self.headers.get("Authorization") != wanted:
            return self._answer(401, {"title": "unauthorized", "detail": "no such write key"})
        if self.path != "/v1/batch":
            return self._answer(404, {"title": "not found"})
        if len(body) > self.server.options.max_batch:
            return self._answer(413, {"title": "too large"})
        try:
            events = json.loads(body)["batch"]
            faults = [(index, fault) for index, event in enumerate(events) if (fault := self._fault(event))]
        except (ValueError, KeyError, TypeError) as problem:
            return self._answer(400, {"title": "bad request", "detail": f"not a batch: {problem}"})
        if not events or len(events) > 2500:
            errors = [{"pointer": "#/batch", "detail": "is empty" if not events else "has more than 2500 events"}]
            return self._answer(400, {"title": "bad request", "detail": errors[0]["detail"], "errors": errors})
        errors = [
            {"pointer": f"#/batch/{index}{'/properties/refuse' if 'refused' in fault else ''}", "detail": fault}
            for index, fault in faults[:20]
        ]
        if len(faults) == len(events):
            told = f"{errors[0]['pointer']}: {errors[0]['detail']}"
            return self._answer(400, {"title": "No event could be taken", "detail": told, "errors": errors})
        bad = {index for index, _ in faults}
        with self.server.lock, self.server.options.ledger.open("a") as ledger:
            for index, event in enumerate(events):
                if index not in bad:
                    ledger.write(json.dumps({"request": number, "event": event}) + "\n")
        refused = {"refused": len(faults), "errors": errors} if faults else {}
        return self._answer(200, {"success": True, **refused})

    def _fault(self, event: dict) -> str | None:
        if event.get("properties", {}).get("refuse"):
            return "this event is refused"
        if event.get("type") not in TYPES or (event["type"] == "track" and not event.get("event")):
            return "unknown type or no name"
        named = [
            event,
            event.get("traits", {}),
            event.get("properties", {}),
            event.get("context", {}).get("traits", {}),
        ]
        if not any(
            fields.get(name) for fields in named for name in ("userId", "anonymousId", "email", "card", "address")
        ):
            return "names nobody"
        if len(event.get("messageId", "")) > 100:
            return "messageId is longer than 100 characters"
        return "larger than 256 KiB" if len(json.dumps(event)) > 256 * 1024 else None

    def _answer(self, status: int, document: dict, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the ledger is the record."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--answers", default="")
    parser.add_argument("--messages", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--max-batch", type=int, default=500 * 1024)
    api = Api(parser.parse_args())
    print(api.server_address[1], flush=True)
    api.serve_forever()


if __name__ == "__main__":
    main()
