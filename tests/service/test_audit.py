"""The books balance after a story, and name the row that somebody deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from rich.console import Console

from services.audit import audit, audit_and_print
from services.audit.books import Book
from services.dispatch.cli import apply_templates
from services.profile.derive import people_again
from services.rules_files import SHIPPED
from shared.dead_letters import drop_dead_letters
from tests.support.computed_again import computed_again
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
MESSAGE = "(SELECT id FROM dispatch.message)"
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
        ("people", "DELETE FROM profile.node WHERE kind = 'email' RETURNING id"),
        (
            "people",
            "DELETE FROM profile.membership WHERE node = (SELECT node FROM profile.event LIMIT 1) RETURNING node",
        ),
        ("runs", "DELETE FROM triggers.run RETURNING id"),
        ("timers", "DELETE FROM triggers.item WHERE kind = 4 RETURNING run"),
        ("timers", "DELETE FROM triggers.item WHERE kind = 5 RETURNING run"),
        ("decisions", "DELETE FROM triggers.decision WHERE run_before = 0 RETURNING run"),
        ("intents", "DELETE FROM dispatch.message RETURNING id"),
        ("messages", f"UPDATE triggers.decision SET effects = '[]' RETURNING {MESSAGE}"),
        ("choices", "DELETE FROM dispatch.decision RETURNING message"),
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
    assert gone is not None
    found = (await books_of(told))[book]
    assert not found.balanced
    assert any(str(gone) in stray for stray in found.strays)


BOUGHT: list[dict[str, Any]] = [
    {
        "type": "track",
        "userId": "u-1",
        "event": "Order Completed",
        "messageId": "order",
        "properties": {
            "order_id": "o-1",
            "total": 1500,
            "products": [{"product_id": "p-1", "quantity": 1, "price": 1500}],
        },
    },
    {
        "type": "track",
        "userId": "u-1",
        "event": "Order Refunded",
        "messageId": "refund",
        "properties": {"order_id": "o-2", "total": 300},
    },
    {"type": "track", "userId": "u-1", "anonymousId": "a-1", "event": "Product Viewed", "messageId": "seen"},
    {
        "type": "track",
        "userId": "u-1",
        "event": "Product Added",
        "messageId": "again",
        "properties": {"product_id": "p-2", "name": "A book", "price": 700, "quantity": 1},
    },
]


@pytest.fixture
async def bought(told: VirtualServer) -> VirtualServer:
    """The same, and Anna has bought and sent back, and was seen on another device with something else."""
    at = START + timedelta(hours=3)
    await told.post(*({**event, "timestamp": at.isoformat()} for event in BOUGHT))
    await told.time.close(at + timedelta(minutes=15))
    return told


async def deleted(database_url: str, delete: str) -> list[str]:
    """What identifies the row that is gone."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(delete)
    finally:
        await connection.close()
    assert len(rows) == 1
    return [str(value) for value in rows[0]]


@pytest.mark.parametrize(
    ("book", "delete"),
    [
        (
            "events seen",
            "DELETE FROM profile.event_seen WHERE id = (SELECT id FROM profile.event LIMIT 1) RETURNING id",
        ),
        ("reports of orders", "DELETE FROM profile.order_report RETURNING order_key, event"),
        ("reports of orders", "DELETE FROM profile.refund RETURNING order_key, event"),
        ("reports of orders", "DELETE FROM profile.event WHERE name = 'Order Completed' RETURNING order_key, id"),
        ("orders", "DELETE FROM profile.orders WHERE key = 'o-1' RETURNING key"),
        ("orders", "DELETE FROM profile.order_report RETURNING order_key, event"),
    ],
)
async def test_the_audit_names_what_profile_lost(
    bought: VirtualServer, database_url: str, book: str, delete: str
) -> None:
    books = await books_of(bought)
    assert [name for name, one in books.items() if not one.balanced] == []
    assert books["reports of orders"].right == {"reports": 1, "refunds": 1}
    gone = await deleted(database_url, delete)
    found = (await books_of(bought))[book]
    assert not found.balanced
    assert any(all(value in stray for value in gone) for stray in found.strays), found.strays


@pytest.mark.parametrize(
    ("section", "delete"),
    [
        ("consents", "DELETE FROM profile.consent RETURNING node"),
        ("traits", "DELETE FROM profile.trait WHERE name = 'first_name' RETURNING name"),
        ("orders", "DELETE FROM profile.order_report RETURNING order_key"),
        ("refunds", "DELETE FROM profile.refund RETURNING order_key"),
        ("cart", "DELETE FROM profile.cart_op WHERE items::text LIKE '%p-2%' RETURNING id"),
    ],
)
async def test_what_profile_lost_comes_out_when_everybody_is_computed_again(
    bought: VirtualServer, database_url: str, section: str, delete: str
) -> None:
    context = bought.server.context
    again = await people_again(context.database)
    assert (again.count, again.links, again.differences) == (1, 2, [])
    await deleted(database_url, delete)
    [said] = (await people_again(context.database)).differences
    assert f" {section} not as its rows make it" in said


