"""The JSON schema of rule documents, made from the same types that read them."""

from __future__ import annotations

from typing import Any

from services.triggers.entries.base import kinds as entry_kinds
from services.triggers.rule import Header
from services.triggers.steps.base import kinds as step_kinds
from shared import conditions

URL = "https://json-schema.org/draft/2020-12/schema"
CONDITION, EVENT, STEPS = ({"$ref": f"#/$defs/{name}"} for name in ("Condition", "EventMatch", "steps"))


def schema() -> dict[str, Any]:
    """A JSON schema (2020-12) of the whole language."""
    defs: dict[str, Any] = {}
    rule = _hoisted(Header.model_json_schema(by_alias=True), defs)
    rule["properties"]["enter"] = {"oneOf": [_entry(kind, defs) for kind in entry_kinds().values()]}
    rule["properties"]["steps"] = STEPS
    rule["properties"]["stop"] = {"type": "array", "items": {"anyOf": [EVENT, CONDITION]}}
    defs["steps"] = {
        "type": "array",
        "items": {"oneOf": [_step(key, kind, defs) for key, kind in step_kinds().items()]},
    }
    defs |= conditions.schema()["$defs"]
    defs["condition_with_steps"] = _with_branches(defs["Condition"])
    return {"$schema": URL, **rule, "title": "Dripline rule", "$defs": defs}


def _hoisted(found: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    defs |= found.pop("$defs", {})
    return found


def _entry(kind: Any, defs: dict[str, Any]) -> dict[str, Any]:
    found = _hoisted(kind.parameters_type.model_json_schema(by_alias=True), defs)
    found["properties"][kind.condition_key] = CONDITION
    if kind.key == "on":
        found["properties"]["on"] = {"anyOf": [{"type": "string"}, found["properties"]["on"]]}
    found["examples"] = kind.examples
    return found


def _step(key: str, kind: Any, defs: dict[str, Any]) -> dict[str, Any]:
    value = _hoisted(kind.schema(STEPS), defs)
    value = {**value, "examples": kind.examples}
    return {
        "type": "object",
        "properties": {"id": {"type": "string"}, key: value},
        "required": [key],
        "additionalProperties": False,
        "description": (kind.__doc__ or "").strip().split("\n")[0],
    }


def _with_branches(condition: dict[str, Any]) -> dict[str, Any]:
    """A condition's mapping that has `then` and `else` beside it."""
    return {**condition, "properties": {**condition.get("properties", {}), "then": STEPS, "else": STEPS}}
