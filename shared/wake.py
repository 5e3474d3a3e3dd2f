"""Wake-ups between the loops of one process, and over NOTIFY to the other processes.

A wake-up carries nothing: whoever is woken looks into the database. Losing one costs a delay (every waiter has a
fallback of a second or two), never a record. NOTIFY is sent outside the appending transaction, one per process and
name, at most every 10 ms.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

CHANNEL = "dripline"


class Wake:
    """Named signals. A waiter sees every signal given after it began to listen (`listen`), also while it was busy."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[Listener]] = defaultdict(set)
        self._outgoing: set[str] = set()
        self._outgoing_ready = asyncio.Event()

    def listen(self, names: Iterable[str]) -> Listener:
        listener = Listener(self, frozenset(names))
        for name in listener.names:
            self._listeners[name].add(listener)
        return listener

    def forget(self, listener: Listener) -> None:
        for name in listener.names:
            self._listeners[name].discard(listener)

    def signal(self, name: str, *, remote: bool = True) -> None:
        """Wakes the listeners of `name` here and, with `remote`, in the other processes soon after."""
        for listener in self._listeners.get(name, ()):
            listener.event.set()
        if remote:
            self._outgoing.add(name)
            self._outgoing_ready.set()

    async def outgoing(self) -> list[str]:
        """The names to be NOTIFYed next; waits until there are any (the sender's side)."""
        await self._outgoing_ready.wait()
        self._outgoing_ready.clear()
        names = sorted(self._outgoing)
        self._outgoing.clear()
        return names


class Listener:
    """One loop's ear. Use as `await listener.wait(1.0)`: true if woken, false after the fallback time."""

    def __init__(self, wake: Wake, names: frozenset[str]) -> None:
        self._wake = wake
        self.names = names
        self.event = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.event.wait()
        except TimeoutError:
            return False
        finally:
            self.event.clear()
        return True

    def close(self) -> None:
        self._wake.forget(self)


def bus_topic(topic: str) -> str:
    """Signal: something was appended to this bus topic."""
    return f"bus:{topic}"


MOVED = "moved"  # a consumer's position moved and what it decided is published: the keeper looks
WATERMARK = "watermark"  # the watermark moved
TRIGGERS_DUE = "triggers:due"  # items or timers may be due
DISPATCH_DUE = "dispatch:due"  # messages may be ready to be claimed
SENDER_DUE = "dispatch:send"  # messages may be moved to the state calling
ANSWERED = "dispatch:answered"  # messages have left the state calling


def outbox(schema: str) -> str:
    """Signal: a service's timer or API shards hold something to publish."""
    return f"outbox:{schema}"