async def test_a_link_that_was_lost_is_named_with_the_event_that_observed_it(
    bought: VirtualServer, database_url: str
) -> None:
    seen = "(SELECT id FROM profile.event WHERE message_id = 'seen')"
    a, b, event = await deleted(database_url, f"DELETE FROM profile.link WHERE id = {seen} RETURNING a, b, id")
    apart, lost = (await people_again(bought.server.context.database)).differences
    assert "by the links that are stored, its 3 nodes are not one person" in apart
    assert lost == f"link {a} – {b}: observed by event {event}, and is not there"
    written = StringIO()
    context = bought.server.context
    console = Console(file=written, width=200)
    assert not await audit_and_print(context.settings, context.database.url, console, derive=True)
    assert "people of profile, computed again: 2 differences (1 people, 2 links observed)" in written.getvalue()


DAILY = """
name: daily
kind: marketing
enter: {schedule: "0 6 * * *", among: {cart: {not_empty: true}}}
steps: [{send: cart-reminder}]
"""


async def test_what_is_to_become_a_run_and_is_gone_is_named(told: VirtualServer, database_url: str) -> None:
    await told.activate(DAILY)
    await told.time.close(START + timedelta(hours=3, minutes=15))
    await told.post(
        {**EVENTS[2], "messageId": "later", "timestamp": (START + timedelta(hours=3, minutes=15)).isoformat()}
    )
    await told.time.close(START + timedelta(hours=3, minutes=30))
    books = await books_of(told)
    assert (books["idle timers"].left, books["calendars"].left) == (
        {"asked for by events": 1}, {"active rules with a schedule": 1},
    )  # fmt: skip
    assert [name for name, book in books.items() if not book.balanced] == []
    connection = await asyncpg.connect(database_url)
    try:
        armed = await connection.fetchrow("DELETE FROM triggers.item WHERE kind = 3 RETURNING node, rule")
        moment = await connection.fetchval("DELETE FROM triggers.schedule RETURNING rule")
    finally:
        await connection.close()
    books = await books_of(told)
    [unasked] = books["idle timers"].strays
    assert str(armed["node"]) in unasked and str(armed["rule"]) in unasked and not books["idle timers"].balanced
    assert books["calendars"].strays == [f"rule {moment} has no moment to come"]


async def lay_aside(connection: asyncpg.Connection, said: bytes, state: str = "open") -> None:
    """A dead letter of dispatch."""
    await connection.execute(
        """
        INSERT INTO platform.dead_letter (id, service, topic, partition, number, epoch, reason, bytes, at, state)
        VALUES (gen_random_uuid(), 'dispatch', 'messages', 0, 7, 'e', 'r', $1, now(), $2)
        """,
        said,
        state,
    )


@pytest.mark.parametrize(
    ("record", "state", "explains"),
    [
        (b'{"record":"intended","message":"%s","run":"%s"}', "open", True),
        (b'{"record":"intended","message":"%s","run":"%s"', "discarded", True),
        (b'{"record":"intended","message":"%s","run":"%s"}', "replayed", False),
        (b'{"record":"cancelled","message":"%s","run":"%s"}', "open", False),
        (b'{"record":"intended","message":"0199ab28-21f8-4815-9530-78f4672fb749","run":"%s"}', "open", False),
        (b"another one", "replayed", False),
    ],
)
async def test_only_a_dead_letter_that_names_a_message_explains_that_it_is_missing(
    told: VirtualServer, database_url: str, record: bytes, state: str, explains: bool
) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        gone = await connection.fetchrow("DELETE FROM dispatch.message RETURNING id, run")
        ids = (str(gone["id"]).encode(), str(gone["run"]).encode())
        await lay_aside(connection, record % ids[2 - record.count(b"%s") :] if b"%s" in record else record, state)
        for days in (0, 400):  # at once, and when the letter was deleted by age
            if days:
                context = told.server.context
                await drop_dead_letters(context.database, datetime.now(UTC) + timedelta(days=days), 90)
                assert await connection.fetchval("SELECT count(*) FROM platform.dead_letter") == 0
            book = (await books_of(told))["intents"]
            assert (book.strays == []) is explains
            assert book.balanced is explains
            assert explains or book.strays == [f"message {gone['id']} was intended and is not there"]
    finally:
        await connection.close()


async def test_an_outcome_that_dispatch_lost_is_named(told: VirtualServer, database_url: str) -> None:
    await told.time.close(START + timedelta(days=5))
    connection = await asyncpg.connect(database_url)
    try:
        assert (await books_of(told))["outcomes"].balanced
        gone = await connection.fetchval("DELETE FROM dispatch.outcome RETURNING run")
    finally:
        await connection.close()
    assert (await books_of(told))["outcomes"].strays == [f"the outcome of run {gone} was told and is not there"]


async def test_every_decision_is_computed_again_with_the_same_result(told: VirtualServer) -> None:
    written = StringIO()
    context = told.server.context
    console = Console(file=written, width=160)
    assert await audit_and_print(context.settings, context.database.url, console, derive=True)
    again = computed_again(written.getvalue())
    assert again == {
        "decisions": 1, "entries": 1, "holdout draws": 0, "intents": 1, "occasions to enter": 1,
        "choices": 1, "rows of alternatives": 5,
    }  # fmt: skip


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
