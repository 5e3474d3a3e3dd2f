"""Erasing somebody reaches every service over the bus: runs end, what waits is withheld, texts and links go, opt-outs stay."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.audit import audit
from services.dispatch.cli import apply_templates
from services.rules_files import SHIPPED
from services.triggers.derive import derive_again
from shared.db import Database
from shared.erasure import read_file
from shared.settings import load
from tests.support.rules import edited
from tests.support.virtual_server import VirtualServer, virtual_server

START = datetime(2026, 3, 10, 9, tzinfo=UTC)
CANARY = "Kanarejka"
EMAIL = "kanarejka@example.com"
PHONE = "+79161234567"
PRODUCT = {"product_id": "p-1", "name": "Record", "price": 1500, "quantity": 1, "url": "http://127.0.0.1/p-1"}
PERSONAL = (CANARY.lower(), EMAIL, PHONE)
AT_ONCE = edited("abandoned-cart", holdout="0%")
LATER = AT_ONCE.replace("abandoned-cart", "cart-much-later").replace("idle: 1h", "idle: 3h")


def event(name: str, at: datetime, **more: Any) -> dict[str, Any]:
    return {"type": "track", "event": name, "userId": "u-1", "timestamp": at.isoformat(), **more}


async def life(server: VirtualServer) -> None:
    """Somebody who has had one letter, waits for another, and has said no to SMS."""
    traits = {"email": EMAIL, "phone": PHONE, "first_name": CANARY}
    consent = {
        "topics": ["marketing"],
        "form": "checkout",
        "text_version": "1",
        "page": "http://127.0.0.1/",
        "ip": "192.0.2.1",
    }
    granted = {"channel": "email", "address": EMAIL, "at": START.isoformat(), **consent}
    await server.post(
        {"type": "identify", "userId": "u-1", "traits": traits, "timestamp": START.isoformat()},
        event("Consent Granted", START, properties=granted),
        event("Unsubscribed", START, properties={"channel": "sms", "address": PHONE, "topics": ["marketing"]}),
        event("Product Added", START, properties=PRODUCT),
    )


async def rows_that_tell(connection: asyncpg.Connection) -> list[str]:
    """Every row of every table that holds anything of the person, except the log of the bus, which ends by age."""
    tables = await connection.fetch(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = ANY($1)",
        ["profile", "triggers", "dispatch", "platform", "ingest"],
    )
    found = []
    for schema, table in tables:
        rows = await connection.fetch(f"SELECT t::text AS row FROM {schema}.{table} t")
        found += [f"{schema}.{table}: {row['row']}" for row in rows if any(p in row["row"].lower() for p in PERSONAL)]
    return found


@pytest.mark.timeout(120)
async def test_who_is_erased_is_forgotten_by_every_service(database_url: str, tmp_path: Path) -> None:
    async with virtual_server(database_url, tmp_path, START, shop_timezone="UTC") as server:
        await asyncio.to_thread(
            lambda: list(apply_templates(SHIPPED, str(server.http.base_url), server.keys["api_key"]))
        )
        await server.activate(AT_ONCE)
        await server.activate(LATER)
        server.time.go_to(START + timedelta(minutes=1))
        await server.time.close(START + timedelta(minutes=15))
        server.time.go_to(START + timedelta(minutes=16))
        await life(server)
        await server.time.close(START + timedelta(hours=2))
        connection = await asyncpg.connect(database_url)
        try:
            await erased_everywhere(server, connection, tmp_path)
        finally:
            await connection.close()
    await the_books_and_the_derivation_hold(database_url)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("erased_by", ["this version", "the version before"])
async def test_who_comes_back_after_an_erasure_is_new_to_every_rule(
    database_url: str, tmp_path: Path, erased_by: str
) -> None:
    """Under the same user id; the rule says `again: never`. The version before knew no `erased_at`."""
    once = AT_ONCE.replace("again: after 7d", "again: never")
    assert once != AT_ONCE
    async with virtual_server(database_url, tmp_path, START, shop_timezone="UTC") as server:
        await asyncio.to_thread(
            lambda: list(apply_templates(SHIPPED, str(server.http.base_url), server.keys["api_key"]))
        )
        await server.activate(once)
        server.time.go_to(START + timedelta(minutes=1))
        await life(server)
        await server.time.close(START + timedelta(hours=2))
        [person] = await server.list("/v1/profiles", user_id="u-1")
        answer = await server.http.post(f"/v1/profiles/{person['id']}/erase", headers=server.bearer)
        assert answer.status_code == 200, answer.text
        await server.time.close(START + timedelta(hours=3))
        if erased_by == "the version before":
            connection = await asyncpg.connect(database_url)
            assert await connection.execute("UPDATE triggers.run SET erased_at = NULL WHERE open = false") == "UPDATE 1"
            await connection.close()
        back = START + timedelta(hours=4)
        server.time.go_to(back)
        await server.post(event("Product Added", back, properties=PRODUCT))
        await server.time.close(back + timedelta(hours=2))
        runs = await server.list("/v1/runs", rule="abandoned-cart")
        assert len(runs) == 2, "one before the erasure, one after it"
    await the_books_and_the_derivation_hold(database_url)


async def erased_everywhere(server: VirtualServer, connection: asyncpg.Connection, folder: Path) -> None:
    [person] = await server.list("/v1/profiles", user_id="u-1")
    [message] = await server.list("/v1/messages", state="sent")
    letter = (await server.http.get(f"/v1/messages/{message['id']}", headers=server.bearer)).json()
    urls = {one["url"] for one in letter["links"] if "/c/" in one["url"]}
    assert await rows_that_tell(connection), "there is something to forget"
    timers = await connection.fetchval("SELECT count(*) FROM triggers.item")
    assert timers > 0

    answer = await server.http.post(f"/v1/profiles/{person['id']}/erase", headers=server.bearer)
    assert answer.status_code == 200, answer.text
    await server.time.close(START + timedelta(hours=2, minutes=15))

    assert await rows_that_tell(connection) == []
    assert await connection.fetchval("SELECT count(*) FROM triggers.item") == 0
    assert "erased" in {row["ended_as"] for row in await connection.fetch("SELECT ended_as FROM triggers.run")}
    assert await connection.fetchval("SELECT count(*) FROM triggers.run WHERE open") == 0
    assert await connection.fetchval("SELECT count(*) FROM dispatch.link") == 0
    assert urls, "the letter had links"
    for url in urls:
        assert (await server.http.get(url)).status_code != 302, "the link leads nowhere"
    kept = await connection.fetch("SELECT state, proof FROM profile.consent")
    assert [row["state"] for row in kept] == ["withdrawn"], (
        "who comes back is not written to because they were forgotten"
    )
    lines = read_file(folder / "erasures.txt")
    assert set(lines) == {row["hmac"] for row in await connection.fetch("SELECT hmac FROM platform.erasure")}


async def the_books_and_the_derivation_hold(database_url: str) -> None:
    settings = load(database_url=database_url, partitions=4)
    unbalanced = [book for book in await audit(settings, database_url) if not book.balanced]
    assert unbalanced == []
    database = await Database.open(database_url, member="test", size=2)
    try:
        derived = await derive_again(database, START - timedelta(days=1), START + timedelta(days=1), settings)
    finally:
        await database.close()
    assert derived.differences == []
    assert derived.erased > 0
