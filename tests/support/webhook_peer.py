"""The shop's own system for tests: takes signed webhooks, which it verifies with the Standard Webhooks project's own
library, each `webhook-id` once; and signs what it sends back with that library, too."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError, webhooks

from tests.support.http_peer import Answer, Desk, HttpPeer, Request, serve

SECRET = "whsec_" + "dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMsIGxvbmcgZW5vdWdo"


class WebhookPeer(HttpPeer):
    """`taken` in the ledger carries the id and the body of each webhook that was new."""

    module = "tests.support.webhook_peer"

    def __init__(self, secret: str = SECRET, now: datetime | None = None) -> None:
        """:param now: what the system takes the time to be, for tests whose clock stands still; by default its own"""
        super().__init__(secret=secret, now=now.isoformat() if now else None)

    @property
    def url(self) -> str:
        return f"{self.origin}/dripline"

    def taken(self) -> list[dict[str, Any]]:
        return [entry["body"] for entry in self.entries("taken")]


def call_back(
    type: str, data: dict[str, Any], *, id: str = "msg_1", at: datetime | None = None, secret: str = SECRET
) -> tuple[dict[str, str], bytes]:
    """(headers in lower case, body) of a webhook from the shop's system."""
    moment = at or datetime.now(UTC)
    body = json.dumps({"type": type, "timestamp": moment.isoformat(), "data": data})
    headers = {
        "webhook-id": id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign(id, moment, body),
    }
    return headers, body.encode()


class _System(Desk):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._verifier = Webhook(self.told["secret"])
        if self.told["now"]:
            standing = {"now": classmethod(lambda cls, tz=None: cls.fromisoformat(self.told["now"]))}
            webhooks.datetime = type("Standing", (datetime,), standing)  # type: ignore[assignment,misc]
        self._seen: set[str] = set()

    def judge(self, request: Request) -> Answer | None:
        if request.path != "/dripline":
            return Answer(404, "no such path")
        try:
            self._verifier.verify(request.body, request.headers)
        except WebhookVerificationError as problem:
            return Answer(401, str(problem))
        return None

    def take(self, request: Request) -> Answer:
        id, body = request.headers["webhook-id"], json.loads(request.body)
        if id in self._seen:
            self.write("repeated", id=id)
            return Answer(200, {"id": f"ours-{id}"})
        self._seen.add(id)
        self.write("taken", id=id, body=body)
        return Answer(202, {"id": f"ours-{id}", "cost": "0.40"})


if __name__ == "__main__":
    serve(_System)
