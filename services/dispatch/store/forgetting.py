"""What dispatch still holds of addresses that profile has purged or erased."""

from __future__ import annotations

from shared.db import Tx


async def journals(tx: Tx) -> tuple[int, int]:
    """How long the journals of purges and of erasures are: whether there may be something to forget."""
    row = await tx.fetchrow(
        "SELECT (SELECT count(*) FROM cdp.purged) AS purged, (SELECT count(*) FROM platform.erasure) AS erased"
    )
    return row["purged"], row["erased"]


async def forget(tx: Tx, limit: int) -> int:
    """Takes address, texts and links out of messages whose address nobody knows any more; returns how many. Their links
    lead nowhere then; that a message was sent, when, and what it cost stays in the books."""
    rows = await tx.fetch(
        """
        WITH gone AS (
            SELECT m.id FROM dispatch.message m
            WHERE m.address IS NOT NULL AND m.state IN ('sent', 'withheld', 'failed', 'unknown')
              AND NOT EXISTS (SELECT 1 FROM cdp.node n WHERE n.id = m.address_node)
            ORDER BY m.id LIMIT $1 FOR UPDATE SKIP LOCKED
        ), links AS (
            DELETE FROM dispatch.link l USING gone WHERE l.message = gone.id
        )
        UPDATE dispatch.message m
        SET address = NULL, subject = NULL, body = NULL, html = NULL, urls = NULL,
            intent = m.intent - 'addressed' - 'event'
        FROM gone WHERE m.id = gone.id RETURNING m.id
        """,
        limit,
    )
    return len(rows)
