"""The books as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from services.audit.books import Amount, Book

MOST = 20  # differences shown


def print_books(console: Console, books: Sequence[Book]) -> None:
    """One row a book; beneath it what is missing."""
    table = Table(title="The books", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("book")
    table.add_column("on one side")
    table.add_column("on the other")
    for book in books:
        table.add_row(
            "[green]✓[/green]" if book.balanced else "[red]✗[/red]", book.name, _terms(book.left), _terms(book.right)
        )
    console.print(table)
    for book in books:
        if book.difference:
            console.print(f"[red]{book.name}: the sides differ by {book.difference}[/red]", highlight=False)
        for stray in book.strays:
            console.print(f"[red]  {stray}[/red]", highlight=False)


def _terms(amounts: Mapping[str, Amount]) -> str:
    shown = {name: amount for name, amount in amounts.items() if amount} or dict(list(amounts.items())[:1])
    return " + ".join(f"{amount:,} {name}".replace(",", " ") for name, amount in shown.items())


def print_again(console: Console, what: str, counts: Mapping[str, int], differences: Sequence[Any]) -> None:
    """How much was computed again, by name, and what came out differently."""
    colour = "red" if differences else "green"
    told = ", ".join(f"{count:,} {name}".replace(",", " ") for name, count in counts.items())
    console.print(
        f"[{colour}]{what}, computed again: {len(differences)} differences[/{colour}] ({told})", highlight=False
    )
    for difference in differences[:MOST]:
        console.print(f"  {difference}", highlight=False)
