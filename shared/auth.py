"""Keys of the management API: `Authorization: Bearer <key>`; scopes read < marketing < admin, each includes the lower.

Keys are 32 random bytes, stored as SHA-256 (a random key needs no slow hash) and looked up at every call: a revoked key
stops at once.
"""

from __future__ import annotations

import base64
import hashlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import Request

from shared.db import Database, Tx
from shared.errors import Problem
from shared.ids import RandomBits, uuid7
from shared.limits import RateLimit, network_of

SCOPES = ("read", "marketing", "admin")
# Of one process; a key is a program's, a network may be a whole office.
CALLS_A_SECOND, CALLS_AT_ONCE = 200, 2_000
GUESSES_A_SECOND, GUESSES_AT_ONCE = 20, 1_000
_CALLS = RateLimit(CALLS_A_SECOND, CALLS_AT_ONCE, time.monotonic)
_GUESSES = RateLimit(GUESSES_A_SECOND, GUESSES_AT_ONCE, time.monotonic)
PREFIX = "dk_"


@dataclass(frozen=True)
class Principal:
    """Who calls."""

    key: UUID
    name: str
    scope: str


def new_key(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """A new key; shown once, never stored."""
    return PREFIX + base64.urlsafe_b64encode(random_bytes(32)).rstrip(b"=").decode()


def hash_key(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def create_key(
    tx: Tx, name: str, scope: str, now: datetime, bits: RandomBits = secrets.randbits
) -> tuple[UUID, str]:
    """Makes a key and returns its id and the key itself. Raises ValueError for an unknown scope."""
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; it must be one of {', '.join(SCOPES)}")
    key, identity = new_key(), uuid7(now, bits)
    await tx.execute(
        "INSERT INTO platform.api_key (id, name, hash, scope, made_at) VALUES ($1, $2, $3, $4, $5)",
        identity,
        name,
        hash_key(key),
        scope,
        now,
    )
    return identity, key


async def authenticate(database: Database, header: str | None) -> Principal | None:
    """The principal of an Authorization header, or None."""
    kind, _, key = (header or "").partition(" ")
    if kind.lower() != "bearer" or not key.strip():
        return None
    async with database.connection() as connection:
        row = await connection.fetchrow(
            "SELECT id, name, scope FROM platform.api_key WHERE hash = $1 AND revoked_at IS NULL", hash_key(key.strip())
        )
    return Principal(row["id"], row["name"], row["scope"]) if row else None


def scope(name: str) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency: the caller's key must have at least this scope. `Depends(scope("read"))` yields the Principal."""
    least = SCOPES.index(name)

    async def check(request: Request) -> Principal:
        principal = await authenticate(request.app.state.database, request.headers.get("authorization"))
        if principal is None:
            refuse_guesser(request)
            raise Problem(
                401,
                "No valid API key",
                "Send the header Authorization: Bearer <key>; `dripline keys` makes one.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        _refuse_too_many(_CALLS.take(principal.key))
        if SCOPES.index(principal.scope) < least:
            raise Problem(
                403, "The key's scope is too small", f"This needs the scope {name}; the key has {principal.scope}."
            )
        return principal

    check.scope = name  # type: ignore[attr-defined]  # a test walks the routes and asks for it
    return check


def refuse_guesser(request: Request) -> None:
    """Counts a request without a valid key. Raises a 429 when its network has made too many."""
    _refuse_too_many(_GUESSES.take(network_of(request.client.host if request.client else None)))


def _refuse_too_many(seconds: float) -> None:
    if seconds:
        raise Problem(
            429,
            "Too many requests",
            f"A key may be used {CALLS_A_SECOND} times a second, and a network may send {GUESSES_A_SECOND} requests a second "
            "without a valid one.",
            headers={"Retry-After": str(math.ceil(seconds))},
        )


async def log_change(
    tx: Tx, principal: Principal | str, action: str, subject: str, before: Any, after: Any, at: datetime
) -> None:
    """Writes one row of the change log, in the transaction of the change."""
    name = principal if isinstance(principal, str) else principal.name
    await tx.execute(
        'INSERT INTO platform.change_log (id, at, principal, action, subject, "before", "after") VALUES ($1,$2,$3,$4,$5,$6,$7)',
        uuid7(at),
        at,
        name,
        action,
        subject,
        before,
        after,
    )
