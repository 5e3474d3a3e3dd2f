"""Counting stored events in SQL, as `shared.conditions.counting` does in Python."""

from __future__ import annotations

from shared.conditions.counting import ORDER_COMPLETED, Counted
from shared.conditions.sql.builder import TRUE, UNDECIDED, Bounds, Statement, Test, both
from shared.conditions.sql.comparing import where_test


def count_bounds(
    statement: Statement,
    counted: Counted,
    *,
    fewest: int,
    most: int | None = None,
    same: str | None = None,
    extra: Test | None = None,
) -> Bounds:
    """Whether a person's number of such events is within the bounds.

    :param same: count the largest group that shares the value of that property instead
    :param extra: a further test on the row `e` of cdp.event
    """
    none_is_fine = fewest == 0
    if counted.since is not None:
        return statement.constant(none_is_fine) if statement.nobody_entered else UNDECIDED
    where = both([where_test(statement, "e.properties", counted.where), *([extra] if extra else [])])
    counts = statement.once(_grouped(statement, counted, where, same) if same else _counts(statement, counted, where))
    if where.decided and same is None:
        right = _within("n_surely", "n_surely", fewest, most)
        rows = f"SELECT profile FROM {counts} c WHERE {'NOT ' if none_is_fine else ''}({right})"
        return statement.among(rows, rows, others=none_is_fine)
    may, surely = _within("n_may", "n_surely", fewest, most), _within("n_surely", "n_may", fewest, most)
    if none_is_fine:
        may, surely = f"NOT ({surely})", f"NOT ({may})"
    rows = f"SELECT profile FROM {counts} c WHERE "
    return statement.among(rows + may, rows + surely, others=none_is_fine)


def _within(high: str, low: str, fewest: int, most: int | None) -> str:
    """Between the bounds, where the count lies somewhere between `low` and `high`."""
    return f"{high} >= {fewest}" + (f" AND {low} <= {most}" if most is not None else "")


def _rows(statement: Statement, counted: Counted) -> str:
    """FROM and WHERE: the events of that name as of T, with their person as `m.profile`."""
    window = f"e.occurred_at <= {statement.at}"
    if counted.within is not None:
        start = statement.parameter(statement.moment.at - counted.within, "timestamptz")
        window += f" AND e.occurred_at > {start}"
    name = statement.parameter(counted.event, "text")
    return (
        f"FROM cdp.event e {statement.owner('e.node')} "
        f"WHERE e.name = {name} AND e.learned_at <= {statement.at} AND {window}"
    )


def _what(counted: Counted) -> str:
    """What is counted: of several reports of one completed order only one."""
    return "DISTINCT coalesce(e.order_key, e.id::text)" if counted.event == ORDER_COMPLETED else "*"


def _counts(statement: Statement, counted: Counted, where: Test) -> str:
    what = _what(counted)
    if where.decided:
        narrowed = "" if where.expression == TRUE else f" AND {where.expression}"
        return f"SELECT m.profile, count({what}) AS n_surely {_rows(statement, counted)}{narrowed} GROUP BY m.profile"
    return (
        f"SELECT m.profile, count({what}) AS n_may, count({what}) FILTER (WHERE {where.surely}) AS n_surely "
        f"{_rows(statement, counted)} AND {where.may} GROUP BY m.profile"
    )


def _grouped(statement: Statement, counted: Counted, where: Test, same: str) -> str:
    """The largest group has at least as many as share the very same JSON value, and at most as many as have any."""
    what = _what(counted)
    if "." in same:
        return (
            f"SELECT m.profile, count({what}) AS n_may, 0 AS n_surely "
            f"{_rows(statement, counted)} AND {where.may} GROUP BY m.profile"
        )
    value = f"(e.properties -> {statement.parameter(same, 'text')})"
    # An order whose reports differ in that value belongs to one group only, and SQL does not know to which.
    surely = "0" if counted.event == ORDER_COMPLETED else f"count({what}) FILTER (WHERE {where.surely})"
    groups = (
        f"SELECT m.profile, count({what}) AS n_may, {surely} AS n_surely {_rows(statement, counted)} AND {where.may} "
        f"AND jsonb_typeof({value}) IN ('string', 'number', 'boolean') GROUP BY m.profile, {value}"
    )
    return f"SELECT profile, sum(n_may) AS n_may, max(n_surely) AS n_surely FROM ({groups}) g GROUP BY profile"
