"""What dispatch still holds of addresses that profile has purged or erased."""

from __future__ import annotations

from collections.abc import Mapping
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
              AND NOT EXISTS (
                SELECT 1 FROM cdp.node n WHERE n.id = m.address_node
                    -- learned after the call: it is somebody's who has come back
                    AND n.learned_at <= coalesce(
                        (SELECT min(a.at) FROM dispatch.attempt a WHERE a.message = m.id), 'infinity'))
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


_ERASED = "unnest($1::uuid[], $2::timestamptz[]) AS e(node, at)"
# What is kept of nodes and addresses besides messages.
_FORGET_ADDRESSES = (
    f"""
    UPDATE dispatch.report r SET properties = '{{}}', detail = '' FROM {_ERASED}
    WHERE r.address_node = e.node AND r.received_at <= e.at""",
    f"""
    DELETE FROM dispatch.allotment a USING {_ERASED}
    WHERE a.node = e.node
      AND NOT EXISTS (SELECT 1 FROM dispatch.message m WHERE m.id = a.message AND m.decided_at > e.at)""",
    f"UPDATE dispatch.suppression s SET value = '' FROM {_ERASED} WHERE s.node = e.node AND s.at <= e.at",
    f"""
    DELETE FROM dispatch.consent c USING {_ERASED}
    WHERE c.node = e.node AND c.at <= e.at AND c.state NOT IN ('withdrawn', 'complained')""",
    f"UPDATE dispatch.consent c SET proof = '{{}}' FROM {_ERASED} WHERE c.node = e.node AND c.at <= e.at",
)


async def forget_people(tx: Tx, erased: Mapping[UUID, datetime], now: datetime) -> None:
    """Somebody was erased. What was not called yet is withheld, all else loses address, text and links; codes and granted
    consents go. What protects the address stays: suppressions, opt-outs and complaints, without the address itself.

    Whoever has come back since is somebody new: messages decided after the erasure, and what came of them, stay. A call that
    is under way ends first; its message is forgotten by `forget` afterwards.

    :param erased: by node the moment of its erasure, business time
    :param now: business time
    """
    nodes = sorted(erased)
    pairs = [nodes, [erased[node] for node in nodes]]
    await claims.lock(tx, [("address", node) for node in nodes])
    await tx.execute(
        """
        WITH erased AS (
            SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) AS e(node, at)
        ), concerned AS (
            SELECT m.id FROM erased e JOIN dispatch.message m ON m.origin = e.node AND m.decided_at <= e.at
            UNION
            SELECT m.id FROM erased e JOIN dispatch.contact c ON c.address_node = e.node
            JOIN dispatch.message m ON m.id = c.message AND m.decided_at <= e.at
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
            claim = NULL, lease_until = NULL, chosen_at = NULL, updated_at = $3
        FROM gone WHERE m.id = gone.id
        """,
        *pairs,
        now,
    )
    for statement in _FORGET_ADDRESSES:
        await tx.execute(statement, *pairs)
