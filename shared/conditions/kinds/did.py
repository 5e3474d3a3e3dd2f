"""`did`: how often something happened."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pydantic import Field, model_validator

from shared.conditions.counting import Counted, events_counted, largest_group
from shared.conditions.fields import Count, refusal
from shared.conditions.model import Leaf, Look, Moment, Needs
from shared.conditions.sql.builder import Bounds, Statement
from shared.conditions.sql.events import count_bounds
from shared.facts.model import Facts


class Parameters(Counted):
    """`same` counts the largest group of events that share a value: the product that was viewed most."""

    at_least: Count | None = None
    at_most: Count | None = None
    same: str | None = Field(default=None, min_length=1, max_length=200)

    @model_validator(mode="after")
    def _in_order(self) -> Parameters:
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise refusal("at_least is greater than at_most: no count is both", field="at_most")
        return self

    @property
    def fewest(self) -> int:
        """`at_least`; 1 when neither bound is given, 0 when only `at_most` is."""
        if self.at_least is not None:
            return self.at_least
        return 1 if self.at_most is None else 0

    def accepts(self, count: int) -> bool:
        """Whether the count is within the bounds."""
        return self.fewest <= count and (self.at_most is None or count <= self.at_most)


class Did(Leaf):
    """At least once, unless `at_least` or `at_most` say otherwise."""

    name = "did"
    parameters_type = Parameters
    examples = (
        {"event": "Order Completed", "at_least": 2, "at_most": 5, "within": "90d", "where": {"total": {"gt": 3000}}},
        {"event": "Product Viewed", "at_least": 3, "same": "product_id", "since": "entry"},
    )
    parameters: Parameters

    def look(self, facts: Facts, moment: Moment) -> Look:
        events = events_counted(self.parameters, facts, moment)
        looked_at: dict[str, Any] = {"last": events[-1].occurred_at if events else None}
        count = len(events)
        if self.parameters.same is not None:
            looked_at[self.parameters.same], count = largest_group(events, self.parameters.same)
        return Look(self.parameters.accepts(count), {"count": count, **looked_at})

    @cached_property
    def needs(self) -> Needs:
        return self.parameters.needs()

    def sql(self, statement: Statement) -> Bounds:
        asked = self.parameters
        return count_bounds(statement, asked, fewest=asked.fewest, most=asked.at_most, same=asked.same)
