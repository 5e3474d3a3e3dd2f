"""`trait`: what is known of the person themselves."""

from __future__ import annotations

from typing import Any

from shared.conditions.fields import Comparison
from shared.conditions.model import Leaf, Look, Moment
from shared.conditions.sql.builder import FALSE, UNDECIDED, Bounds, Statement, all_of
from shared.conditions.sql.comparing import column_test
from shared.conditions.sql.zones import winning_trait
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

    def sql(self, statement: Statement) -> Bounds:
        return all_of([_bounds(statement, path, comparison) for path, comparison in self.parameters.root.items()])


def _bounds(statement: Statement, path: str, comparison: Comparison) -> Bounds:
    absent_is_fine = comparison.accepts(None)
    if "." in path:
        # A trait of that very name, or one that is a mapping: Python looks inside.
        return UNDECIDED if absent_is_fine else Bounds(upper=_anyone_with(statement, path), lower=FALSE)
    latest = winning_trait(statement, path)
    test = column_test(statement, "w.value", "w.folded", "w.number", comparison)
    found = f"SELECT profile FROM {latest} w WHERE "
    if absent_is_fine:
        return statement.among(f"{found} NOT ({test.surely})", f"{found} NOT ({test.may})", others=True)
    return statement.among(found + test.may, found + test.surely, others=False)


def _anyone_with(statement: Statement, path: str) -> str:
    names = statement.parameter([path, path.split(".")[0]], "text[]")
    found = statement.found(
        f"SELECT m.profile FROM cdp.trait t {statement.owner('t.node')} WHERE t.name = ANY({names})"
    )
    return f"({found})"
