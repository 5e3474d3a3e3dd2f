"""The condition language of rules: one document, two readings.

`parse` makes a condition of a document; `evaluate` and `explain` read it over one person's facts; `compile_sql` reads
it over the base. A property test holds the two readings equal.
"""

from shared.conditions.errors import ConditionError
from shared.conditions.evaluating import evaluate, explain, needs
from shared.conditions.json_schema import schema
from shared.conditions.model import Condition, Moment, Needs, Verdict
from shared.conditions.parser import parse
from shared.conditions.sql.compiling import SqlCondition, compile_sql, members_sql
from shared.conditions.where import EventMatch, Where, match_holds, parse_match, parse_where, where_holds

__all__ = [
    "Condition",
    "ConditionError",
    "EventMatch",
    "Moment",
    "Needs",
    "SqlCondition",
    "Verdict",
    "Where",
    "compile_sql",
    "evaluate",
    "explain",
    "match_holds",
    "members_sql",
    "needs",
    "parse",
    "parse_match",
    "parse_where",
    "schema",
    "where_holds",
]
