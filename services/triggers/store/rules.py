"""Rules, their versions, and what is in force."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from services.triggers.rule import Rule
from services.triggers.steps.base import Version
from services.triggers.versions import Change, Rules
from shared.conditions import ConditionError
from shared.db import Tx
from shared.holidays import NO_HOLIDAYS, read_holidays

log = structlog.get_logger(__name__)


class RuleBook:
    """Reads the rules in the caller's transaction. Documents never change, so those once read are kept."""

    def __init__(self) -> None:
        self._versions: dict[tuple[UUID, int], Version] = {}
        self._holidays = NO_HOLIDAYS
        self.unreadable: dict[tuple[UUID, int], str] = {}

    async def read(self, tx: Tx) -> Rules:
        """Everything in force, as this transaction sees it: one statement, another when there are new documents, and
        another when there are new holidays."""
        rows = await tx.fetch(
            """
            SELECT rule, number, state, version, valid_from, (SELECT max(version) FROM platform.holidays) AS holidays
            FROM triggers.rule_change ORDER BY rule, number
            """
        )
        changes = [Change(*row[:5]) for row in rows]
        if rows and len(self._holidays.versions) != (rows[0]["holidays"] or 0):
            self._holidays = await read_holidays(tx)
        await self._load(tx, {(change.rule, change.version) for change in changes})
        return Rules(changes, self._versions, self._holidays)

    async def _load(self, tx: Tx, keys: set[tuple[UUID, int]]) -> None:
        missing = sorted(keys - self._versions.keys() - self.unreadable.keys())
        if not missing:
            return
        rows = await tx.fetch(
            """
            SELECT v.rule, v.version, v.document FROM triggers.rule_version v
            JOIN unnest($1::uuid[], $2::int[]) AS w(rule, version) USING (rule, version)
            """,
            [rule for rule, _ in missing],
            [number for _, number in missing],
        )
        for rule, number, document in rows:
            try:
                self._versions[rule, number] = Version(rule=rule, number=number, document=Rule(document))
            except ConditionError as error:
                self.unreadable[rule, number] = str(error)
                log.error("rules.unreadable", rule=str(rule), version=number, problem=str(error))


_LIST = """
    SELECT r.id, r.name, r.kind, r.made_at, c.state, c.version, c.valid_from, v.document, v.author,
           (SELECT max(version) FROM triggers.rule_version n WHERE n.rule = r.id) AS newest
    FROM triggers.rule r
    JOIN LATERAL (SELECT * FROM triggers.rule_change c WHERE c.rule = r.id ORDER BY number DESC LIMIT 1) c ON true
    JOIN triggers.rule_version v ON v.rule = r.id AND v.version = c.version
"""


async def list_rules(tx: Tx, *, state: str | None, after: str, limit: int) -> list[Any]:
    """Rules by name behind `after`, with the newest change of each."""
    return await tx.fetch(
        f"{_LIST} WHERE r.name > $1 AND ($2::text IS NULL OR c.state = $2) ORDER BY r.name LIMIT $3",
        after,
        state,
        limit,
    )


async def find_rule(tx: Tx, reference: str, *, lock: bool = False) -> Any | None:
    """The rule with this id or name, with its newest change."""
    try:
        by_id: UUID | None = UUID(reference)
    except ValueError:
        by_id = None
    if lock:
        await tx.execute("SELECT 1 FROM triggers.rule WHERE id = $1 OR name = $2 FOR UPDATE", by_id, reference)
    return await tx.fetchrow(f"{_LIST} WHERE r.id = $1 OR r.name = $2", by_id, reference)


async def add_rule(tx: Tx, id: UUID, name: str, kind: str, now: datetime) -> bool:
    """False when the name is taken."""
    return bool(
        await tx.fetchval(
            "INSERT INTO triggers.rule (id, name, kind, made_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING 1",
            id,
            name,
            kind,
            now,
        )
    )


async def add_version(tx: Tx, rule: UUID, document: dict[str, Any], author: str, now: datetime) -> int:
    """Returns the new version's number. The rule's row must be locked."""
    number: int = await tx.fetchval(
        """
        INSERT INTO triggers.rule_version (rule, version, document, author, made_at)
        SELECT $1, coalesce(max(version), 0) + 1, $2, $3, $4 FROM triggers.rule_version WHERE rule = $1
        RETURNING version
        """,
        rule,
        document,
        author,
        now,
    )
    return number


