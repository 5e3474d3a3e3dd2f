"""What the first start makes: a public and a secret source, an admin API key, and the file that names them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from services.ingest.bootstrap import first_sources
from shared.auth import create_key
from shared.service import Context


async def make_credentials(context: Context, url: str) -> dict[str, Any] | None:
    """Makes sources and key when there is no API key yet, and writes `<data>/credentials.json` (mode 0600).

    Returns what was made (`url, site_write_key, server_write_key, api_key`), or None when this is not the first start.
    """
    now = context.clock.now()
    async with context.database.transaction() as tx:
        await tx.execute("LOCK TABLE platform.api_key IN SHARE ROW EXCLUSIVE MODE")
        if await tx.fetchval("SELECT EXISTS (SELECT 1 FROM platform.api_key)"):
            return None
        _, api_key = await create_key(tx, "first start", "admin", now, context.bits)
    sources = await first_sources(context.database, context.clock, context.bits)
    made = {
        "url": url,
        "site_write_key": sources.site_write_key if sources else None,
        "server_write_key": sources.server_write_key if sources else None,
        "api_key": api_key,
    }
    write_private(context.settings.credentials_file, made)
    return made


def write_private(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON that only its owner may read; the file never exists with a wider mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    temporary.replace(path)


def read_credentials(path: Path) -> dict[str, Any]:
    """What a first start wrote. Raises FileNotFoundError when there was none."""
    return json.loads(path.read_text())
