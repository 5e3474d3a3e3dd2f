"""`age_in_base`: how long the person has been known."""

from __future__ import annotations

from shared.conditions.fields import DurationComparison
from shared.conditions.model import Leaf, Look, Moment
from shared.facts.model import Facts


class AgeInBase(Leaf):
    """The time between the person's earliest event and the moment."""

    name = "age_in_base"
    parameters_type = DurationComparison
    examples = ({"gte": "30d"}, {"between": ["7d", "30d"]})
    parameters: DurationComparison

    def look(self, facts: Facts, moment: Moment) -> Look:
        first = facts.first_seen
        age = None if first is None or first > moment.at else moment.at - first
        return Look(self.parameters.accepts(age), {"first_seen": first})
