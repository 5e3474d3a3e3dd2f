"""`dripline doctor`: what is missing or wrong on this machine and around it, and the mend. One line a check."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from rich.console import Console

from services.migrate import HISTORIES
from shared.bus import reach_bus
from shared.deployment import read_deployment
from shared.embedded_postgres import running_url
from shared.errors import ConfigurationError, is_transient
from shared.migrations import revisions, stands_at
from shared.postgres_binaries import find_installation
from shared.postgres_errors import EmbeddedPostgresError
from shared.settings import Settings

LEAST_FREE = 500 << 20  # bytes of disk that a start should find
LEAST_SERVER = 160_000  # PostgreSQL 16
MOST_SKEW = 1.0  # seconds between this clock and the database's
PATIENCE = 10.0  # seconds for whatever is asked over the network
LEAST_SECRET = 32  # characters
CATCHER = "smtp://mail:1025"  # what deploy/first_secrets.py writes

Check = Callable[[Settings], "str | None"]


class Advice(str):
    """Something that works and could be better: it is said, and is no failure."""


@dataclass(frozen=True)
class Found:
    """What one check found: `problem` None if all is well."""

    name: str
    problem: str | None

    @property
    def failed(self) -> bool:
        return self.problem is not None and not isinstance(self.problem, Advice)


def examine(settings: Settings, console: Console) -> bool:
    """Prints one line a check; returns whether nothing is wrong."""
    healthy = True
    for found in asyncio.run(findings(settings)):
        healthy = healthy and not found.failed
        if found.problem is None:
            line = f"[green]✓[/green] {found.name}"
        elif found.failed:
            line = f"[red]✗ {found.name}[/red]: {found.problem}"
        else:
            line = f"[yellow]! {found.name}[/yellow]: {found.problem}"
        console.print(line, highlight=False, soft_wrap=True)
    return healthy


async def findings(settings: Settings) -> list[Found]:
    """All checks in their order; those about the database only if it answers."""
    found = [Found(name, check(settings)) for name, check in MACHINE]
    url = settings.database_url.get_secret_value() if settings.database_url else running_url(settings.data_dir)
    if url is not None:
        found += await _database_findings(settings, url)
    if settings.bus_url is not None:
        found.append(Found("the bus", await _bus(settings)))
    return found + [Found(name, check(settings)) for name, check in SHOP]


# ── this machine ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _python(_settings: Settings) -> str | None:
    return None if sys.version_info >= (3, 11) else f"this is {sys.version.split()[0]}; install Python 3.11 or later"


def _postgres(settings: Settings) -> str | None:
    if settings.database_url is not None:
        return None
    try:
        find_installation()
    except EmbeddedPostgresError as problem:
        return str(problem)
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
            if running_url(settings.data_dir) is not None or _answers_as_ours(settings):
                return None  # our own server uses it
            return (
                f"{settings.port} cannot be used ({problem.strerror}); stop what uses it, or choose another with --port"
            )
    return None


def _answers_as_ours(settings: Settings) -> bool:
    """Whether the process on the port is one with these settings, as in a container whose service runs."""
    if settings.database_url is None:
        return False
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    connection = HTTPConnection(host, settings.port, timeout=2)
    try:
        connection.request("GET", "/version")
        return json.load(connection.getresponse())["services"] == sorted(settings.services)
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return False  # somebody else's
    finally:
        connection.close()


def _folder(settings: Settings) -> str | None:
    place = _nearest(settings.data_dir)
    try:
        probe = place / ".dripline-doctor"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        return f"{place} cannot be written ({problem.strerror}); choose another with --data"
    return None


def _journal(settings: Settings) -> str | None:
    file = settings.erasure_journal_file
    if file is None:
        return Advice("ERASURE_JOURNAL is off: a restore brings back who was erased after the backup; name a file")
    place = file if file.exists() else _nearest(file.parent)
    try:
        with open(place / ".dripline-doctor" if place.is_dir() else place, "a"):
            pass
        if place.is_dir():
            (place / ".dripline-doctor").unlink()
    except OSError as problem:
        return f"{file} cannot be written ({problem.strerror}), so nobody can be erased; set ERASURE_JOURNAL"
    return None


def _nearest(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────────
async def _database_findings(settings: Settings, url: str) -> list[Found]:
    try:
        connection = await asyncpg.connect(url, timeout=5)
    except (OSError, asyncpg.PostgresError, TimeoutError, ValueError) as problem:
        said = f"{type(problem).__name__}: {problem}"
        return [Found("the database", f"it does not answer ({said}); start the server or mend DATABASE_URL")]
    try:
        found = [Found("the database", None)]
        for name, check in DATABASE:
            found.append(Found(name, await check(connection, settings)))
        return found
    finally:
        await connection.close()


async def _server_version(connection: asyncpg.Connection, _settings: Settings) -> str | None:
    number = int(await connection.fetchval("SHOW server_version_num"))
    if number >= LEAST_SERVER:
        return None
    return f"the server is PostgreSQL {number // 10_000}; 16 or later is needed"


async def _roles(connection: asyncpg.Connection, _settings: Settings) -> str | None:
    wanted = [history.role for history in HISTORIES if history.role]
    missing = await connection.fetch(
        """
        SELECT r FROM unnest($1::text[]) AS r
        WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = r) OR NOT pg_has_role(current_user, r, 'MEMBER')
        """,
        wanted,
    )
    if not missing:
        return None
    names = ", ".join(row["r"] for row in missing)
    return f"{names} cannot be assumed; run `dripline migrate` as a user that may create roles, or grant them"


async def _migrations(connection: asyncpg.Connection, _settings: Settings) -> str | None:
    behind, later = [], []
    for history in HISTORIES:
        known, version = revisions(history), await stands_at(connection, history)
        if version is not None and version not in known:
            later.append(history.schema)
        elif version != known[-1]:
            behind.append(history.schema)
    if behind:
        return f"{', '.join(behind)} is not at this program's version; run `dripline migrate`"
    if later:
        return Advice(f"{', '.join(later)} is of a later version than this program; upgrade it, too")
    return None


async def _clock(connection: asyncpg.Connection, _settings: Settings) -> str | None:
    before = datetime.now(UTC)
    there: datetime = await connection.fetchval("SELECT clock_timestamp()")
    after = datetime.now(UTC)
    skew = (there - (before + (after - before) / 2)).total_seconds()
    if abs(skew) <= MOST_SKEW:
        return None
    word = "ahead" if skew > 0 else "behind"
    return f"the database's clock is {abs(skew):.1f} s {word} of this one; let both follow a time server (chrony, NTP)"


async def _durability(connection: asyncpg.Connection, _settings: Settings) -> str | None:
    off = [name for name in ("fsync", "full_page_writes", "synchronous_commit") if await _is_off(connection, name)]
    if not off:
        return None
    return f"{', '.join(off)} is off: an answered event can be lost in a crash; switch it on"


async def _is_off(connection: asyncpg.Connection, name: str) -> bool:
    return bool(await connection.fetchval("SELECT current_setting($1) = 'off'", name))


async def _connections(connection: asyncpg.Connection, settings: Settings) -> str | None:
    most = int(await connection.fetchval("SHOW max_connections"))
    needed = settings.database_pool_size * len(settings.services) + 16
    if needed <= most:
        return None
    return (
        f"this process may open {needed} and the server takes {most}; raise max_connections or lower DATABASE_POOL_SIZE"
    )


async def _held(connection: asyncpg.Connection, _settings: Settings) -> str | None:
    if not await connection.fetchval("SELECT to_regclass('platform.deployment') IS NOT NULL"):
        return None
    if (await read_deployment(connection)).state != "held":
        return None
    return "nothing is sent; look at /v1/messages?state=queued, then POST /v1/switches/release"


# ── the bus ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def _bus(settings: Settings) -> str | None:
    """Reachable, and able to keep the promise that an answered event is never lost. Makes nothing."""
    assert settings.bus_url is not None
    try:
        async with asyncio.timeout(PATIENCE):
            warnings = await reach_bus(settings.bus_url.get_secret_value())
    except ConfigurationError as problem:
        return str(problem)
    except Exception as problem:
        if not (is_transient(problem) or isinstance(problem, (OSError, asyncpg.PostgresError))):
            raise
        return f"it does not answer ({type(problem).__name__}: {problem}); start it or mend BUS_URL"
    return Advice("; ".join(warnings)) if warnings else None


# ── the shop's settings ───────────────────────────────────────────────────────────────────────────────────────────────
def _in_vain(settings: Settings) -> str | None:
    if not settings.set_in_vain:
        return None
    names = ", ".join(settings.set_in_vain)
    return (
        f"{names} in .env or the shell does nothing: secrets are files, `docker compose run --rm -T secrets set "
        f"{settings.set_in_vain[0].lower()} < FILE`; then take it out there, and `docker compose up -d`"
    )


def _public_url(settings: Settings) -> str | None:
    if not settings.public_url:
        return Advice(
            f"PUBLIC_URL is not set: links in messages lead to {settings.origin}, which only this machine reaches"
        )
    if urlsplit(settings.public_url).scheme != "https":
        return Advice("PUBLIC_URL is not https: one-click unsubscribing (RFC 8058) and web push need it; set up TLS")
    return None


def _hosts(settings: Settings) -> str | None:
    if settings.shop_hosts:
        return None
    hosts = ", ".join(sorted(settings.link_hosts))
    return Advice(
        f"SHOP_HOSTS is not set: links to the shop are taken out of messages, only {hosts} is allowed; name its hosts"
    )


def _secret(settings: Settings) -> str | None:
    if settings.secret_key is None:
        return None  # made by the migration, 32 random bytes
    if len(settings.secret_key.get_secret_value()) >= LEAST_SECRET:
        return None
    return f"SECRET_KEY is shorter than {LEAST_SECRET} characters; `openssl rand -hex 32` makes one (before the first start only)"


def _mail(settings: Settings) -> str | None:
    if settings.smtp_url is None:
        return Advice("SMTP_URL is not set: e-mail stays in the inbox, unless a channel is configured by API")
    if settings.smtp_url.get_secret_value() == CATCHER:
        return Advice(
            "letters go to the mail catcher of docker-compose.yml and to nobody; `secrets set smtp_url` names a server"
        )
    host = urlsplit(f"//{settings.sender.rpartition('@')[2]}").hostname or ""
    if host in ("localhost", "127.0.0.1", "") or "." not in host:
        return Advice(f"mail is sent from {settings.sender}, which nobody can answer; set SMTP_FROM")
    return Advice(
        f"publish for {host}: SPF (TXT, v=spf1 with your mail server), the DKIM key, and DMARC (TXT at _dmarc.{host}); without "
        "them mail lands among spam"
    )


MACHINE: Sequence[tuple[str, Check]] = [
    ("Python 3.11 or later", _python),
    ("PostgreSQL's programs", _postgres),
    ("room on the disk", _disk),
    ("the port", _port),
    ("the data folder", _folder),
    ("the erasure journal", _journal),
]
DATABASE: Sequence[tuple[str, Callable[[asyncpg.Connection, Settings], Awaitable[str | None]]]] = [
    ("the database's version", _server_version),
    ("the database's roles", _roles),
    ("the database's migrations", _migrations),
    ("the database's clock", _clock),
    ("the database keeps what it commits", _durability),
    ("the database's connections", _connections),
    ("dispatch is not held", _held),
]
SHOP: Sequence[tuple[str, Check]] = [
    ("every setting counts", _in_vain),
    ("the public address", _public_url),
    ("the shop's hosts", _hosts),
    ("the secret key", _secret),
    ("sending mail", _mail),
]
