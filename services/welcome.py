"""What a person at the terminal sees when the server is up."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from services.run import Server


def welcome(console: Console, server: Server, made: dict[str, Any] | None) -> None:
    """Prints where to look; after a first start also where the keys are kept, and to a terminal the keys themselves:
    what is not a terminal is a log."""
    rows = {"API and its documentation": f"{server.origin}/docs"}
    if "dispatch" in server.services:
        rows["Messages that were sent"] = f"{server.origin}/inbox"
    if vain := server.context.settings.set_in_vain:
        rows["Does nothing in .env or the shell"] = f"{', '.join(vain)} (see Secrets in docs/OPERATIONS.md)"
    if made is not None:
        if console.is_terminal:
            rows["Write key of the website (public)"] = made["site_write_key"] or "–"
            rows["Write key of the server (secret)"] = made["server_write_key"] or "–"
            rows["API key (admin)"] = made["api_key"]
        rows["Keys of the first start are kept in"] = str(server.context.settings.credentials_file)
    title = f"Dripline is up: {', '.join(server.services)}"
    if not console.is_terminal:
        for name, value in [(title, ""), *rows.items()]:
            console.print(f"{name}  {value}".rstrip(), soft_wrap=True, highlight=False)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(Panel(table, title=title, subtitle="Ctrl-C stops it", expand=False))
