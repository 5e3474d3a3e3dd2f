"""`where`: what an event's properties must be; and the events that a rule names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, RootModel, field_validator, model_validator

from shared.conditions.fields import Comparison, Strict, refusal
from shared.conditions.validation import validated
from shared.conditions.values import values_at
from shared.events import V1_NAMES


class Where(RootModel[dict[str, Comparison]]):
    """Comparisons by property; all must hold. A dotted name (`products.category`) goes into mappings and through lists:
    then one of the values it finds must meet the comparison."""

    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, document: Any) -> Any:
        if not isinstance(document, dict) or not document:
            raise refusal(f"names no property: write for example {{total: {{gt: 3000}}}}, not {document!r}")
        return {str(key): value for key, value in document.items()}

    def accepts(self, properties: Mapping[str, Any]) -> bool:
        """Whether the properties meet all comparisons."""
        return all(accepts_at(properties, path, comparison) for path, comparison in self.root.items())


def accepts_at(properties: Mapping[str, Any], path: str, comparison: Comparison) -> bool:
    """Whether one of the values at `path` (or their absence) meets the comparison."""
    values = list(values_at(properties, path))
    return any(comparison.accepts(value) for value in values) if values else comparison.accepts(None)


def current_name(name: str) -> str:
    """The event's name as it is stored: names of the e-commerce spec v1 are those of v2."""
    name = name.strip()
    if not name:
        raise refusal("is empty: name an event, such as Order Completed")
    return V1_NAMES.get(name, name)


class EventMatch(Strict):
    """An event that a rule names: `{event: Order Completed, where: {total: {gt: 0}}}`."""

    event: str = Field(max_length=200)
    where: Where | None = None

    _current_name = field_validator("event")(current_name)

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, document: Any) -> Any:
        return {"event": document} if isinstance(document, str) else document


def parse_where(document: Any, pointer: str = "") -> Where:
    """:raises ConditionError: with the pointer of the property at fault"""
    return validated(Where, document, pointer)


def where_holds(where: Where | None, properties: Mapping[str, Any]) -> bool:
    """Whether an event with these properties is meant; without `where` every one is."""
    return where is None or where.accepts(properties)


def parse_match(document: Any, pointer: str = "") -> EventMatch:
    """From a mapping `{event, where}` or a bare event name.

    :raises ConditionError: with the pointer of the field at fault
    """
    return validated(EventMatch, document, pointer)


def match_holds(match: EventMatch, name: str, properties: Mapping[str, Any]) -> bool:
    """Whether the event of this (stored) name with these properties is the one that `match` names."""
    return match.event == name and where_holds(match.where, properties)
