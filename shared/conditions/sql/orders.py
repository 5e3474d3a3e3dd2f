"""Figures over orders in SQL, from the present rows: right as of T for people to whom nothing happened since."""

from __future__ import annotations

from shared.conditions.sql.builder import Bounds, Statement, Test

# The orders that figures are made of; see `shared.conditions.counting.orders_counted`.
COUNTED = "o.total IS NOT NULL AND NOT o.cancelled"


def counted_orders(statement: Statement, join: str = "") -> str:
    """FROM and WHERE: the orders `o` that count, with their person as `m.profile`; `join`: what else belongs to them."""
    return f"FROM cdp.order_entity o {join} {statement.owner('o.node')} WHERE {COUNTED} AND o.at <= {statement.at}"


def figures(statement: Statement) -> str:
    """The name of rows of profile, n, spent, last."""
    return statement.once(
        "SELECT m.profile, count(*) AS n, sum(o.total - o.refunded) AS spent, max(o.at) AS last "
        f"{counted_orders(statement)} GROUP BY m.profile"
    )


def refunds_alone(statement: Statement) -> str:
    """The name of rows of profile, refunded: refunds of orders that nobody reported; of two reports of one the better counts."""
    best = (
        "SELECT DISTINCT ON (r.order_key, r.refund_key) r.node, r.amount, r.at FROM cdp.refund r "
        f"WHERE r.learned_at <= {statement.at} "
        "AND NOT EXISTS (SELECT FROM cdp.order_entity o WHERE o.key = r.order_key AND o.node IS NOT NULL) "
        "ORDER BY r.order_key, r.refund_key, r.trust DESC, r.at DESC, r.event DESC"
    )
    return statement.once(
        f"SELECT m.profile, sum(b.amount) AS refunded FROM ({best}) b {statement.owner('b.node')} "
        f"WHERE b.amount IS NOT NULL AND b.at <= {statement.at} GROUP BY m.profile"
    )


def over_figures(statement: Statement, rows: str, test: Test, *, others: bool) -> Bounds:
    """`test` over rows (by their name) of which there is one a profile.

    :param others: whether people without a row meet the condition
    """
    found = f"SELECT profile FROM {rows} f WHERE {'NOT ' if others else ''}({test.expression})"
    return statement.of_settled(statement.among(found, found, others=others))
