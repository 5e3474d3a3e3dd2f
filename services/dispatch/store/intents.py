"""What triggers wants: intents, cancels, outcomes. The higher run version wins, whatever the order of arrival."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from shared.db import Tx
from shared.events import Cancelled, Intended, Outcome

_UPSERT = """
    INSERT INTO dispatch.message AS m (
        id, run, run_version, intended, rule, rule_name, kind, topic, step, template, origin, profile, decided_at,
        valid_until, ghost, hops, intent, state, due_at, created_at, updated_at
    )
    SELECT id, run, run_version, true, rule, rule_name, kind, topic, step, template, origin, profile, decided_at,
           valid_until, ghost, hops, intent, 'queued', due_at, $18, $18
    FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::uuid[], $11::uuid[], $12::timestamptz[], $13::timestamptz[], $14::bool[],
                $15::smallint[], $16::jsonb[], $17::timestamptz[])
         WITH ORDINALITY AS i(id, run, run_version, rule, rule_name, kind, topic, step, template, origin, profile,
                              decided_at, valid_until, ghost, hops, intent, due_at, place)
    ORDER BY place
    ON CONFLICT (id) DO UPDATE SET
        intended = true, rule = excluded.rule, rule_name = excluded.rule_name, kind = excluded.kind,
        topic = excluded.topic, step = excluded.step, template = excluded.template, origin = excluded.origin,
        profile = excluded.profile, decided_at = excluded.decided_at, valid_until = excluded.valid_until,
        ghost = excluded.ghost, hops = excluded.hops, intent = excluded.intent, due_at = excluded.due_at,
        updated_at = excluded.updated_at,
        run_version = greatest(m.run_version, excluded.run_version),
        state = CASE WHEN excluded.run_version > m.run_version THEN 'queued' ELSE m.state END,
        reason_code = CASE WHEN excluded.run_version > m.run_version THEN NULL ELSE m.reason_code END,
        reason = CASE WHEN excluded.run_version > m.run_version THEN NULL ELSE m.reason END,
        claim = NULL, lease_until = NULL, chosen_at = NULL
    WHERE NOT m.intended
       OR (excluded.run_version > m.run_version AND (m.state IN ('queued', 'claimed') OR m.reason_code = 'cancelled'))
    RETURNING m.id
"""


async def upsert_intents(tx: Tx, intents: Sequence[Intended], now: datetime) -> set[UUID]:
    """Writes intents, one a message, sorted; returns the messages that were written.

    A row that a cancel of a higher version left behind is filled in and stays withheld; what was called already stays.
    """
    ordered = sorted(intents, key=lambda intent: intent.message)
    rows = await tx.fetch(
        _UPSERT,
        [intent.message for intent in ordered],
        [intent.run for intent in ordered],
        [intent.run_version for intent in ordered],
        [intent.rule for intent in ordered],
        [intent.rule_name for intent in ordered],
        [intent.kind for intent in ordered],
        [intent.topic for intent in ordered],
        [intent.step for intent in ordered],
        [intent.template for intent in ordered],
        [intent.origin for intent in ordered],
        [intent.profile for intent in ordered],
        [intent.decided_at for intent in ordered],
        [intent.valid_until for intent in ordered],
        [intent.ghost for intent in ordered],
        [intent.hops for intent in ordered],
        [msgspec.to_builtins(intent) for intent in ordered],
        [intent.decided_at + timedelta(seconds=intent.collect) for intent in ordered],
        now,
    )
    return {row["id"] for row in rows}


async def apply_cancels(tx: Tx, cancels: Sequence[Cancelled], now: datetime) -> set[UUID]:
    """Withholds what was not called yet; a cancel that overtook its intent leaves the row that stops it."""
    ordered = sorted(cancels, key=lambda cancel: cancel.message)
    rows = await tx.fetch(
        """
        INSERT INTO dispatch.message AS m (
            id, run, run_version, intended, rule, kind, decided_at, state, reason_code, reason, due_at, created_at,
            updated_at
        )
        SELECT id, run, run_version, false, rule, 'marketing', decided_at, 'withheld', 'cancelled', reason, decided_at,
               $7, $7
        FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $5::timestamptz[], $6::text[]) WITH ORDINALITY
             AS c(id, run, run_version, rule, decided_at, reason, place)
        ORDER BY place
        ON CONFLICT (id) DO UPDATE SET
            run_version = excluded.run_version, state = 'withheld', reason_code = 'cancelled', reason = excluded.reason,
            claim = NULL, lease_until = NULL, chosen_at = NULL, updated_at = excluded.updated_at
        WHERE excluded.run_version > m.run_version AND m.state IN ('queued', 'claimed')
        RETURNING m.id
        """,
        [cancel.message for cancel in ordered],
        [cancel.run for cancel in ordered],
        [cancel.run_version for cancel in ordered],
        [cancel.rule for cancel in ordered],
        [cancel.decided_at for cancel in ordered],
        [cancel.reason for cancel in ordered],
        now,
    )
    return {row["id"] for row in rows}


async def release_contacts(tx: Tx, messages: Sequence[UUID]) -> None:
    """Those of `messages` that were taken back before a call count no longer against caps; but one of which an earlier
    attempt may have arrived does."""
    await tx.execute(
        """
        DELETE FROM dispatch.contact c USING dispatch.message m
        WHERE m.id = ANY($1::uuid[]) AND m.state IN ('queued', 'withheld') AND m.pinned IS NULL
          AND c.origin = m.origin AND c.message = m.id
        """,
        list(messages),
    )


async def add_outcomes(tx: Tx, outcomes: Sequence[Outcome]) -> set[UUID]:
    """Stores what came of runs; returns the runs that were written."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.run)
    rows = await tx.fetch(
        """
        INSERT INTO dispatch.outcome AS o (run, run_version, rule, ghost, entered_at, closed_at, goal_at, revenue)
        SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::bool[], $5::timestamptz[], $6::timestamptz[],
                             $7::timestamptz[], $8::numeric[])
        ON CONFLICT (run) DO UPDATE SET
            run_version = excluded.run_version, goal_at = excluded.goal_at, revenue = excluded.revenue,
            closed_at = excluded.closed_at
        WHERE excluded.run_version > o.run_version
        RETURNING o.run
        """,
        [outcome.run for outcome in ordered],
        [outcome.run_version for outcome in ordered],
        [outcome.rule for outcome in ordered],
        [outcome.ghost for outcome in ordered],
        [outcome.entered_at for outcome in ordered],
        [outcome.closed_at for outcome in ordered],
        [outcome.goal_at for outcome in ordered],
        [outcome.revenue for outcome in ordered],
    )
    return {row["run"] for row in rows}
