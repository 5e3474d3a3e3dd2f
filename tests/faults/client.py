"""A shop that posts events under load and keeps its own log: every POST, when it left, and what was answered.

Like a client library it repeats a POST, with the same message ids, until it is answered with 200; each try is a line of
the log. The log is the oracle: it knows nothing of the server's tables.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

BUYER_EVERY = 5  # of so many visitors one orders at once


@dataclass
class Visitor:
    """One person's visit: identified, consented, a product in the cart; a buyer orders right after."""

    number: int
    posts: dict[str, Post] = field(default_factory=dict)

    @property
    def user_id(self) -> str:
        return f"u-{self.number}"

    @property
    def email(self) -> str:
        return f"visitor{self.number}@example.com"

    @property
    def is_buyer(self) -> bool:
        return self.number % BUYER_EVERY == 0

    def batches(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """What is posted, in this order, each after the one before was answered."""
        yield (
            "hello",
            [
                self._event("identify", traits={"email": self.email, "first_name": "Anna"}),
                self._event(
                    "track",
                    event="Consent Granted",
                    properties={
                        "channel": "email",
                        "address": self.email,
                        "topics": ["marketing"],
                        "form": "checkout",
                        "text_version": "1",
                        "page": "http://shop.example/checkout",
                        "at": "2026-01-01T10:00:00Z",
                        "ip": "192.0.2.1",
                    },
                ),
            ],
        )
        product = {
            "product_id": "p-1",
            "name": "Record",
            "price": 1500,
            "quantity": 1,
            "url": "http://shop.example/p-1",
        }
        yield (
            "cart",
            [
                self._event("track", event="Product Viewed", properties=product),
                self._event("track", event="Product Added", properties=product),
            ],
        )
        if self.is_buyer:
            order = {"order_id": f"o-{self.number}", "total": 1500, "products": [product]}
            yield "order", [self._event("track", event="Order Completed", properties=order)]

    def _event(self, type: str, **fields: Any) -> dict[str, Any]:
        name = fields.get("event", type).replace(" ", "-").lower()
        return {"type": type, "userId": self.user_id, "messageId": f"m-{self.number}-{name}", **fields}


@dataclass
class Post:
    """One POST that was answered with 200, after however many tries."""

    message_ids: list[str]
    first_sent: float
    """Wall clock in seconds, of the first try."""
    answered: float
    tries: int


class Client:
    """Posts visits at a steady rate until it is told to stop."""

    def __init__(self, urls: Sequence[str], write_key: str, log: Path, *, rate: float, seed: int) -> None:
        """:param rate: visitors a second; :param seed: of the pauses between tries and the choice of a server"""
        self._urls, self._write_key, self._log_path, self._rate = list(urls), write_key, log, rate
        self._chance = random.Random(seed)
        self._log = open(log, "a")  # noqa: SIM115 - open as long as the client lives
        self._stopping = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self.visitors: list[Visitor] = []
        self.unanswered = 0
        """POSTs that are under way at this moment."""

    def start(self) -> None:
        self._runner = asyncio.create_task(self._run())

    async def finish(self, limit: float = 60) -> None:
        """No new visitors; those under way go on until they are through."""
        self._stopping.set()
        assert self._runner is not None
        await asyncio.wait_for(self._runner, limit)
        self._log.close()

    @property
    def answered(self) -> list[str]:
        """Message ids that were answered with 200, by the log."""
        return [
            message_id
            for line in self._log_path.read_text().splitlines()
            if (entry := json.loads(line))["status"] == 200
            for message_id in entry["message_ids"]
        ]

    @property
    def statuses(self) -> dict[str, int]:
        """How often which answer came, by the log; `null` is none at all."""
        counts: dict[str, int] = {}
        for line in self._log_path.read_text().splitlines():
            status = str(json.loads(line)["status"])
            counts[status] = counts.get(status, 0) + 1
        return counts

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=16)
        async with httpx.AsyncClient(limits=limits, timeout=15) as http, asyncio.TaskGroup() as visits:
            for number in itertools.count(1):
                visitor = Visitor(number)
                self.visitors.append(visitor)
                visits.create_task(self._visit(http, visitor))
                try:
                    async with asyncio.timeout(1 / self._rate):
                        await self._stopping.wait()
                    return
                except TimeoutError:
                    continue

    async def _visit(self, http: httpx.AsyncClient, visitor: Visitor) -> None:
        for name, events in visitor.batches():
            visitor.posts[name] = await self._post_until_answered(http, events)

    async def _post_until_answered(self, http: httpx.AsyncClient, events: list[dict[str, Any]]) -> Post:
        message_ids = [event["messageId"] for event in events]
        first_sent = time.time()
        for tries in itertools.count(1):
            sent = time.time()
            status = await self._post(http, events)
            answered = time.time()
            self._log.write(
                json.dumps({"message_ids": message_ids, "sent": sent, "answered": answered, "status": status}) + "\n"
            )
            self._log.flush()
            if status == 200:
                return Post(message_ids, first_sent, answered, tries)
            if status is not None and status not in (429, 503):
                raise AssertionError(f"the server answered {status} to {message_ids}")
            await asyncio.sleep(self._chance.uniform(0.1, 0.5))
        raise AssertionError("not reached")

    async def _post(self, http: httpx.AsyncClient, events: list[dict[str, Any]]) -> int | None:
        self.unanswered += 1
        try:
            answer = await http.post(
                f"{self._chance.choice(self._urls)}/v1/batch", json={"batch": events}, auth=(self._write_key, "")
            )
        except httpx.TransportError:
            return None
        finally:
            self.unanswered -= 1
        return answer.status_code
