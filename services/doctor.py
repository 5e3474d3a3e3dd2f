"""`dripline doctor`: what is missing or wrong on this machine, and the mend."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
from rich.console import Console

from shared.embedded_postgres import running_url
from shared.postgres_binaries import find_installation
from shared.postgres_errors import EmbeddedPostgresError
from shared.settings import Settings

LEAST_FREE = 500 << 20  # bytes of disk that a start should find


def examine(settings: Settings, console: Console) -> bool:
    """Prints one line a check; returns whether nothing is wrong."""
    checks: list[tuple[str, Callable[[Settings], str | None]]] = [
        ("Python 3.11 or later", _python),
        ("PostgreSQL", _postgres),
        ("room on the disk", _disk),
        ("the port", _port),
        ("the data folder", _folder),
    ]
    healthy = True
    for name, check in checks:
        problem = check(settings)
        healthy = healthy and problem is None
        console.print(
            f"[green]✓[/green] {name}" if problem is None else f"[red]✗ {name}[/red]: {problem}", highlight=False
        )
    return healthy


def _python(_settings: Settings) -> str | None:
    return None if sys.version_info >= (3, 11) else f"this is {sys.version.split()[0]}; install Python 3.11 or later"


def _postgres(settings: Settings) -> str | None:
    if settings.database_url is None:
        try:
            find_installation()
        except EmbeddedPostgresError as problem:
            return str(problem)
        return None

    async def ask() -> None:
        connection = await asyncpg.connect(settings.database_url.get_secret_value(), timeout=5)  # type: ignore[union-attr]
        await connection.close()

    try:
        asyncio.run(ask())
    except (OSError, asyncpg.PostgresError, TimeoutError) as problem:
        return f"DATABASE_URL does not answer ({type(problem).__name__}: {problem}); start the server or mend the URL"
    return None


def _disk(settings: Settings) -> str | None:
    place = _nearest(settings.data_dir)
    free = shutil.disk_usage(place).free
    if free < LEAST_FREE:
        return f"only {free >> 20} MiB are free at {settings.data_dir}; make room or choose another folder with --data"
    return None


def _port(settings: Settings) -> str | None:
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as problem:
            if running_url(settings.data_dir) is not None:
                return None  # our own server uses it
            return (
                f"{settings.port} cannot be used ({problem.strerror}); stop what uses it, or choose another with --port"
            )
    return None


def _folder(settings: Settings) -> str | None:
    place = _nearest(settings.data_dir)
    try:
        probe = place / ".dripline-doctor"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        return f"{place} cannot be written ({problem.strerror}); choose another with --data"
    return None


def _nearest(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path
