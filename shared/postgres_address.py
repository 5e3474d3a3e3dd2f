"""Where the embedded server listens: on a Unix socket in a folder that only we can enter, or on a port of 127.0.0.1."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path
from urllib.parse import quote

from shared.postgres_binaries import Identity, reachable
from shared.postgres_errors import EmbeddedPostgresError

USER = "dripline"
DATABASE = "dripline"
SOCKET_PORT = 5432  # names the socket's file; no port is opened
LONGEST_SOCKET_PATH = 103  # macOS; Linux allows 107


def url_of(socket_folder: str, port: int) -> str:
    """`postgresql://…`, as asyncpg takes it; without a folder that of a port of 127.0.0.1."""
    if socket_folder:
        return f"postgresql://{USER}@/{DATABASE}?host={quote(socket_folder, safe='/')}&port={port}"
    return f"postgresql://{USER}@127.0.0.1:{port}/{DATABASE}"


def make_socket_folder(data_dir: Path, identity: Identity | None) -> Path:
    """A folder of mode 0700 below the data folder; below /tmp if the path is too long or closed to the server.

    :param identity: the user that the server runs as, if not ours
    :raises EmbeddedPostgresError: the folder is there and belongs to somebody else
    :raises OSError: it cannot be made
    """
    folder = data_dir / "run"
    if _is_too_long(folder) or not reachable(data_dir, identity):
        digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"dripline-{digest}"  # the same at the next start: none is left over
        if _is_too_long(folder) or not reachable(folder.parent, identity):
            folder = Path("/tmp") / folder.name
    owner = identity.uid if identity else os.geteuid()
    try:
        folder.mkdir(mode=0o700)
        if identity:
            os.chown(folder, identity.uid, identity.gid)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise EmbeddedPostgresError(
                f"The folder {folder} should hold PostgreSQL's socket and belongs to somebody else: remove it."
            ) from None
    return folder


def _is_too_long(folder: Path) -> bool:
    return len(str(folder / f".s.PGSQL.{SOCKET_PORT}")) > LONGEST_SOCKET_PATH


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
