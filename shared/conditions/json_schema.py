"""The JSON schema of condition documents, made from the kinds' own types."""

from __future__ import annotations

import inspect
from typing import Any

from shared.conditions.registry import kinds
from shared.conditions.where import EventMatch


def schema(ref_prefix: str = "#/$defs/") -> dict[str, Any]:
    """A JSON schema (2020-12) whose root is a condition; `$defs` holds `Condition`, `EventMatch` and what they use.

    :param ref_prefix: where the caller will put the definitions
    """
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {
        "all": _list_of_conditions(ref_prefix, "Every one holds."),
        "any": _list_of_conditions(ref_prefix, "At least one holds."),
        "not": {"$ref": f"{ref_prefix}Condition", "description": "It does not hold."},
    }
    for name, kind in kinds().items():
        own = kind.parameters_type.model_json_schema(by_alias=True, ref_template=f"{ref_prefix}{{model}}")
        _add(definitions, own.pop("$defs", {}))
        own["description"] = inspect.getdoc(kind)
        own["examples"] = list(kind.examples)
        definitions[f"Condition.{name}"] = own
        properties[name] = {"$ref": f"{ref_prefix}Condition.{name}"}
    match = EventMatch.model_json_schema(by_alias=True, ref_template=f"{ref_prefix}{{model}}")
    _add(definitions, match.pop("$defs", {}))
    definitions["EventMatch"] = {"anyOf": [{"type": "string", "minLength": 1}, match]}
    definitions["Condition"] = {
        "type": "object",
        "description": "Conditions; several keys in one mapping mean all of them.",
        "properties": properties,
        "additionalProperties": False,
        "minProperties": 1,
    }
    return _tidied({"$ref": f"{ref_prefix}Condition", "$defs": definitions})


def _list_of_conditions(ref_prefix: str, description: str) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": {"$ref": f"{ref_prefix}Condition"}, "description": description}


def _add(definitions: dict[str, Any], more: dict[str, Any]) -> None:
    for name, definition in more.items():
        if definitions.setdefault(name, definition) != definition:
            raise TypeError(f"two condition kinds have different parameter types called {name!r}")


def _tidied(value: Any) -> Any:
    """Without defaults and null: both only say "not given", but would suggest to write them."""
    if isinstance(value, list):
        return [_tidied(item) for item in value]
    if not isinstance(value, dict):
        return value
    tidied = {key: _tidied(item) for key, item in value.items() if key != "default"}
    choices = [choice for choice in tidied.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        del tidied["anyOf"]
        tidied = {**choices[0], **tidied} if "$ref" not in choices[0] else {**tidied, **choices[0]}
    return tidied
