"""The histories of all services, in the order in which they depend on each other."""

from __future__ import annotations

from pathlib import Path

from shared.migrations import PLATFORM, History
from shared.migrations import migrate as run

HERE = Path(__file__).parent
SERVICES = ("profile", "ingest", "triggers", "dispatch")
HISTORIES = [
    PLATFORM,
    *(History(name, HERE / name / "migrations" / "versions", f"dripline_{name}") for name in SERVICES),
]


async def migrate(database_url: str) -> list[str]:
    """Brings every schema to the newest version; returns those that a later program has brought further already."""
    return await run(database_url, [history for history in HISTORIES if history.versions.is_dir()])
