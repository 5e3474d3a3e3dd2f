"""The erasure journal: keyed HMACs of the erased nodes with the time. Who has no key learns nothing from it.

What occurred before a node's erasure is dropped as *erased*; what comes later starts a new person. The journal lies in
`platform.erasure` and, so that a restore cannot bring back who was erased after the backup, in a file outside the
database, one line an erased node: `<digest in hex> <moment>`.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
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
    await write_digests(tx, {digest(secret, node): at for node in nodes})


async def write_digests(tx: Tx, digests: dict[bytes, datetime]) -> set[bytes]:
    """Writes digests with their moments; returns those that were not there, or only with an earlier moment."""
    ordered = sorted(digests.items())
    rows = await tx.fetch(
        """
        INSERT INTO platform.erasure AS e (hmac, at) SELECT * FROM unnest($1::bytea[], $2::timestamptz[])
        ON CONFLICT (hmac) DO UPDATE SET at = excluded.at WHERE excluded.at > e.at RETURNING hmac
        """,
        [hmac for hmac, _ in ordered],
        [at for _, at in ordered],
    )
    return {row["hmac"] for row in rows}


async def read_digests(tx: Tx) -> dict[bytes, datetime]:
    """The whole journal."""
    rows = await tx.fetch("SELECT hmac, at FROM platform.erasure ORDER BY hmac")
    return {row["hmac"]: row["at"] for row in rows}


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def append_to_file(file: Path, secret: bytes, nodes: Sequence[UUID], at: datetime) -> None:
    """Appends one line a node and returns when they are on the disk. Several processes may append to one file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, lines_of({digest(secret, node): at for node in nodes}).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines_of(digests: dict[bytes, datetime]) -> str:
    """The journal as the file has it."""
    return "".join(f"{hmac.hex()} {at.isoformat()}\n" for hmac, at in sorted(digests.items()))


def read_file(file: Path) -> dict[bytes, datetime]:
    """By digest the latest moment. Raises ValueError, with the line's number, for a line that is none of ours."""
    found: dict[bytes, datetime] = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        try:
            text, _, moment = line.partition(" ")
            key, at = bytes.fromhex(text), datetime.fromisoformat(moment)
            if len(key) != 32 or at.tzinfo is None:
                raise ValueError
        except ValueError:
            raise ValueError(f"line {number} of {file} is not a line of an erasure journal") from None
        found[key] = max(at, found.get(key, at))
    return found
