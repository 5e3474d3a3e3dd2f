"""`dripline rules apply|diff|backtest`: rules, templates and offers as files, sent to a server through its public API.

A folder holds rules (`*.yml`), `templates/` and `offers.yml`; a single rule's file may be named too.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from rich.console import Console

from services.dispatch.cli import apply_templates
from services.first_start import read_credentials
from services.triggers.cli import apply_rules, backtest_rules, diff_rules
from shared.errors import ConfigurationError
from shared.server_urls import refuse_unusable

SHIPPED = Path(__file__).parent.parent / "rules"


def server_and_key(url: str | None, key: str | None, data: Path) -> tuple[str, str]:
    """As given, else from the credentials of the first start in `data`.

    :raises ConfigurationError: there are none, or `url` cannot be asked
    """
    try:
        refuse_unusable(url or "")
    except ValueError as problem:
        raise ConfigurationError(f"--url {problem}.") from None
    if url and key:
        return url, key
    path = data / "credentials.json"
    try:
        known = read_credentials(path)
    except OSError as problem:
        raise ConfigurationError(
            f"No server and key: give --url and --key, or --data with the folder of a server that was started ({path})."
        ) from problem
    return url or str(known["url"]), key or str(known["api_key"])


def templates_home(directory: Path) -> Path | None:
    """The folder whose `templates/` these rules use: their own, or the one above (`rules/examples` uses those of `rules`)."""
    folder = directory if directory.is_dir() else directory.parent
    return next((place for place in (folder, folder.absolute().parent) if (place / "templates").is_dir()), None)


def apply_directory(
    directory: Path, url: str | None, key: str | None, data: Path, *, activate: bool, console: Console
) -> None:
    """Sends templates and offers first (rules name them), then the rules. Prints a line for each."""
    url, key = server_and_key(url, key, data)
    if (home := templates_home(directory)) is not None:
        for line in apply_templates(home, url, key):
            console.print(line, highlight=False)
    for line in apply_rules(directory, url, key, activate=activate):
        console.print(line, highlight=False)


def diff_directory(directory: Path, url: str | None, key: str | None, data: Path, *, console: Console) -> None:
    """Prints what `apply` would change, rule by rule."""
    url, key = server_and_key(url, key, data)
    for line in diff_rules(directory, url, key):
        console.print(line, highlight=False)


def backtest_directory(
    directory: Path,
    url: str | None,
    key: str | None,
    data: Path,
    *,
    since: datetime | None,
    until: datetime | None,
    console: Console,
) -> None:
    """Prints what each rule would have done in the period, rule by rule."""
    url, key = server_and_key(url, key, data)
    for line in backtest_rules(directory, url, key, since=since, until=until):
        console.print(line, highlight=False)
