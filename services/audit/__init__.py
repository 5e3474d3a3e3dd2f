"""`dripline audit`: the books of design §2, promise 8, from counted rows; and every decision and person computed again.

Nothing need stand still: counts come from one REPEATABLE READ snapshot; what is in flight is the ends of the bus read
afterwards less the positions in the snapshot; for intents the audit waits until triggers' outbox rows of the snapshot are
published and dispatch has handled them.
"""

from __future__ import annotations

from datetime import timedelta

from rich.console import Console

from services.audit.books import Book
from services.audit.counting import count_books
from services.audit.printing import print_again, print_books
from services.dispatch.derive import choose_again
from services.profile.derive import people_again
from services.triggers.derive import derive_again
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
    return await _again_and_print(settings, database_url, console) and balanced if derive else balanced


async def _again_and_print(settings: Settings, database_url: str, console: Console) -> bool:
    """Computes every decision and everybody again; prints how many of what kind, and what came out differently."""
    database = await Database.open(database_url, member=MEMBER, size=2)
    try:
        until = SystemClock().now() + timedelta(days=1)
        since = until - timedelta(days=10_000)
        decisions = await derive_again(database, since, until, settings)
        choices = await choose_again(database, since, until)
        people = await people_again(database)
    finally:
        await database.close()
    told = {
        "decisions": decisions.count,
        "entries": decisions.entries,
        "holdout draws": decisions.draws,
        "intents": decisions.intents,
        "occasions to enter": decisions.omitted.count,
        "left out because of people forgotten since": decisions.erased,
    }
    differences = [*decisions.differences, *decisions.omitted.missing]
    print_again(console, "decisions of triggers", told, differences)
    tables = {"choices": choices.count, "rows of alternatives": choices.alternatives}
    print_again(console, "choices of dispatch", tables, choices.differences)
    print_again(
        console, "people of profile", {"people": people.count, "links observed": people.links}, people.differences
    )
    return not differences and not choices.differences and not people.differences
