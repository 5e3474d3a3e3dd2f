"""What the first start makes: a public and a secret source, an admin API key, and the file that names them."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import asyncpg
import structlog

from services.ingest.bootstrap import BY, make_first_sources
from shared.auth import create_key, log_change
from shared.clock import pause
from shared.db import Tx
from shared.errors import ConfigurationError, is_transient
from shared.service import Context
from shared.settings import SERVICE_NAMES, Settings

log = structlog.get_logger(__name__)
RETRY_SECONDS = 1.0


async def make_credentials(context: Context, url: str) -> dict[str, Any] | None:
    """Makes sources and key when there is no API key yet, and writes `<data>/credentials.json` (mode 0600).

    All or nothing: keys that stand in no file would lock everybody out, as only their hashes are kept. The process answers
    already: a database that is away or slow for a moment is waited for, and does not end it with the requests that it has.

    :param url: where this process answers on this machine
    Returns what was made (`url, site_write_key, server_write_key, api_key`), or None when this is not the first start.
    Raises ConfigurationError when the file cannot be written.
    """
    while True:
        try:
            return await _make_and_keep(context, url)
        except Exception as problem:
            if not is_transient(problem):
                raise
            log.warning("first_start.retry", error=type(problem).__name__)
        await pause(RETRY_SECONDS)


async def _make_and_keep(context: Context, url: str) -> dict[str, Any] | None:
    file, made = context.settings.credentials_file, None
    try:
        async with context.database.transaction() as tx:
            if (made := await _make(tx, context, url)) is not None:
                # Before the commit: whether that went through may stay unknown, and then the keys must be known. If it did
                # not, the next start writes the file anew.
                await asyncio.to_thread(_keep, file, made)
    except asyncpg.PostgresError as problem:
        if made is not None and not is_transient(problem):
            file.unlink(missing_ok=True)
        raise
    return made


async def _make(tx: Tx, context: Context, url: str) -> dict[str, Any] | None:
    await tx.execute("LOCK TABLE platform.api_key IN SHARE ROW EXCLUSIVE MODE")
    if await tx.fetchval("SELECT EXISTS (SELECT 1 FROM platform.api_key)"):
        return None
    now = context.clock.now()
    identity, api_key = await create_key(tx, BY, "admin", now, context.bits)
    after = {"keys": [str(identity)], "scope": "admin"}
    await log_change(tx, BY, "api_key.create", f"API key {BY}", None, after, now)
    sources = await make_first_sources(tx, now, context.bits)
    return {
        "url": _whole_api(context.settings, url),
        "site_write_key": sources.site_write_key if sources else None,
        "server_write_key": sources.server_write_key if sources else None,
        "api_key": api_key,
    }


def _whole_api(settings: Settings, here: str) -> str:
    """Where all of the API is, for commands that are given this file. A process of all services has it `here`, whatever the
    world's way to it; one that runs a part of them answers a part, and the others are beside it behind PUBLIC_URL."""
    if settings.services == frozenset(SERVICE_NAMES):
        return here
    return settings.public_url or here


def _keep(path: Path, made: dict[str, Any]) -> None:
    try:
        write_private(path, made)
    except OSError as problem:
        raise ConfigurationError(
            f"The first start's keys were not made, as {path} cannot be written ({problem.strerror}): make the folder writable, "
            "or name another with DATA_DIR."
        ) from problem


def write_private(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON that only its owner may read; the file never exists with a wider mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_credentials(path: Path) -> dict[str, Any]:
    """What a first start wrote. Raises FileNotFoundError when there was none."""
    return json.loads(path.read_text())
