"""A condition → one statement that finds who of the base meets it, as of a moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from shared.conditions.model import AllOf, AnyOf, Condition, Leaf, Moment, NotOf
from shared.conditions.sql.builder import Bounds, Statement, all_of, any_of
from shared.identifiers import STRENGTH


@dataclass(frozen=True)
class SqlCondition:
    """`SELECT profile, node, certain … ORDER BY profile`: everybody who may meet the condition at T.

    `node` is the person's strongest, then oldest node at T. Rows with `certain = false` must be looked at by `evaluate`
    over their facts as of T; with `exact` there are none.
    """

    sql: str
    params: list[Any]
    exact: bool


def compile_sql(
    condition: Condition, moment: Moment, *, after: UUID | None = None, limit: int | None = None
) -> SqlCondition:
    """The condition over all profiles with a node at `moment.at`.

    :param after: only profiles with a greater id, and
    :param limit: at most so many: for reading in pages
    """
    statement = Statement(moment)
    bounds = bounds_of(condition, statement)
    kinds = statement.parameter(list(STRENGTH), "text[]")
    strengths = statement.parameter(list(STRENGTH.values()), "int[]")
    beyond = f"AND person.profile > {statement.parameter(after, 'uuid')}" if after else ""
    at_most = f"LIMIT {statement.parameter(limit, 'bigint')}" if limit is not None else ""
    sql = f"""
{_met(statement, bounds, beyond, at_most)}
SELECT met.profile, strongest.node, met.certain
FROM met
CROSS JOIN LATERAL (
    SELECT m.node
    FROM cdp.membership m
    JOIN cdp.node n ON n.id = m.node
    WHERE m.profile = met.profile AND {statement.present("m")}
    ORDER BY coalesce(({strengths})[array_position({kinds}, n.kind)], 0) DESC, n.first_seen, n.id
    LIMIT 1
) strongest
ORDER BY met.profile
"""
    return SqlCondition(sql=sql, params=statement.parameters, exact=bounds.exact)


def members_sql(condition: Condition, moment: Moment) -> SqlCondition:
    """The same people as `SELECT profile, certain`, in no order and without a node: for counting them."""
    statement = Statement(moment)
    bounds = bounds_of(condition, statement)
    sql = f"{_met(statement, bounds)} SELECT profile, certain FROM met"
    return SqlCondition(sql=sql, params=statement.parameters, exact=bounds.exact)


def _met(statement: Statement, bounds: Bounds, beyond: str = "", at_most: str = "") -> str:
    """The WITH part: `person` is everybody at T, `met` those who may meet the condition. Comes after all parameters."""
    shared = "".join(f"{name} AS ({select}), " for select, name in statement.shared.items())
    order = f"ORDER BY person.profile {at_most}" if at_most else ""
    return f"""
WITH {shared}person AS (
    SELECT m.profile, bool_and(m.to_at IS NULL) AND coalesce(p.last_learned_at <= {statement.at}, false) AS settled
    FROM cdp.membership m
    LEFT JOIN cdp.profile p ON p.id = m.profile
    WHERE {statement.present("m")}
    GROUP BY m.profile, p.last_learned_at
), met AS (
    SELECT person.profile, {bounds.lower if not bounds.exact else "true"} AS certain
    FROM person
    WHERE {bounds.upper} {beyond}
    {order}
)"""


def bounds_of(condition: Condition, statement: Statement) -> Bounds:
    """Upper and lower bound of the whole tree."""
    match condition:
        case AllOf(parts):
            return all_of([bounds_of(part, statement) for part in parts])
        case AnyOf(parts):
            return any_of([bounds_of(part, statement) for part in parts])
        case NotOf(part):
            return bounds_of(part, statement).negated()
        case Leaf():
            return condition.sql(statement)
