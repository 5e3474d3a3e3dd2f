"""`enter: {on: …, where: …, if: …}`: by an event; with `idle`, by a time without another of these events."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from services.triggers.entries.base import Entry, may_enter
from shared.conditions import Where, where_holds
from shared.conditions.fields import Duration, Strict, refusal
from shared.conditions.where import current_name
from shared.facts.model import EventFact


class Parameters(Strict):
    """By an event: `{on: Product Viewed, where: {category: {eq: shoes}}, idle: 1h, if: {cart: {not_empty: true}}}`."""

    on: list[str] = Field(min_length=1, max_length=50)
    where: Where | None = None
    idle: Duration | None = None
    if_: dict[str, Any] | None = Field(default=None, alias="if", title="Condition")

    @field_validator("on", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        names = value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str) or len(name) > 200:
                raise refusal(f"is the name of an event, such as Product Viewed, or a list of names, not {name!r}")
        return [current_name(name) for name in names]


class EventEntry(Entry):
    """Entered by an event, or after `idle` without another one of them."""

    key = "on"
    trigger: ClassVar[Literal["event", "schedule"]] = "event"
    parameters_type = Parameters
    parameters: Parameters
    examples = [
        {"on": "Product Viewed", "where": {"category": {"in": ["shoes", "boots"]}}},
        {
            "on": ["Product Added", "Product Removed", "Checkout Started"],
            "idle": "1h",
            "if": {"cart": {"not_empty": True}},
        },
    ]

    @property
    def names(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(self.parameters.on)

    @property
    def idle(self) -> timedelta | None:  # type: ignore[override]
        return self.parameters.idle

    def matches(self, event: EventFact) -> bool:
        return event.name in self.names and may_enter(event) and where_holds(self.parameters.where, event.properties)
