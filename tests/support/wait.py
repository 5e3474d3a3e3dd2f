"""Waiting for a condition, with a limit. Never for luck."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Value = TypeVar("Value")


async def until(
    condition: Callable[[], Value | Awaitable[Value]],
    limit: float = 30.0,
    what: str = "the condition holds",
    every: float = 0.02,
) -> Value:
    """Ask `condition`, plain or async, until it gives something true, and return that.

    :param limit: seconds
    :param what: completes "within 10 s it did not come to pass that …"
    :raises AssertionError: the limit is over; what `condition` gave last is in the text
    """
    deadline = time.monotonic() + limit
    while True:
        answer = condition()
        value: Value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"within {limit:g} s it did not come to pass that {what} (last: {value!r})")
        await asyncio.sleep(every)


def until_blocking(
    condition: Callable[[], Value], limit: float = 30.0, what: str = "the condition holds", every: float = 0.02
) -> Value:
    """`until` for tests without an event loop."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"within {limit:g} s it did not come to pass that {what} (last: {value!r})")
        time.sleep(every)
    return value
