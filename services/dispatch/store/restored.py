"""After a restore: messages that a provider may have taken between the backup and the restore (the gap)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from shared.db import Tx


class Reconciled(msgspec.Struct, frozen=True):
    """How many messages were found to be sent, how many are withheld because they may be, and of how many an attempt
    before the backup may have arrived besides."""

    sent: int
    withheld: int
    unknown: int


class Gap(msgspec.Struct, frozen=True):
    """The gap of the last restore. `applied`: everything that the bus still held of it has been handled."""

    backup_at: datetime
    restored_at: datetime
    held: bool
    applied: bool


async def read_gap(tx: Tx) -> Gap | None:
    """None if this deployment was never restored."""
    row = await tx.fetchrow(
        """
        SELECT coalesce(backup_at, restored_at) AS backup_at, restored_at, state = 'held' AS held,
               coalesce((SELECT value FROM platform.watermark) > restored_at, false) AS applied
        FROM platform.deployment WHERE restored_at IS NOT NULL
        """
    )
    return Gap(**dict(row)) if row else None


async def reconcile(tx: Tx, gap: Gap, messages: Sequence[UUID] | None, now: datetime) -> Reconciled:
    """Settles what waits and may have been sent in the gap: of `messages`, or of all.

    If the bus gave back the event that tells of the sending, the message is sent. Else marketing that was decided before
    the end of the gap is withheld: it may have been taken, and is never sent twice. One that is pinned is not withheld
    but unknown, and goes on counting against caps: an attempt that the backup knows of may have arrived. Ghosts go their
    way; transactional messages are sent, at worst a second time.
    """
    rows = await tx.fetch(
        """
        WITH waiting AS (
            SELECT m.id, m.origin, m.kind, m.ghost, m.decided_at, m.purpose, m.pinned FROM dispatch.message m
            WHERE m.intended AND m.state IN ('queued', 'claimed') AND ($1::uuid[] IS NULL OR m.id = ANY($1))
            ORDER BY m.id FOR UPDATE
        ), judged AS (
            SELECT w.*, e.occurred_at AS sent_at, e.channel FROM waiting w
            LEFT JOIN LATERAL (
                SELECT e.occurred_at, e.properties ->> 'channel' AS channel FROM cdp.event e
                WHERE e.node = w.origin AND e.learned_at > $2 AND e.name LIKE '% Sent'
                  AND e.properties ->> 'message_id' = w.id::text ORDER BY e.occurred_at LIMIT 1
            ) e ON true
            WHERE e.occurred_at IS NOT NULL OR (w.kind = 'marketing' AND NOT w.ghost AND w.decided_at <= $3)
        ), counted AS (
            INSERT INTO dispatch.contact (origin, message, at, channel, purpose, address_node)
            SELECT origin, id, sent_at, coalesce(channel, ''), coalesce(purpose, kind), origin FROM judged
            WHERE sent_at IS NOT NULL ON CONFLICT DO NOTHING
        ), uncounted AS (
            DELETE FROM dispatch.contact c USING judged j
            WHERE c.origin = j.origin AND c.message = j.id AND j.sent_at IS NULL AND j.pinned IS NULL
        )
        UPDATE dispatch.message m SET
            state = CASE WHEN j.sent_at IS NOT NULL THEN 'sent' WHEN j.pinned IS NULL THEN 'withheld' ELSE 'unknown' END,
            sent_at = j.sent_at, channel = coalesce(j.channel, m.channel), reason_code = 'restored',
            reason = CASE WHEN j.sent_at IS NOT NULL
                THEN 'it was sent between the backup and the restore, as the event on the bus says'
                WHEN j.pinned IS NULL THEN 'it may have been sent between the backup and the restore, and is not sent twice'
                ELSE 'what came of an attempt before the backup is not known; it is not repeated after a restore' END,
            pinned = CASE WHEN j.sent_at IS NULL THEN m.pinned END,
            claim = NULL, lease_until = NULL, chosen_at = NULL, updated_at = $4
        FROM judged j WHERE m.id = j.id RETURNING m.state
        """,
        list(messages) if messages is not None else None,
        gap.backup_at,
        gap.restored_at,
        now,
    )
    states = Counter(row["state"] for row in rows)
    return Reconciled(states["sent"], states["withheld"], states["unknown"])
