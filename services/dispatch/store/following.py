"""Messages that were taken, and of which nothing was told since. One statement."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from services.dispatch.store.calls import COLUMNS, Chosen
from shared.db import Tx


async def silent(
    tx: Tx, adapters: Sequence[str], windows: Sequence[tuple[datetime, datetime]], most: int
) -> dict[str, list[Chosen]]:
    """By adapter: those whose last change lies in one of the windows (after the first moment, up to the second), at most so
    many of each window."""
    rows = await tx.fetch(
        f"""
        SELECT m.* FROM unnest($2::timestamptz[], $3::timestamptz[]) AS w(since, until)
        CROSS JOIN LATERAL (
            SELECT {COLUMNS}, a.provider_id, a.at AS called_at FROM dispatch.message m
            JOIN dispatch.attempt a ON a.message = m.id AND a.number = m.attempts
            WHERE m.updated_at > w.since AND m.updated_at <= w.until AND m.state = 'sent' AND m.delivery IS NULL
              AND m.adapter = ANY($1::text[]) AND m.address IS NOT NULL AND a.provider_id <> ''
            ORDER BY m.updated_at LIMIT $4
        ) m
        """,
        list(adapters),
        [since for since, _ in windows],
        [until for _, until in windows],
        most,
    )
    found: dict[str, list[Chosen]] = {}
    for row in rows:
        one = Chosen(**{name: row[name] for name in Chosen.__struct_fields__})
        found.setdefault(one.adapter, []).append(one)
    return found
