"""What profile keeps of events: that they were seen, and the orders that they speak of."""

from __future__ import annotations

from services.audit.books import Book
from services.audit.intents import STRAYS
from shared.db import Tx
from shared.events import REMEMBERED


async def fact_books(tx: Tx) -> list[Book]:
    """All of them, in one snapshot."""
    return [await _seen(tx), await _reports(tx), await _orders(tx)]


# Older ones are forgotten, a week later than this: as much may the watermark be behind the clock.
_REMEMBERED = """
    SELECT e.id FROM profile.event e, platform.watermark w WHERE e.received_at > w.value - $1::interval
"""


async def _seen(tx: Tx) -> Book:
    """every event that is stored was seen, so that it takes effect once; what was seen and is not stored is told by the book
    of the events."""
    stored = await tx.fetchval(f"SELECT count(*) FROM ({_REMEMBERED}) e", REMEMBERED)
    seen = await tx.fetchval(f"SELECT count(*) FROM ({_REMEMBERED}) e JOIN profile.event_seen s USING (id)", REMEMBERED)
    strays = []
    if stored != seen:
        strays = await tx.fetch(
            f"""
            SELECT e.id FROM ({_REMEMBERED}) e
            WHERE NOT EXISTS (SELECT 1 FROM profile.event_seen s WHERE s.id = e.id) ORDER BY e.id LIMIT $2
            """,
            REMEMBERED,
            STRAYS,
        )
    return Book(
        "events seen",
        {"stored in 13 months": stored},
        {"of these seen": seen},
        [f"event {row['id']} is stored and is not known as seen: a repeat would count again" for row in strays],
    )


_ENTRIES = """
    SELECT order_key, event, 'report' AS kind FROM profile.order_report
    UNION ALL SELECT order_key, event, 'refund' FROM profile.refund
"""


async def _reports(tx: Tx) -> Book:
    """every event that speaks of an order has left a report or a refund, and these come from events."""
    told = await tx.fetchval("SELECT count(*) FROM profile.event WHERE order_key IS NOT NULL")
    kept = dict(await tx.fetch(f"SELECT kind, count(*) FROM ({_ENTRIES}) r GROUP BY 1"))
    strays = await tx.fetch(
        f"""
        SELECT e.id IS NULL AS alone, coalesce(e.id, r.event) AS event, coalesce(e.order_key, r.order_key) AS key
        FROM (SELECT id, order_key FROM profile.event WHERE order_key IS NOT NULL) e
        FULL JOIN ({_ENTRIES}) r ON r.event = e.id AND r.order_key = e.order_key
        WHERE e.id IS NULL OR r.event IS NULL ORDER BY event LIMIT $1
        """,
        STRAYS,
    )
    return Book(
        "reports of orders",
        {"events that speak of an order": told},
        {"reports": kept.get("report", 0), "refunds": kept.get("refund", 0)},
        [
            f"the report of order {row['key']} by event {row['event']} comes from no event"
            if row["alone"]
            else f"event {row['event']} speaks of order {row['key']} and left no report"
            for row in strays
        ],
    )


async def _orders(tx: Tx) -> Book:
    """every order that is reported or sent back is there, and counts by a report that is there."""
    named = await tx.fetchval(f"SELECT count(DISTINCT order_key) FROM ({_ENTRIES}) r")
    there = await tx.fetchval("SELECT count(*) FROM profile.orders")
    strays = await tx.fetch(
        f"""
        SELECT coalesce(o.key, r.order_key) AS key, o.key IS NULL AS lost, o.event
        FROM profile.orders o FULL JOIN (SELECT DISTINCT order_key FROM ({_ENTRIES}) e) r ON r.order_key = o.key
        LEFT JOIN profile.order_report winner ON winner.order_key = o.key AND winner.event = o.event
        WHERE o.key IS NULL OR r.order_key IS NULL OR (o.event IS NOT NULL AND winner.event IS NULL)
        ORDER BY key LIMIT $1
        """,
        STRAYS,
    )
    return Book(
        "orders",
        {"reported or sent back": named},
        {"there": there},
        [
            f"order {row['key']} is reported and is not there"
            if row["lost"]
            else f"order {row['key']} is there and lacks its report"
            + (f" by event {row['event']}" if row["event"] else "")
            for row in strays
        ],
    )
