"""`did_not`: something never happened in the time asked for."""

from __future__ import annotations

from functools import cached_property

from shared.conditions.counting import Counted, events_counted
from shared.conditions.model import Leaf, Look, Moment, Needs
from shared.conditions.sql.builder import Bounds, Statement
from shared.conditions.sql.events import count_bounds
from shared.facts.model import Facts


class DidNot(Leaf):
    """No such event."""

    name = "did_not"
    parameters_type = Counted
    examples = ({"event": "Order Completed", "since": "entry"}, {"event": "Product Viewed", "within": "14d"})
    parameters: Counted

    def look(self, facts: Facts, moment: Moment) -> Look:
        events = events_counted(self.parameters, facts, moment)
        return Look(not events, {"count": len(events), "last": events[-1].occurred_at if events else None})

    @cached_property
    def needs(self) -> Needs:
        return self.parameters.needs()

    def sql(self, statement: Statement) -> Bounds:
        return count_bounds(statement, self.parameters, fewest=0, most=0)
