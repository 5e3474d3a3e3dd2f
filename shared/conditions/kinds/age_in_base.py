"""`age_in_base`: how long the person has been known."""

from __future__ import annotations

from shared.conditions.fields import DurationComparison
from shared.conditions.model import Leaf, Look, Moment
from shared.conditions.sql.builder import Bounds, Statement
from shared.conditions.sql.comparing import age_test
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

    def sql(self, statement: Statement) -> Bounds:
        # Late events make a node older; before they were learned it counted from what was known then.
        known_then = (
            "SELECT DISTINCT ON (b.node) b.node, b.first_seen FROM cdp.node_seen_before b "
            f"WHERE b.until > {statement.at} ORDER BY b.node, b.until"
        )
        rows = (
            "SELECT m.profile, min(coalesce(b.first_seen, n.first_seen)) AS first_seen "
            f"FROM cdp.node n {statement.owner('n.id')} LEFT JOIN ({known_then}) b ON b.node = n.id GROUP BY m.profile"
        )
        test = age_test(statement, "f.first_seen", self.parameters)
        found = f"SELECT profile FROM ({rows}) f WHERE {test.expression}"
        return statement.among(found, found, others=False)
