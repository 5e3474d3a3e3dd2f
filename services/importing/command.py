"""`dripline import FILE --mapping NAME`: the command line of an import."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from services.importing.mapping import Mapping, load_mapping
from services.importing.problems import ImportProblem
from services.importing.report import LeftOutFile, Report
from services.importing.runner import Import, Position, read_records, run_import
from services.importing.state import beside, default_state_home
from shared.server_urls import refuse_unusable


def import_command(
    file: Annotated[Path, typer.Argument(help="The file: CSV or JSON lines, also packed (.xz, .gz, .bz2).")],
    mapping: Annotated[str, typer.Option(help="A mapping's file, or the name of a shipped one.")],
    url: Annotated[
        str | None, typer.Option(envvar="DRIPLINE_URL", help="The server; by default the one of --data.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            envvar=["DRIPLINE_WRITE_KEY", "DRIPLINE_SERVER_WRITE_KEY"],
            help="A secret source's write key; by default that of --data.",
        ),
    ] = None,
    data: Annotated[Path, typer.Option(help="Data folder whose credentials.json names server and key.")] = Path("data"),
    live: Annotated[
        bool, typer.Option("--live", help="Events of today that may start rules; otherwise history.")
    ] = False,
    state: Annotated[Path | None, typer.Option(help="Progress file; by default beside the file.")] = None,
    left_out: Annotated[
        Path | None, typer.Option(help="Where rows left out are listed; by default beside the file.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests under way at a time (history).")] = 4,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to wait for a server that does not answer.")] = 120.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and report only; send nothing.")] = False,
) -> None:
    """Import a file of events through the public API; can be broken off (Ctrl-C) and resumed by the same command."""
    console = Console(stderr=True)
    try:
        listed = left_out or beside(file, ".left-out.csv", default_state_home())
        chosen = load_mapping(mapping)
        if dry_run:
            _tell(console, _dry_run(file, chosen, listed, live), listed, dry_run=True)
            return
        url, key = _server(url, key, data)
        kept = state or beside(file, ".progress.json", default_state_home())
        job = Import(file, chosen, url, key, kept, listed, live, concurrency, patience)
        with _progress_bar(console, file.name) as (on_progress, on_retry):
            report = asyncio.run(run_import(job, on_progress=on_progress, on_retry=on_retry))
    except ImportProblem as problem:
        console.print(f"[red]{problem}[/red]", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from problem
    except KeyboardInterrupt:
        console.print("Broken off. The same command goes on where this one stopped.")
        raise typer.Exit(130) from None
    _tell(console, report, listed)
    if report.refused:
        raise typer.Exit(2)


def _server(url: str | None, key: str | None, data: Path) -> tuple[str, str]:
    """Server and key as given, else from the data folder of a server on this machine."""
    try:
        refuse_unusable(url or "")
    except ValueError as problem:
        raise ImportProblem(f"--url {problem}") from None
    if url and key:
        return url, key
    path = data / "credentials.json"
    try:
        known = json.loads(path.read_text())
        return url or str(known["url"]), key or str(known["server_write_key"])
    except (OSError, ValueError, KeyError) as problem:
        raise ImportProblem(
            "no server and key: give --url and --key (a secret source's), or --data with a started server's folder "
            f"({path}: {problem})"
        ) from problem


def _dry_run(file: Path, mapping: Mapping, listed: Path, live: bool) -> Report:
    report, left_out = Report(), LeftOutFile(listed)
    with contextlib.closing(left_out):
        for record in read_records(file, mapping, live=live):
            report.add(record)
            for item in record.left_out:
                left_out.add(item)
    report.complete = True
    return report


@contextlib.contextmanager
def _progress_bar(console: Console, name: str) -> Iterator[tuple[Callable[[Position], None], Callable[[str], None]]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None, said="")

        def on_progress(position: Position) -> None:
            bar.update(task, completed=position.read, total=position.size, said=f"{position.sent} events sent")

        def on_retry(reason: str) -> None:
            bar.update(task, said=f"waiting: {reason}")

        yield on_progress, on_retry


def _tell(console: Console, report: Report, listed: Path, *, dry_run: bool = False) -> None:
    table = Table(show_header=False, box=None)
    table.add_row("rows read", str(report.rows))
    table.add_row("records", str(report.records))
    for name, count in report.events.most_common():
        table.add_row(f"  {name}", str(count))
    table.add_row("events sent", "none (dry run)" if dry_run else str(report.sent))
    if report.resumed:
        table.add_row("  of them before", str(report.resumed))
    table.add_row("rows left out", str(report.left_out.total()))
    for reason, count in report.left_out.most_common(10):
        table.add_row(f"  {reason}", str(count))
    for reason, count in report.refused.most_common(10):
        table.add_row(f"  [red]refused: {reason}[/red]", str(count))
    console.print(table)
    if report.left_out or report.refused:
        console.print(f"All of them with their reasons: {listed}", soft_wrap=True, highlight=False)
