"""The books balance after a story, and name the row that somebody deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import asyncpg
import pytest
from rich.console import Console

from services.audit import audit, audit_and_print
from services.audit.books import Book
from services.dispatch.cli import apply_templates
from services.rules_files import SHIPPED
from tests.support.virtual_server import VirtualServer, virtual_server

START = datetime(2026, 5, 4, 9, 0, tzinfo=UTC)
RULE = """
name: cart
kind: marketing
enter: {on: Product Added, idle: 1h, if: {cart: {not_empty: true}}}
again: always
holdout: 0%
goal: {event: Order Completed, within: 3d}
value: 900
steps: [{send: cart-reminder}, {wait: 1d}, {send: cart-last-call}]
"""
ADDRESS = "anna@example.com"
EVENTS = [
    {"type": "identify", "userId": "u-1", "traits": {"email": ADDRESS, "first_name": "Anna"}},
    {
        "type": "track",
        "userId": "u-1",
        "event": "Consent Granted",
        "properties": {
            "channel": "email",
            "address": ADDRESS,
            "topics": ["marketing"],
            "form": "till",
            "text_version": "1",
            "page": "till",
            "at": "2026-05-01T10:00:00Z",
            "ip": "192.0.2.1",
        },
    },
    {
        "type": "track",
        "userId": "u-1",
        "event": "Product Added",
        "properties": {"product_id": "p-1", "name": "A record", "price": 1500, "quantity": 1},
    },
]


@pytest.fixture
async def told(database_url: str, tmp_path: Path) -> AsyncIterator[VirtualServer]:
    """A server on which one cart letter was sent two hours ago and a second one is waited for."""
    async with virtual_server(database_url, tmp_path, START) as server:
        await asyncio.to_thread(lambda: list(apply_templates(SHIPPED, server.server.origin, server.keys["api_key"])))
        await server.activate(RULE)
        await server.time.close(START + timedelta(minutes=15))
        await server.post(*EVENTS)
        await server.time.close(START + timedelta(hours=3))
        yield server


async def books_of(server: VirtualServer) -> dict[str, Book]:
    context = server.server.context
    return {book.name: book for book in await audit(context.settings, context.database.url)}


async def test_after_a_story_every_book_balances_and_says_what_was_done(told: VirtualServer) -> None:
    books = await books_of(told)
    assert [name for name, book in books.items() if not book.balanced] == []
    assert books["events"].left == {"applied": 4}, "three that were posted, and Email Sent"
    assert books["runs"].right == {"waiting": 1}
    assert books["messages"].right == {"sent": 1}


@pytest.mark.parametrize(
    ("book", "delete"),
    [
        ("events", "DELETE FROM profile.event WHERE name = 'Product Added' RETURNING id"),
        ("runs", "DELETE FROM triggers.run RETURNING id"),
        ("timers", "DELETE FROM triggers.item WHERE run IS NOT NULL RETURNING run"),
        ("intents", "DELETE FROM dispatch.message RETURNING id"),
        ("attempts", "DELETE FROM dispatch.attempt RETURNING message"),
        ("charges", "DELETE FROM dispatch.charge RETURNING message"),
    ],
)
async def test_the_audit_names_a_row_that_was_deleted(
    told: VirtualServer, database_url: str, book: str, delete: str
) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        gone = await connection.fetchval(delete)
    finally:
        await connection.close()
    found = (await books_of(told))[book]
    assert not found.balanced
    assert any(str(gone) in stray for stray in found.strays)


async def test_every_decision_is_computed_again_with_the_same_result(told: VirtualServer) -> None:
    written = StringIO()
    context = told.server.context
    console = Console(file=written, width=160)
    assert await audit_and_print(context.settings, context.database.url, console, derive=True)
    assert "decisions of triggers, computed again: 0 differences" in written.getvalue()


async def test_a_decision_that_was_changed_afterwards_is_found_when_it_is_computed_again(
    told: VirtualServer, database_url: str
) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "UPDATE triggers.decision SET why = 'because I say so', effects = '[]' WHERE run_before = 0"
        )
    finally:
        await connection.close()
    written = StringIO()
    context = told.server.context
    assert not await audit_and_print(
        context.settings, context.database.url, Console(file=written, width=160), derive=True
    )
