"""What dispatch still holds of addresses that profile has purged or erased."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from services.dispatch.store import claims
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
        ), reports AS (
            UPDATE dispatch.report r SET properties = '{}', detail = '' FROM gone WHERE r.message = gone.id
        )
        UPDATE dispatch.message m
        SET address = NULL, subject = NULL, body = NULL, html = NULL, urls = NULL,
            intent = m.intent - 'addressed' - 'event'
        FROM gone WHERE m.id = gone.id RETURNING m.id
        """,
        limit,
    )
    return len(rows)


async def forget_people(tx: Tx, nodes: Sequence[UUID], now: datetime) -> None:
    """Somebody was erased. What was not called yet is withheld, all else loses address, text and links; codes and granted
    consents go. What protects the address stays: suppressions, opt-outs and complaints, without the address itself.

    A call that is under way ends first; its message is forgotten by `forget` afterwards.
    """
    await claims.lock(tx, [("address", node) for node in nodes])
    await tx.execute(
        """
        WITH concerned AS (
            SELECT id FROM dispatch.message WHERE origin = ANY($1::uuid[])
            UNION SELECT message FROM dispatch.contact WHERE address_node = ANY($1::uuid[])
        ), gone AS (
            SELECT m.id FROM dispatch.message m JOIN concerned USING (id) WHERE m.state <> 'calling' ORDER BY m.id FOR UPDATE OF m
        ), links AS (
            DELETE FROM dispatch.link l USING gone WHERE l.message = gone.id
        ), reports AS (
            UPDATE dispatch.report r SET properties = '{}', detail = '' FROM concerned WHERE r.message = concerned.id
        ), contacts AS (
            DELETE FROM dispatch.contact c USING gone, dispatch.message m
            WHERE m.id = gone.id AND m.state IN ('queued', 'claimed') AND c.message = m.id AND c.origin = m.origin
        )
        UPDATE dispatch.message m
        SET address = NULL, subject = NULL, body = NULL, html = NULL, urls = NULL,
            intent = m.intent - 'addressed' - 'event',
            state = CASE WHEN m.state IN ('queued', 'claimed') THEN 'withheld' ELSE m.state END,
            reason_code = CASE WHEN m.state IN ('queued', 'claimed') THEN 'gone' ELSE m.reason_code END,
            reason = CASE WHEN m.state IN ('queued', 'claimed') THEN 'the person was erased' ELSE m.reason END,
            claim = NULL, lease_until = NULL, chosen_at = NULL, updated_at = $2
        FROM gone WHERE m.id = gone.id
        """,
        nodes,
        now,
    )
    await tx.execute(
        "UPDATE dispatch.report SET properties = '{}', detail = '' WHERE address_node = ANY($1::uuid[])", nodes
    )
    await tx.execute("DELETE FROM dispatch.allotment WHERE node = ANY($1::uuid[])", nodes)
    await tx.execute("UPDATE dispatch.suppression SET value = '' WHERE node = ANY($1::uuid[])", nodes)
    await tx.execute(
        "DELETE FROM dispatch.consent WHERE node = ANY($1::uuid[]) AND state NOT IN ('withdrawn', 'complained')", nodes
    )
    await tx.execute("UPDATE dispatch.consent SET proof = '{}' WHERE node = ANY($1::uuid[])", nodes)
