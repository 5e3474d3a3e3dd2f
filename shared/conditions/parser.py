"""A condition document (what YAML or JSON gave) → a condition."""

from __future__ import annotations

from typing import Any

from shared.conditions.errors import ConditionError, joined, unknown
from shared.conditions.model import AllOf, AnyOf, Condition, NotOf
from shared.conditions.registry import kinds, unavailable
from shared.conditions.validation import validated

JOINS = ("all", "any", "not")
DEEPEST = 20


def parse(document: Any, pointer: str = "", depth: int = 0) -> Condition:
    """The condition that `document` says; several keys in one mapping mean *all* of them.

    :param pointer: where the document stands in the whole one, for errors
    :raises ConditionError: unknown or unavailable condition, wrong parameters, nothing to judge
    """
    if depth > DEEPEST:
        raise ConditionError(pointer, f"conditions are nested deeper than {DEEPEST}")
    if not isinstance(document, dict):
        raise ConditionError(
            pointer, f"a condition is a mapping such as {{cart: {{not_empty: true}}}}, not {document!r}"
        )
    if not document:
        raise ConditionError(pointer, "is empty: name a condition, or leave the field out")
    parts = tuple(_parse_key(str(key), value, joined(pointer, str(key)), depth) for key, value in document.items())
    return parts[0] if len(parts) == 1 else AllOf(parts)


def _parse_key(key: str, value: Any, pointer: str, depth: int) -> Condition:
    if key == "not":
        return NotOf(parse(value, pointer, depth + 1))
    if key in ("all", "any"):
        if not isinstance(value, list) or not value:
            raise ConditionError(pointer, f"{key} takes a list of conditions with at least one in it")
        parts = tuple(parse(one, joined(pointer, index), depth + 1) for index, one in enumerate(value))
        return AllOf(parts) if key == "all" else AnyOf(parts)
    if waiting := unavailable().get(key):
        raise ConditionError(
            pointer, f"{key} is not available: it needs {waiting}, which this version does not keep yet"
        )
    kind = kinds().get(key)
    if kind is None:
        raise ConditionError(pointer, unknown("condition", key, [*kinds(), *unavailable(), *JOINS]))
    if value is None:
        raise ConditionError(pointer, f"{key} is empty: write for example {key}: {kind.examples[0]!r}")
    return kind(validated(kind.parameters_type, value, pointer), document={key: value}, pointer=pointer)
