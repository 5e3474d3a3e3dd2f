"""What a person at a terminal must mend, in one sentence instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


def say(console: Console, text: str) -> None:
    """Prints without breaking lines."""
    console.print(text, soft_wrap=True, highlight=False)


@contextmanager
def mistakes_in_one_sentence() -> Iterator[None]:
    """What a person must mend ends the command with one sentence and exit status 1, not with a traceback."""
    try:
        yield
    except (ConfigurationError, OSError, asyncpg.PostgresError) as problem:
        sentence = in_one_sentence(problem)
        if sentence is None:
            raise
        say(Console(stderr=True), f"[red]{escape(sentence)}[/red]")
        raise typer.Exit(1) from None


def in_one_sentence(problem: ConfigurationError | OSError | asyncpg.PostgresError) -> str | None:
    """None for what is a mistake of ours."""
    if isinstance(problem, ConfigurationError):
        return str(problem)
    if isinstance(problem, OSError):
        words = problem.strerror or str(problem) or "No answer in time"
        return f"{words} ({problem.filename or 'network'})"
    return next((text.format(said=problem) for kinds, text in _OF_THE_DATABASE if isinstance(problem, kinds)), None)
