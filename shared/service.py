"""What a service is to the process that runs it, and what the process gives to a service."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from starlette.types import ASGIApp

from shared.bus.base import Bus
from shared.bus.leases import Leases
from shared.clock import Clock
from shared.db import Database
from shared.hooks import Hooks
from shared.ids import RandomBits
from shared.settings import Settings
from shared.wake import Wake


@dataclass
class Context:
    """The world, as ports: everything a service may touch comes in here.

    `database` is bound to the service's own role (it may write its own schema, read `cdp`, and use `platform`);
    `node_namespace` is the deployment's secret; `secret` signs link tokens; `generation` counts restores; `member` names
    this process.
    """

    settings: Settings
    clock: Clock
    database: Database
    bus: Bus
    leases: Leases
    wake: Wake
    hooks: Hooks
    member: str
    node_namespace: UUID
    secret: bytes
    generation: int
    bits: RandomBits = secrets.randbits


# A loop runs until it is cancelled; one that ends or raises is restarted by the process with back-off, logged and counted.
Loop = Callable[[], Awaitable[None]]


@dataclass
class Service:
    """What `service.build` returns.

    `routers` are mounted at the root (paths are complete: `/v1/…`); `asgi` are raw ASGI apps by path prefix, asked before
    FastAPI, `described` the OpenAPI path items of theirs. `checks` raise with the reason when the service is not ready.
    `quiet` answers whether nothing is due at the clock's time (virtual time waits for it), `next_due` when something will
    be. `polls` is `Consumer.last_poll`. `close` is awaited after the loops have ended.
    """

    name: str
    routers: list[APIRouter] = field(default_factory=list)
    asgi: dict[str, ASGIApp] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)
    loops: dict[str, Loop] = field(default_factory=dict)
    checks: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    quiet: Callable[[], Awaitable[bool]] | None = None
    next_due: Callable[[], Awaitable[datetime | None]] | None = None
    close: Callable[[], Awaitable[None]] | None = None
    # name → monotonic seconds of the last poll, for the watchdog
    polls: Callable[[], dict[str, float]] = dict
