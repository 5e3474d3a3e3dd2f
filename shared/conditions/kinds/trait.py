"""`trait`: what is known of the person themselves."""

from __future__ import annotations

from typing import Any

from shared.conditions.model import Leaf, Look, Moment
from shared.conditions.values import values_at
from shared.conditions.where import Where, accepts_at
from shared.facts.model import Facts


class Trait(Leaf):
    """Comparisons by trait; all must hold. A dotted name goes into a trait that is a mapping."""

    name = "trait"
    parameters_type = Where
    examples = (
        {"city": {"eq": "Kazan"}},
        {"birth_year": {"between": [1980, 1990]}},
        {"signed_up": {"gte": "2024-01-01"}, "interests": {"contains": "vinyl"}},
        {"phone": {"exists": False}},
    )
    parameters: Where

    def look(self, facts: Facts, moment: Moment) -> Look:
        looked_at: dict[str, Any] = {}
        holds = True
        for path, comparison in self.parameters.root.items():
            values = list(values_at(facts.traits, path))
            looked_at[path] = values[0] if len(values) == 1 else values or None
            holds = accepts_at(facts.traits, path, comparison) and holds
        return Look(holds, looked_at)
