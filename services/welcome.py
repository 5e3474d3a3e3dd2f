"""What a person at the terminal sees when the server is up."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from services.run import Server


def welcome(console: Console, server: Server, made: dict[str, Any] | None) -> None:
    """Prints where to look; after a first start also the keys, and where they are kept."""
    rows = Table.grid(padding=(0, 2))
    rows.add_row("API and its documentation", f"{server.origin}/docs")
    if "dispatch" in server.services:
        rows.add_row("Messages that were sent", f"{server.origin}/inbox")
    if made is not None:
        rows.add_row("", "")
        rows.add_row("Write key of the website (public)", made["site_write_key"] or "–")
        rows.add_row("Write key of the server (secret)", made["server_write_key"] or "–")
        rows.add_row("API key (admin)", made["api_key"])
        rows.add_row("kept in", str(server.context.settings.credentials_file))
    title = f"Dripline is up: {', '.join(server.services)}"
    if console.is_terminal:
        console.print(Panel(rows, title=title, subtitle="Ctrl-C stops it", expand=False))
    else:
        console.print(title)
        console.print(rows)
