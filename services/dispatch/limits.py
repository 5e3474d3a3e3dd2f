"""How much the public may ask of dispatch: links in messages, their pages, and providers' calls. None of them needs a key.

- What proves nothing (a forged call, a link that nobody here made) counts against its network. What is proven does not, so
  a provider may call in bursts, from however few networks.
- Links that are opened count against their network, and wait for a few connections to the database of their own, as calls
  do that are not proven yet. The other connections are left for opting out and for sending.
- Opting out and confirming are bounded by the message alone: mail providers post one-click opt-outs of all their users from
  a few networks, and nobody is kept from it by what others do.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal
from uuid import UUID

from fastapi import Request

from services.dispatch.measures import LIMITED
from shared.errors import Problem, is_transient
from shared.limits import Gate, RateLimit, outside_network
from shared.settings import Settings

SECONDS_AT_ONCE = 20  # of its rate may come in one burst
# Presses of the buttons of one message's pages; the first of them did what was asked for.
PRESSES_A_SECOND, PRESSES_AT_ONCE = 1, 100
SHARE_OF_CONNECTIONS = 4  # one part in so many of the pool
MOST_WAITING = 200
LONGEST_WAIT = 5.0  # seconds
CALL_COSTS = 8 << 10  # bytes that a call holds at least: what it takes to listen to it

Visit = Literal["hit", "page"]


class TooMuch(Problem):
    """Refused because of a limit; whoever asks again after `Retry-After` may be heard. `limit`: as the metric names it."""

    def __init__(self, status: int, limit: str, detail: str, seconds: float) -> None:
        LIMITED.labels(limit).inc()
        title = "Too many requests" if status == 429 else "Too busy at the moment"
        super().__init__(status, title, detail, headers={"Retry-After": str(math.ceil(seconds))})


class Turns:
    """So many at a time. Whoever would wait behind MOST_WAITING others, or longer than `patience` seconds, is sent away."""

    def __init__(self, at_once: int, patience: float = LONGEST_WAIT) -> None:
        self._free, self._patience, self._waiting = asyncio.Semaphore(at_once), patience, 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Raises TooMuch."""
        if self._waiting >= MOST_WAITING:
            raise self._busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise self._busy() from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()

    def _busy(self) -> TooMuch:
        return TooMuch(503, "turns", "Many ask at once; try again.", self._patience)


class Held:
    """The bytes that one call holds in the gate, as part of its network's share."""

    def __init__(self, gate: Gate, network: str | None) -> None:
        self._gate, self._network, self._size = gate, network, 0

    def reach(self, size: int) -> None:
        """Holds so many bytes in all, if not more already. Raises TooMuch when everybody together, or this network, would
        hold more than they may."""
        more = max(0, size - self._size)
        if not self._gate.enter(more, self._network):
            raise TooMuch(429, "bytes", "Too many calls are being read; try again.", 1)
        self._size += more

    def release(self) -> None:
        self._gate.leave(self._size, self._network)


class PublicLimits:
    """The limits of one process. `now`: monotonic seconds."""

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._unproven = _rate(settings.network_unproven_per_second, now)
        self._links = _rate(settings.network_links_per_second, now)
        self._presses = RateLimit(PRESSES_A_SECOND, PRESSES_AT_ONCE, now)
        self._gate = Gate(settings.max_bytes_in_flight, settings.network_bytes_in_flight)
        share = max(1, settings.database_pool_size // SHARE_OF_CONNECTIONS)
        self.lookups = Turns(share)
        self._turns: dict[Visit, Turns] = {"hit": Turns(share), "page": Turns(share)}

    @asynccontextmanager
    async def visit(self, what: Visit, request: Request) -> AsyncIterator[None]:
        """Around what a link of ours asks of the database; pixels and clicks (hits) keep nobody from a page, which is where
        people opt out by hand. Raises TooMuch."""
        network = _network(request)
        _take(self._links, network, (what, network), "links", "Your network opens more links than it may; try again.")
        async with self._turns[what].take():
            yield

    def guess(self, request: Request) -> None:
        """Counts a link that nobody here made. Raises TooMuch."""
        network = _network(request)
        _take(self._unproven, network, ("link", network), "guesses", "Your network asks for too many wrong links.")

    def press(self, message: UUID) -> None:
        """Counts a button pressed, by a person or their mail provider. Raises TooMuch."""
        if seconds := self._presses.take(message):
            raise TooMuch(429, "presses", "This was said very often; it was heard the first time.", seconds)

    @contextmanager
    def unproven(self, request: Request) -> Iterator[Held]:
        """Around a provider's call: it counts against its network unless it is heard in the end, or fails because of us.
        Yields what its body is counted with. Raises TooMuch."""
        network = _network(request)
        who = ("call", network)
        _take(self._unproven, network, who, "unproven", "Your network makes too many calls without a proof; try again.")
        held, counts = Held(self._gate, network), True
        try:
            held.reach(CALL_COSTS)
            yield held
            counts = False
        except Exception as problem:
            counts = not _is_ours(problem)
            raise
        finally:
            held.release()
            if not counts and self._unproven is not None:
                self._unproven.give_back(who)


def _rate(requests: int, now: Callable[[], float]) -> RateLimit | None:
    return RateLimit(requests, requests * SECONDS_AT_ONCE, now) if requests else None


def _take(rate: RateLimit | None, network: str | None, who: Hashable, limit: str, detail: str) -> None:
    """The machine itself is no network and has no rate."""
    if rate is not None and network is not None and (seconds := rate.take(who)):
        raise TooMuch(429, limit, detail, seconds)


def _network(request: Request) -> str | None:
    return outside_network(request.client.host if request.client else None)


def _is_ours(problem: Exception) -> bool:
    """Whether the call was not heard because of us or of others: it says nothing against whoever called."""
    if isinstance(problem, Problem):
        return problem.status >= 500 or isinstance(problem, TooMuch)
    return is_transient(problem)
