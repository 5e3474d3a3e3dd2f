"""Old dead letters go, young ones stay, and the books still balance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from services.audit.counting import _dead_letters
from shared.db import Database
from shared.dead_letters import drop_dead_letters

NOW = datetime(2026, 3, 10, tzinfo=UTC)


async def test_letters_go_by_age_and_the_books_remember_them(database_url: str) -> None:
    database = await Database.open(database_url, member="test", size=2)
    try:
        async with database.transaction() as tx:
            await tx.execute(
                "INSERT INTO profile.position (group_name, epoch, topic, partition, next, dead) VALUES "
                "('profile', 'e', 'events', 0, 3, 3)"
            )
            for days, number, replayed in [(100, 1, None), (10, 2, None), (100, 3, 5), (100, None, None)]:
                await tx.execute(
                    "INSERT INTO platform.dead_letter (id, service, number, reason, bytes, at, replayed_at) "
                    "VALUES ($1, 'profile', $2, 'r', 'b', $3, $4)",
                    uuid4(),
                    number,
                    NOW - timedelta(days=days),
                    NOW - timedelta(days=replayed) if replayed else None,
                )
            assert (await _dead_letters(tx)).balanced
        assert await drop_dead_letters(database, NOW, days=90) == 2, "one of a partition, one of ingest's own"
        assert await drop_dead_letters(database, NOW, days=90) == 0
        async with database.transaction() as tx:
            left = [row["number"] for row in await tx.fetch("SELECT number FROM platform.dead_letter ORDER BY number")]
            assert left == [2, 3], "one is young, one was replayed not long ago"
            book = await _dead_letters(tx)
            assert book.balanced
            assert book.right["deleted by age"] == 1
    finally:
        await database.close()
