"""The erasure journal: keyed HMACs of the erased nodes with the time. Who has no key learns nothing from it.

What occurred before a node's erasure is dropped as *erased*; what comes later starts a new person.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from shared.db import Tx


def digest(secret: bytes, node: UUID) -> bytes:
    """What stands in the journal for a node; `secret` is the deployment's own."""
    return hmac.digest(secret, b"erased" + node.bytes, "sha256")


async def erased(tx: Tx, secret: bytes, nodes: Iterable[UUID]) -> dict[UUID, datetime]:
    """Those of `nodes` that were erased, and when. Nothing is computed while the journal is empty."""
    if not await tx.fetchval("SELECT EXISTS (SELECT FROM platform.erasure)"):
        return {}
    by_digest = {digest(secret, node): node for node in nodes}
    rows = await tx.fetch("SELECT hmac, at FROM platform.erasure WHERE hmac = ANY($1::bytea[])", list(by_digest))
    return {by_digest[row["hmac"]]: row["at"] for row in rows}


async def erase(tx: Tx, secret: bytes, nodes: Sequence[UUID], at: datetime) -> None:
    """Writes the nodes into the journal; a node erased again is erased up to the later moment."""
    await tx.execute(
        """
        INSERT INTO platform.erasure AS e (hmac, at) SELECT h, $2 FROM unnest($1::bytea[]) AS u(h)
        ON CONFLICT (hmac) DO UPDATE SET at = greatest(e.at, excluded.at)
        """,
        sorted(digest(secret, node) for node in nodes),
        at,
    )
