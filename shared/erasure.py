"""The erasure journal: keyed HMACs of the erased nodes with the time. Who has no key learns nothing from it.

What occurred before a node's erasure is dropped as *erased*; what comes later starts a new person. The journal lies in
`platform.erasure` and, so that a restore cannot bring back who was erased after the backup, in a file outside the
database, one line an erased node: `<digest in hex> <moment>`.
"""

from __future__ import annotations

import errno
import fcntl
import hmac
import os
import re
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


_LONGEST_LINE = 1024  # bytes; far more than a line has
_UNFINISHED = re.compile(rb"[0-9a-f]{1,64}|[0-9a-f]{64} [0-9T:.+-]{0,32}")
_CUT_OFF = "was cut off: copy the file again if it is a copy; if it is the original, take that line away"


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def append_to_file(file: Path, secret: bytes, nodes: Sequence[UUID], at: datetime) -> None:
    """Appends one line a node and returns when they are on the disk. Several processes may append to one file.

    :raises OSError: nothing was appended
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # closing gives it back
        end = _mend_end(descriptor)
        _append_whole(descriptor, end + lines_of({digest(secret, node): at for node in nodes}).encode())
    finally:
        os.close(descriptor)


def _append_whole(descriptor: int, data: bytes) -> None:
    """All or nothing: on a nearly full disk a part of it would be written, and the next line would stick to that."""
    before = os.fstat(descriptor).st_size
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _mend_end(descriptor: int) -> bytes:
    """Takes away a last line that a crash left unfinished: its erasure never took place, as that commits after the line is
    on the disk. Returns what must stand before the next line: the end of a whole last line that lacks it.

    :raises OSError: the file ends like no journal of ours; nothing is taken away
    """
    size = os.fstat(descriptor).st_size
    begin = max(0, size - _LONGEST_LINE)
    last = os.pread(descriptor, size - begin, begin).rpartition(b"\n")[2]
    if not last:
        return b""
    try:
        _entry(last.decode())
    except ValueError:
        if not _UNFINISHED.fullmatch(last):
            raise OSError(errno.EINVAL, "it does not end like an erasure journal") from None
        os.ftruncate(descriptor, size - len(last))
        return b""
    return b"\n"


def lines_of(digests: dict[bytes, datetime]) -> str:
    """The journal as the file has it."""
    return "".join(f"{hmac.hex()} {at.isoformat()}\n" for hmac, at in sorted(digests.items()))


def read_file(file: Path) -> dict[bytes, datetime]:
    """By digest the latest moment. Raises ValueError, with the line's number, for a line that is none of ours.

    A last line that was cut off is refused, too: the file may be a copy that lacks more than that line.
    """
    with file.open() as opened:
        fcntl.flock(opened, fcntl.LOCK_SH)  # whoever appends is done
        lines = opened.read().splitlines(keepends=True)
    found: dict[bytes, datetime] = {}
    for number, line in enumerate(lines, start=1):
        try:
            key, at = _entry(line.rstrip("\n"))
        except ValueError:
            why = "is not a line of an erasure journal" if line.endswith("\n") else _CUT_OFF
            raise ValueError(f"line {number} of {file} {why}") from None
        found[key] = max(at, found.get(key, at))
    return found


def _entry(line: str) -> tuple[bytes, datetime]:
    text, _, moment = line.partition(" ")
    key, at = bytes.fromhex(text), datetime.fromisoformat(moment)
    if len(key) != 32 or at.tzinfo is None:
        raise ValueError
    return key, at