async def add_change(tx: Tx, rule: UUID, state: str, version: int, valid_from: datetime, author: str) -> datetime:
    """Says what is in force from `valid_from` on, or from just after the change before if that is later; returns when."""
    at: datetime = await tx.fetchval(
        """
        INSERT INTO triggers.rule_change (rule, number, state, version, valid_from, author)
        SELECT $1, coalesce(max(number), 0) + 1, $2, $3, greatest($4, max(valid_from) + interval '1 microsecond'), $5
        FROM triggers.rule_change WHERE rule = $1
        RETURNING valid_from
        """,
        rule,
        state,
        version,
        valid_from,
        author,
    )
    return at


async def versions_of(tx: Tx, rule: UUID, *, below: int | None, limit: int) -> list[Any]:
    """Versions with their documents, newest first."""
    return await tx.fetch(
        """
        SELECT version, document, author, made_at FROM triggers.rule_version
        WHERE rule = $1 AND ($2::int IS NULL OR version < $2) ORDER BY version DESC LIMIT $3
        """,
        rule,
        below,
        limit,
    )


async def changes_of(tx: Tx, rule: UUID) -> list[Any]:
    return await tx.fetch(
        "SELECT number, state, version, valid_from, author FROM triggers.rule_change WHERE rule = $1 ORDER BY number",
        rule,
    )


async def report(tx: Tx, rule: UUID, since: datetime | None, until: datetime | None) -> list[Any]:
    """Figures of the runs entered in the time, by arm; `ghost` is None for runs that tell nothing: of people who turned out
    to be in both arms, and those that ended because an earlier run of the same person stayed.

    Goals and revenue are of runs whose window has closed: of the others those who reached it would come first.
    """
    return await tx.fetch(
        """
        WITH whose AS (
            SELECT r.node, r.id, r.ghost, coalesce(n.profile, r.node) AS person
            FROM triggers.run r
            LEFT JOIN cdp.node n ON n.id = r.node AND r.erased_at IS NULL AND r.ended_as IS DISTINCT FROM 'erased'
            WHERE r.rule = $1
        ), both_arms AS (
            SELECT person FROM whose GROUP BY person HAVING bool_or(ghost) AND NOT bool_and(ghost)
        ), told AS (
            SELECT r.open, r.ended_at, r.ended_as, r.goal_at, r.revenue,
                   CASE WHEN r.ended_as IS DISTINCT FROM 'merged' AND w.person NOT IN (SELECT person FROM both_arms)
                        THEN r.ghost END AS arm
            FROM triggers.run r JOIN whose w ON w.node = r.node AND w.id = r.id
            WHERE r.rule = $1 AND ($2::timestamptz IS NULL OR r.entered_at >= $2)
                AND ($3::timestamptz IS NULL OR r.entered_at < $3)
        )
        SELECT arm AS ghost, count(*) AS entered, count(*) FILTER (WHERE ended_at IS NULL) AS inside,
               count(goal_at) FILTER (WHERE NOT open) AS goals,
               coalesce(sum(revenue::numeric) FILTER (WHERE NOT open), 0) AS revenue,
               count(*) FILTER (WHERE NOT open) AS closed,
               jsonb_object_agg(coalesce(ended_as, 'inside'), n) AS ended
        FROM (SELECT *, count(*) OVER (PARTITION BY arm, ended_as) AS n FROM told) t
        GROUP BY arm ORDER BY arm
        """,
        rule,
        since,
        until,
    )


async def failures(tx: Tx, rule: UUID, since: datetime | None, until: datetime | None) -> int:
    """How often the rule failed for somebody."""
    return int(
        await tx.fetchval(
            """
            SELECT count(*) FROM triggers.decision WHERE rule = $1 AND what = 'failed'
            AND ($2::timestamptz IS NULL OR at >= $2) AND ($3::timestamptz IS NULL OR at < $3)
            """,
            rule,
            since,
            until,
        )
    )


async def rename(tx: Tx, rule: UUID, name: str) -> None:
    await tx.execute("UPDATE triggers.rule SET name = $2 WHERE id = $1", rule, name)


async def read_catalogue(tx: Tx) -> list[tuple[str, str, str | None]]:
    """Kind, name and purpose of every template and offer that dispatch has."""
    return [tuple(row) for row in await tx.fetch("SELECT kind, name, purpose FROM platform.catalogue")]
