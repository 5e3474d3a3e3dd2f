"""Filling `{{ … }}` in the values of `set` and `emit`: paths into what the run knows, nothing more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from services.triggers.steps.base import Here

PLACE = re.compile(r"\{\{\s*([a-z_][\w.]*)\s*\}\}", re.IGNORECASE)
ROOTS = ("event", "person", "run")


def unknown_roots(value: Any) -> list[str]:
    """Paths in `value` that begin with something there is not."""
    if isinstance(value, str):
        return [path for path in PLACE.findall(value) if path.split(".")[0] not in ROOTS]
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [path for child in children for path in unknown_roots(child)]


def filled(value: Any, here: Here) -> Any:
    """`value` with every `{{ path }}` replaced; a text that is one path alone becomes the value itself, None if absent."""
    if isinstance(value, Mapping):
        return {str(key): filled(item, here) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, here) for item in value]
    if not isinstance(value, str):
        return value
    if whole := PLACE.fullmatch(value.strip()):
        return _look_up(whole[1], here)
    return PLACE.sub(lambda match: "" if (found := _look_up(match[1], here)) is None else str(found), value)


def _look_up(path: str, here: Here) -> Any:
    root, *steps = path.split(".")
    run = here.run
    known: dict[str, Any] = {
        "event": run.event.properties if run.event else {},
        "person": here.facts.traits,
        "run": {"id": str(run.id), "rule": here.rule.name},
    }
    found: Any = known.get(root)
    for step in steps:
        found = found.get(step) if isinstance(found, Mapping) else None
    return found
