"""Rules as files: read a folder and send it to a server through its public API."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from services.triggers.documents import DocumentError, parse_documents
from services.triggers.rule import read
from shared.conditions import ConditionError
from shared.errors import ConfigurationError

NOT_RULES = {"offers.yml", "offers.yaml"}
TIMEOUT = 60.0  # seconds; the server answers when the rules are in force
BACKTEST = 120.0  # seconds; a backtest stops before


def read_rules(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The rules in a folder's `*.yml` and `*.json` (not in folders below it), or in one file, in the order of their names.

    Raises ConfigurationError with file and field for the first that is wrong.
    """
    if directory.is_file():
        paths = [directory]
    elif directory.is_dir():
        paths = sorted(
            p for p in directory.iterdir() if p.suffix in (".yml", ".yaml", ".json") and p.name not in NOT_RULES
        )
    else:
        raise ConfigurationError(f"There is no file or folder {directory}.")
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in paths:
        for document in _documents(path):
            known = next((other for other, rule in found if rule["name"] == document["name"]), None)
            if known is not None:
                raise ConfigurationError(f"{path} and {known} both hold a rule called {document['name']!r}.")
            found.append((path, document))
    return found


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        documents = parse_documents(path.read_bytes())
        for document in documents:
            read(document)
    except DocumentError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    except ConditionError as error:
        raise ConfigurationError(f"{path}: {error.pointer or 'the document'} {error.message}") from error
    return documents


def apply_rules(directory: Path, url: str, key: str, *, activate: bool = False) -> Iterator[str]:
    """Sends the rules of a folder; yields a line for each: made, changed (and what), or as it was.

    Raises ConfigurationError when a file is wrong, or the server cannot be reached or refuses.
    """
    rules = read_rules(directory)
    if not rules:
        yield f"{directory}: no rules"
        return
    documents = [document for _, document in rules]
    answer = _call(
        "POST", f"{url}/v1/rules/apply", key, params={"activate": str(activate).lower()}, json={"rules": documents}
    )
    for one in answer["items"]:
        what = {"created": "made", "changed": "changed", "unchanged": "as it was"}[one["result"]]
        yield f"rule {one['name']}: {what}, version {one['version']}, {one['state']}"
        yield from (f"    {_in_words(difference)}" for difference in one["differences"])


def diff_rules(directory: Path, url: str, key: str) -> Iterator[str]:
    """Yields a line for everything that `apply_rules` would change, and for what becomes of the people inside."""
    for _, document in read_rules(directory):
        found = _call("POST", f"{url}/v1/rules/{document['name']}/diff", key, missing=True, json=document)
        if found is None:
            yield f"rule {document['name']}: new"
            continue
        yield f"rule {document['name']}: {'changes' if found['differences'] else 'as it is'}"
        yield from (f"    {_in_words(difference)}" for difference in found["differences"])
        if found["differences"]:
            yield from (f"    {_of_people(one)}" for one in found["inside"])


def _call(method: str, url: str, key: str, *, missing: bool = False, timeout: float = TIMEOUT, **more: Any) -> Any:
    try:
        answer = httpx.request(method, url, headers={"Authorization": f"Bearer {key}"}, timeout=timeout, **more)
    except httpx.HTTPError as error:
        raise ConfigurationError(f"The server at {url} cannot be reached: {error}") from error
    if missing and answer.status_code == 404:
        return None
    if answer.is_error:
        raise ConfigurationError(_complaint(answer))
    return answer.json()


def _complaint(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
    except ValueError:
        return f"The server answered {answer.status_code}."
    details = [f"{one.get('pointer', '')} {one.get('detail', '')}".strip() for one in problem.get("errors", [])]
    return f"The server refused: {problem.get('title')}. " + "; ".join(details or [str(problem.get("detail", ""))])


def backtest_rules(
    directory: Path, url: str, key: str, *, since: datetime | None = None, until: datetime | None = None
) -> Iterator[str]:
    """Yields what each rule of a folder would have done in a period (by default the server's last 30 days).

    Raises ConfigurationError when a file is wrong, or the server cannot be reached or refuses.
    """
    period = {name: moment.isoformat() for name, moment in (("since", since), ("until", until)) if moment is not None}
    for _, document in read_rules(directory):
        found = _call("POST", f"{url}/v1/rules/backtest", key, timeout=BACKTEST, params=period, json=document)
        entered = found["entered"]
        whole = "" if found["complete"] else " (stopped at its limit: not everybody was looked at)"
        yield (
            f"rule {document['name']}, {found['since']} to {found['until']}: of {found['people']} people "
            f"{entered['treated'] + entered['held_out']} entered, {entered['held_out']} of them held out{whole}"
        )
        for one in found["intents"]:
            yield f"    {one['step']}: {one['treated']} messages of {one['template']}, {one['held_out']} held out"
        yield from (f"    {how}: {count}" for how, count in sorted(found["ended"].items()))
        if found["failed"]:
            yield f"    the rule failed {found['failed']} times"


def _of_people(inside: dict[str, Any]) -> str:
    becomes = {"moves": "move", "finishes": f"finish by version {inside['version']}", "ends": "end there"}
    return f"people inside: {inside['people']} at {inside['step']} {becomes[inside['becomes']]}"


def _in_words(difference: dict[str, Any]) -> str:
    if "before" not in difference:
        return f"+ {difference['at']}: {difference['after']}"
    if "after" not in difference:
        return f"- {difference['at']}: {difference['before']}"
    return f"{difference['at']}: {difference['before']} → {difference['after']}"
