"""Named hook points, so that faults can be injected exactly where they hurt.

A point is reached by `await hooks.reach("consumer.in_transaction")`. Nothing happens unless a test (or the variable
`DRIPLINE_FAULT=point:action[:nth]`, action one of kill, stop, fail) armed it; then the process kills or stops itself, or
the point raises `InjectedFault`. The points are listed in POINTS; an unknown name is an error at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable

POINTS = {
    "consumer.fetched": "records are fetched, no transaction is open",
    "consumer.in_transaction": "effects are written, not committed",
    "consumer.before_relay": "committed, the outbox row is not yet published",
    "relay.published": "published, the outbox row is not yet deleted",
    "ingest.appended": "an event is durable, not yet answered",
    "triggers.claimed": "a claim's effects are written, not committed",
    "dispatch.taken": "a message is claimed, nothing rendered",
    "dispatch.calling": "the row is in calling, the exchange is not open",
    "dispatch.answered": "the provider answered, the outcome is not written",
}
Action = Callable[[], Awaitable[None]]


class InjectedFault(ConnectionError):
    """Raised by an armed point; a ConnectionError, so that it counts as transient."""


class Hooks:
    """The armed points of one process."""

    def __init__(self, armed: str = "") -> None:
        self._actions: dict[str, Action] = {}
        if armed:
            point, action, *nth = armed.split(":")
            self.arm(point, _builtin(action), nth=int(nth[0]) if nth else 1)

    @classmethod
    def from_environment(cls) -> Hooks:
        return cls(os.environ.get("DRIPLINE_FAULT", ""))

    def arm(self, point: str, action: Action, *, nth: int = 1) -> None:
        """Runs `action` the nth time the point is reached, once."""
        if point not in POINTS:
            raise ValueError(f"there is no hook point {point!r}; there are {', '.join(sorted(POINTS))}")
        left = nth

        async def once() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                del self._actions[point]
                await action()

        self._actions[point] = once

    async def reach(self, point: str) -> None:
        if self._actions and (action := self._actions.get(point)):
            await action()


def _builtin(action: str) -> Action:
    async def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    async def fail() -> None:
        raise InjectedFault("fault injected by DRIPLINE_FAULT")

    return {"kill": kill, "stop": stop, "fail": fail}[action]
