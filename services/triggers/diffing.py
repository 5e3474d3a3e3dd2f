"""What changed between two versions of a rule, as a list that a person can read."""

from __future__ import annotations

from typing import Any

from shared.errors import json_pointer

ABSENT = object()


def differences(before: Any, after: Any, place: tuple[str | int, ...] = ()) -> list[dict[str, Any]]:
    """Every place at which the two documents differ: `{"at", "before", "after"}`, a side left out where there is nothing.
    Steps are matched by their id, so that one more step is one difference."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [
            one for key in keys for one in differences(before.get(key, ABSENT), after.get(key, ABSENT), (*place, key))
        ]
    if _are_steps(before) and _are_steps(after):
        return _of_steps(before, after, place)
    return [{"at": json_pointer(place)} | _side("before", before) | _side("after", after)]


def _side(name: str, value: Any) -> dict[str, Any]:
    return {} if value is ABSENT else {name: value}


def _are_steps(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "id" in one for one in value)


def _of_steps(before: list[Any], after: list[Any], place: tuple[str | int, ...]) -> list[dict[str, Any]]:
    old, new = {step["id"]: step for step in before}, {step["id"]: step for step in after}
    found = []
    for id in [*old, *(id for id in new if id not in old)]:
        found += differences(old.get(id, ABSENT), new.get(id, ABSENT), (*place, id))
    kept_old, kept_new = [id for id in old if id in new], [id for id in new if id in old]
    if kept_old != kept_new:
        found.append({"at": json_pointer(place), "before": kept_old, "after": kept_new})
    return found
