"""What came of the demonstration, counted from the rows that the four services wrote."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from services.audit import audit_and_print
from services.run import Server
from shared.db import Tx

REASONS = 15  # rows of "Not sent, and why"; the rest is summed up
COUNTS = {
    "events applied": "SELECT count(*) FROM cdp.event",
    "people known": "SELECT count(*) FROM cdp.profile",
    "profiles that became part of another": "SELECT count(*) FROM cdp.profile_alias",
    "orders": "SELECT count(*) FROM cdp.order_entity WHERE total IS NOT NULL AND NOT cancelled AND NOT history",
    "runs of rules": "SELECT count(*) FROM triggers.run",
    "  of them held out (ghosts)": "SELECT count(*) FROM triggers.run WHERE ghost",
}


async def print_report(server: Server, stats: dict[str, Any], slices: int, console: Console) -> bool:
    """Prints it; returns whether the books balance and every decision comes out the same when it is computed again."""
    async with server.context.database.connection() as connection:
        console.print()
        _print_pairs(
            console,
            "What happened",
            {**{k: await connection.fetchval(q) for k, q in COUNTS.items()}, "slices of time": slices},
        )
        await _print_messages(console, connection)
        await _print_withheld(console, connection)
        await _print_goals(console, connection)
        url = server.context.database.url
    _print_shop(console, stats)
    return await audit_and_print(server.context.settings, url, console, derive=True)


def _print_pairs(console: Console, title: str, pairs: dict[str, Any]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in pairs.items():
        table.add_row(name, f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value))
    console.print(table)
    console.print()


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < 2 else "right")
    return table


async def _print_messages(console: Console, connection: Tx) -> None:
    rows = await connection.fetch(
        """
        SELECT m.rule_name, m.channel, count(*) AS sent, coalesce(sum(c.amount), 0) AS cost,
               count(*) FILTER (WHERE h.kinds ? 'open') AS opened, count(*) FILTER (WHERE h.kinds ? 'click') AS clicked
        FROM dispatch.message m
        LEFT JOIN (SELECT message, sum(amount) AS amount FROM dispatch.charge GROUP BY 1) c ON c.message = m.id
        LEFT JOIN (
            SELECT message, jsonb_agg(kind) AS kinds FROM dispatch.hit WHERE NOT bot GROUP BY 1
        ) h ON h.message = m.id
        WHERE m.state = 'sent' GROUP BY 1, 2 ORDER BY 1, 3 DESC
        """
    )
    table = _table("Messages sent", "rule", "channel", "sent", "opened", "clicked", "cost")
    for row in rows:
        table.add_row(
            row["rule_name"],
            row["channel"],
            *(str(row[n]) for n in ("sent", "opened", "clicked")),
            f"{row['cost']:.2f}",
        )
    totals = [str(sum(row[name] for row in rows)) for name in ("sent", "opened", "clicked")]
    cost = f"{sum(row['cost'] for row in rows):.2f}"
    table.add_row("all", "", *totals, cost, style="bold")
    console.print(table)
    console.print()


async def _print_withheld(console: Console, connection: Tx) -> None:
    rows = await connection.fetch(
        """
        SELECT rule_name, coalesce(reason_code, state) AS code, count(*), min(reason) AS example
        FROM dispatch.message WHERE state IN ('withheld', 'failed', 'unknown') AND intended
        GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
        """
    )
    rows, rest = rows[:REASONS], rows[REASONS:]
    table = Table(title="Not sent, and why", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("rule", "reason"):
        table.add_column(name, no_wrap=True)
    table.add_column("times", justify="right", no_wrap=True)
    table.add_column("for example", ratio=1)
    for row in rows:
        table.add_row(row["rule_name"], row["code"], str(row["count"]), row["example"] or "")
    if rest:
        table.add_row("others", f"{len(rest)} more reasons", str(sum(row["count"] for row in rest)), "")
    table.add_row("all", "", str(sum(row["count"] for row in [*rows, *rest])), "", style="bold")
    console.print(table)
    console.print()


async def _print_goals(console: Console, connection: Tx) -> None:
    rows = await connection.fetch(
        """
        SELECT r.name, count(*) FILTER (WHERE NOT o.ghost) AS treated,
               count(*) FILTER (WHERE NOT o.ghost AND o.goal_at IS NOT NULL) AS reached,
               coalesce(sum(o.revenue) FILTER (WHERE NOT o.ghost), 0) AS revenue,
               count(*) FILTER (WHERE o.ghost) AS ghosts,
               count(*) FILTER (WHERE o.ghost AND o.goal_at IS NOT NULL) AS ghosts_reached
        FROM dispatch.outcome o JOIN triggers.rule r ON r.id = o.rule GROUP BY 1 ORDER BY 1
        """
    )
    table = Table(title="What followed (closed goal windows)", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("rule")
    for name in ("treated", "reached the goal", "revenue", "ghosts", "reached it"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            str(row["treated"]),
            str(row["reached"]),
            f"{row['revenue']:.2f}",
            str(row["ghosts"]),
            str(row["ghosts_reached"]),
        )
    console.print(table)
    console.print()


def _print_shop(console: Console, stats: dict[str, Any]) -> None:
    """What the shop itself says it did: its own count, to be held against the rows above."""
    told = {name: value for name, value in stats.items() if isinstance(value, int)}
    if told:
        _print_pairs(console, "What the shop says it did", told)
