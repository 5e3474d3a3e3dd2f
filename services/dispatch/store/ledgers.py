"""Dispatch's own ledgers: consent that comes through links and pages, suppressed addresses, opens and clicks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from services.dispatch.store.calls import Chosen
from shared.db import Tx
from shared.ids import RandomBits, uuid7


class Sent(msgspec.Struct, frozen=True):
    """The message behind a public link."""

    id: UUID
    run: UUID
    rule_name: str
    step: str
    template: str
    origin: UUID
    hops: int
    kind: str
    topic: str
    purpose: str
    channel: str
    address: str
    address_node: UUID
    created_at: datetime
    sent_at: datetime | None
    state: str
    addressed: dict[str, Any] | None


async def read_sent(tx: Tx, message: UUID) -> Sent | None:
    """The message of a link; None if it is unknown, or its address was forgotten."""
    row = await tx.fetchrow(
        """
        SELECT id, run, rule_name, step, template, origin, hops, kind, topic, purpose, channel, address, address_node,
               created_at, sent_at, state, intent -> 'addressed' AS addressed
        FROM dispatch.message WHERE id = $1 AND address_node IS NOT NULL AND address IS NOT NULL
        """,
        message,
    )
    return Sent(**dict(row)) if row else None


async def read_link(tx: Tx, message: UUID, number: int) -> str | None:
    return await tx.fetchval("SELECT url FROM dispatch.link WHERE message = $1 AND number = $2", message, number)


async def add_hit(tx: Tx, message: UUID, kind: str, number: int, at: datetime, bot: bool) -> bool:
    """Records an open or a click; says whether it is the first of this link that a person did. A person's takes the place
    of a bot's: a scanner that looks at the letter first must not use up the person's click."""
    row = await tx.fetchrow(
        """
        INSERT INTO dispatch.hit AS h (message, kind, number, at, bot) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (message, kind, number) DO UPDATE SET at = excluded.at, bot = false WHERE h.bot AND NOT excluded.bot
        RETURNING h.message
        """,
        message,
        kind,
        number,
        at,
        bot,
    )
    return row is not None and not bot


async def add_consents(
    tx: Tx,
    *,
    id: UUID,
    node: UUID,
    channel: str,
    topics: Sequence[str],
    state: str,
    origin: UUID,
    at: datetime,
    message: UUID | None,
    request: UUID | None,
    proof: Mapping[str, Any],
) -> list[str]:
    """Writes a row a topic under the id of the event that tells of it; returns the topics that were new. The address must
    be locked. A request is confirmed once, whatever is pressed later."""
    rows = await tx.fetch(
        """
        INSERT INTO dispatch.consent (node, channel, topic, id, origin, state, at, request, message, proof)
        SELECT $1, $2, topic, $4, $5, $6, $7, $8, $9, $10 FROM unnest($3::text[]) AS t(topic)
        ON CONFLICT DO NOTHING RETURNING topic
        """,
        node,
        channel,
        sorted(set(topics)),
        id,
        origin,
        state,
        at,
        request,
        message,
        dict(proof),
    )
    return [row["topic"] for row in rows]


async def suppress(
    tx: Tx, *, id: UUID, node: UUID, channel: str, kind: str, value: str, why: str, by: str, at: datetime
) -> UUID:
    """Puts an address on the list; one that is there stays as it is. Returns the row's id."""
    return await tx.fetchval(
        """
        INSERT INTO dispatch.suppression AS s (node, channel, id, kind, value, why, by, at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (node, channel) DO UPDATE SET why = s.why RETURNING s.id
        """,
        node,
        channel,
        id,
        kind,
        value,
        why,
        by,
        at,
    )


async def suppress_bounced(
    tx: Tx, bounced: Sequence[tuple[Chosen, str]], kinds: Mapping[str, str], at: datetime, bits: RandomBits
) -> None:
    """Addresses that do not exist get nothing more on that channel. `kinds`: the kind of address by adapter."""
    ordered = sorted(bounced, key=lambda pair: (pair[0].address_node, pair[0].channel))
    await tx.execute(
        """
        INSERT INTO dispatch.suppression (node, channel, id, kind, value, why, by, at)
        SELECT node, channel, id, kind, value, why, 'bounce', $7
        FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::text[])
             AS s(node, channel, id, kind, value, why)
        ON CONFLICT (node, channel) DO NOTHING
        """,
        [one.address_node for one, _ in ordered],
        [one.channel for one, _ in ordered],
        [uuid7(at, bits) for _ in ordered],
        [kinds[one.adapter] for one, _ in ordered],
        [one.address for one, _ in ordered],
        [f"bounced: {detail}" for _, detail in ordered],
        at,
    )
