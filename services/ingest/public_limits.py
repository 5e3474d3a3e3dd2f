"""What anybody can type into a web page ends up in somebody's letter: names are cut, foreign links are taken out.

For events of public sources. The event itself stays; what was changed stands in `context.dripline.removed`.
"""

from __future__ import annotations

import re
from typing import Any

from services.ingest.refusal import pointer_to

LONGEST_NAME = 200
LONGEST_LINK = 2_048
_NAMES = frozenset(
    """
    name first_name last_name firstName lastName full_name fullName username title company brand category variant
    list list_name affiliation city
    """.split()
)
# Where the visitor came from is foreign by nature, and is never put into a message.
_FOREIGN_BY_NATURE = frozenset({"referrer", "referring_domain", "search", "initial_referrer"})
_SCRIPT = re.compile(r"\s*(?:javascript|data|vbscript|file|blob)\s*:", re.IGNORECASE)
# A scheme with its slashes (browsers forgive wrong or missing ones), two slashes at the very start, or a bare www.
_LINK = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*):[/\\]{2,}(?P<host>[^/\\?#\s\"'<>]*)"
    r"|\b(?P<bare>https?):(?![/\\]{2})"
    r"|^\s*[/\\]{2}(?P<relative>[^/\\?#\s\"'<>]*)"
    r"|\b(?P<www>www\.[^/\\?#\s\"'<>:]*)",
    re.IGNORECASE,
)


def limited(fields: dict[str, Any], hosts: frozenset[str], place: str, removed: list[str]) -> dict[str, Any]:
    """`fields` without foreign links and overlong names; the same object if nothing changed.

    `place`: `properties` or `traits`. `removed` gets a sentence for each change. `hosts`: what links may lead to.
    """
    return _object(fields, hosts, (place,), removed)


def _object(
    fields: dict[str, Any], hosts: frozenset[str], path: tuple[str | int, ...], removed: list[str]
) -> dict[str, Any]:
    changed: dict[str, Any] | None = None
    new: Any
    for name, value in fields.items():
        kind, new = type(value), value
        if kind is str:
            if len(value) > LONGEST_NAME or ":" in value or "/" in value or "." in value or "\\" in value:
                new = _text(name, value, hosts, path, removed)
        elif kind is dict:
            new = _object(value, hosts, (*path, name), removed)
        elif kind is list:
            new = _list(name, value, hosts, (*path, name), removed)
        if new is not value:
            changed = dict(fields) if changed is None else changed
            if new is None:
                del changed[name]
            else:
                changed[name] = new
    return fields if changed is None else changed


def _list(
    name: str, values: list[Any], hosts: frozenset[str], path: tuple[str | int, ...], removed: list[str]
) -> list[Any]:
    kept: list[Any] = []
    same = True
    for index, value in enumerate(values):
        new = value
        if type(value) is dict:
            new = _object(value, hosts, (*path, index), removed)
        elif type(value) is list:
            new = _list(name, value, hosts, (*path, index), removed)
        elif type(value) is str:
            new = _text(str(index), value, hosts, path, removed)
        same = same and new is value
        if new is not None or value is None:
            kept.append(new)
    return values if same else kept


def _text(name: str, value: str, hosts: frozenset[str], path: tuple[str | int, ...], removed: list[str]) -> str | None:
    if name not in _FOREIGN_BY_NATURE and (flaw := link_flaw(value, hosts)):
        removed.append(f"{pointer_to(*path, name)}: {flaw}")
        return None
    if len(value) > LONGEST_NAME and name in _NAMES:
        removed.append(f"{pointer_to(*path, name)}: cut to {LONGEST_NAME} characters")
        return value[:LONGEST_NAME]
    return value


def link_flaw(text: str, hosts: frozenset[str]) -> str | None:
    """Why `text` may not be kept: it is, or contains, a link that does not lead to the shop."""
    if ":" not in text and "//" not in text and "\\" not in text and "www." not in text.lower():
        return None
    if _SCRIPT.match(text):
        return "a script, not a link"
    for match in _LINK.finditer(text):
        if match["bare"]:
            return "a link without a host"
        if match["scheme"] and match["scheme"].lower() not in ("http", "https"):
            return "a link that is not http or https"
        host = (
            match["host"] if match["scheme"] else match["relative"] if match["relative"] is not None else match["www"]
        )
        if _host(host) not in hosts:
            return "a link to a host that is not the shop's (SHOP_HOSTS)"
        if len(text) > LONGEST_LINK:
            return f"a link of more than {LONGEST_LINK} characters"
    return None


def _host(authority: str) -> str:
    host = authority.rpartition("@")[2]
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.partition(":")[0].rstrip(".").lower()
