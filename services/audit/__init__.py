"""`dripline audit`: the books of design §2, promise 8, from counted rows; and every decision computed again.

Nothing need stand still: counts come from one REPEATABLE READ snapshot; what is in flight is the ends of the bus read
afterwards less the positions in the snapshot; for intents the audit waits until triggers' outbox rows of the snapshot are
published and dispatch has handled them.
"""

from __future__ import annotations

from datetime import timedelta

from rich.console import Console

from services.audit.books import Book
from services.audit.counting import count_books
from services.audit.printing import print_books, print_differences
from shared.bus import open_bus_or_explain
from shared.clock import SystemClock
from shared.db import Database
from shared.settings import Settings
from shared.wake import Wake

MEMBER = "dripline-audit"


async def audit(settings: Settings, database_url: str) -> list[Book]:
    """Counts and returns the books."""
    database = await Database.open(database_url, member=MEMBER, size=2)
    bus_url = settings.bus_url.get_secret_value() if settings.bus_url else database_url
    bus = await open_bus_or_explain(bus_url, member=MEMBER, partitions=settings.partitions, wake=Wake())
    try:
        return await count_books(database, bus)
    finally:
        await bus.close()
        await database.close()


async def audit_and_print(settings: Settings, database_url: str, console: Console, *, derive: bool) -> bool:
    """Prints the books (and, with `derive`, what comes out differently when computed again); whether all is well."""
    books = await audit(settings, database_url)
    print_books(console, books)
    balanced = all(book.balanced for book in books)
    if derive:
        from services.dispatch.derive import choose_again
        from services.triggers.derive import derive_again

        database = await Database.open(database_url, member=MEMBER, size=2)
        try:
            until = SystemClock().now() + timedelta(days=1)
            since = until - timedelta(days=10_000)
            decisions = await derive_again(database, since, until, settings)
            choices = await choose_again(database, since, until)
        finally:
            await database.close()
        print_differences(console, "decisions of triggers", decisions)
        print_differences(console, "choices of dispatch", choices)
        balanced = balanced and not decisions and not choices
    return balanced
