"""What a person at a terminal must mend, in one sentence instead of a traceback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import asyncpg
import typer
from rich.console import Console
from rich.markup import escape

from shared.errors import ConfigurationError

# Whatever else PostgreSQL says is about our own statements, and keeps its traceback.
_OF_THE_DATABASE: tuple[tuple[tuple[type[asyncpg.PostgresError], ...], str], ...] = (
    (
        (asyncpg.InvalidAuthorizationSpecificationError,),
        "The database does not let us in: {said}; mend user or password in DATABASE_URL.",
    ),
    ((asyncpg.InvalidCatalogNameError,), "The database is not there: {said}; create it, or mend DATABASE_URL."),
    (
        (asyncpg.InsufficientPrivilegeError,),
        "The user of DATABASE_URL lacks a right: {said}; docs/OPERATIONS.md says under PostgreSQL what it needs.",
    ),
    (
        (asyncpg.TooManyConnectionsError, asyncpg.CannotConnectNowError),
        "The database takes no connection now: {said}; try again.",
    ),
)


# What commands reach over the network is the database, but for a bus (`open_bus_or_explain`) and a server of ours, which
# are explained where they are asked.
_OF_THE_NETWORK = (ConnectionError, TimeoutError, socket.gaierror)
Mistake: TypeAlias = ConfigurationError | OSError | asyncpg.PostgresError | asyncpg.ClientConfigurationError


def say(console: Console, text: str) -> None:
    """Prints without breaking lines."""
    console.print(text, soft_wrap=True, highlight=False)


@contextmanager
def mistakes_in_one_sentence() -> Iterator[None]:
    """What a person must mend ends the command with one sentence and exit status 1, not with a traceback."""
    try:
        yield
    except (ConfigurationError, OSError, asyncpg.PostgresError, asyncpg.ClientConfigurationError) as problem:
        sentence = in_one_sentence(problem)
        if sentence is None:
            raise
        say(Console(stderr=True), f"[red]{escape(sentence)}[/red]")
        raise typer.Exit(1) from None


def in_one_sentence(problem: Mistake) -> str | None:
    """None for what is a mistake of ours."""
    if isinstance(problem, ConfigurationError):
        return str(problem)
    if isinstance(problem, OSError):
        words = problem.strerror or str(problem) or "no answer in time"
        # Several addresses of one name that all fail come as one error without a number.
        if isinstance(problem, _OF_THE_NETWORK) or problem.errno is None:
            return f"The database cannot be reached: {words}; start the server, or mend DATABASE_URL."
        return f"{words} ({problem.filename})." if problem.filename else f"{words}."
    if isinstance(problem, asyncpg.ClientConfigurationError):
        return f"DATABASE_URL cannot be used: {problem}."
    return next((text.format(said=problem) for kinds, text in _OF_THE_DATABASE if isinstance(problem, kinds)), None)
