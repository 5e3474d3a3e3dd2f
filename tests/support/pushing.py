"""Exchanges with push services, and a world that does not wait long."""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from services.dispatch.channels.base import Exchange, StartBy, World
from services.dispatch.rendered import Rendered
from shared.outside import Client, client
from shared.settings import load

NOON = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
CLICK = "https://mail.shop.example/c/abc"
TEXT = Rendered(
    text="Kind of Blue is waiting in your cart",
    subject="You left something behind",
    urls={"unsubscribe": "https://mail.shop.example/u/abc", "click": CLICK},
)


class Impatient(World):
    """Gives up on an answer after `SECONDS`, so that a test of silence is short."""

    SECONDS = 1.0

    def http(self, *, http2: bool = False, http1: bool = True, verify: ssl.SSLContext | None = None) -> Client:
        return client(self.settings.outside_allow, http2=http2, http1=http1, verify=verify, seconds=self.SECONDS)


def impatient(folder: Path, allow: str = "127.0.0.0/8") -> World:
    """A world in which this machine's own addresses may be reached."""
    return Impatient(load(outside_allow=allow, data_dir=folder), folder)


def exchange(address: str, settings: Any, message: UUID | None = None, **changes: Any) -> Exchange:
    """A marketing push that is good for six hours."""
    given: dict[str, Any] = {
        "message": message or uuid4(),
        "attempt": 1,
        "key": "k",
        "address": address,
        "rendered": TEXT,
        "purpose": "marketing",
        "sender": ("Corner Shop", "shop@shop.example"),
        "at": NOON,
        "valid_until": NOON + timedelta(hours=6),
        "start_by": StartBy(time.monotonic() + 5.0),
        "settings": settings,
    }
    return Exchange(**{**given, **changes})
