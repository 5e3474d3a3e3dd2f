"""Step ids: given, or made from kind and template at the first save; they survive edits.

Message ids derive from them, and a run's place in a rule is written with them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from services.triggers.steps.base import STEP_ID, kind_of
from shared.conditions import ConditionError
from shared.conditions.errors import joined

Place = tuple[dict[str, Any], str]


def with_ids(document: dict[str, Any], stored: dict[str, Any] | None = None) -> dict[str, Any]:
    """A copy of a rule's document in which every step has an id.

    :param stored: the document in force; steps without id match its steps by kind, template and order
    :raises ConditionError: an id that is not well formed or given twice; a step of no known kind
    """
    document = _copied(document)
    places = list(_places(document.get("steps", []), "/steps"))
    given = _given(places)
    free: dict[tuple[str, str], list[str]] = defaultdict(list)
    taken = set(given)
    for step, place in _places(stored.get("steps", []), "/steps") if stored else ():
        taken.add(step["id"])
        if step["id"] not in given:
            free[_likeness(step, place)].append(step["id"])
    for step, place in places:
        if "id" not in step:
            likeness = _likeness(step, place)
            step["id"] = free[likeness].pop(0) if free[likeness] else _made(likeness, taken)
            taken.add(step["id"])
    return document


def _given(places: list[Place]) -> set[str]:
    found: set[str] = set()
    for step, place in places:
        if "id" not in step:
            continue
        at, id = joined(place, "id"), step["id"]
        if not isinstance(id, str) or not STEP_ID.fullmatch(id):
            raise ConditionError(at, f"an id is of a-z, 0-9, - and _, at most 100 characters, not {id!r}")
        if id in found:
            raise ConditionError(at, f"two steps have the id {id!r}: give one of them another, or leave it out")
        found.add(id)
    return found


def _places(steps: Any, pointer: str) -> Iterator[Place]:
    """All steps of a document with their pointers, in document order."""
    if not isinstance(steps, list):
        raise ConditionError(pointer, f"is a list of steps, not {steps!r}")
    for index, step in enumerate(steps):
        place = joined(pointer, index)
        kind = kind_of(step, place)
        yield step, place
        for nested, below in kind.lists(step[kind.key]).values():
            yield from _places(nested, joined(place, kind.key) + below)


def _likeness(step: dict[str, Any], place: str) -> tuple[str, str]:
    kind = kind_of(step, place)
    return kind.key, kind.template(step[kind.key])


def _made(likeness: tuple[str, str], taken: set[str]) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", "-".join(part for part in likeness if part).lower()).strip("-")[:90]
    number = 1
    while (made := words if number == 1 else f"{words}-{number}") in taken:
        number += 1
    return made


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
