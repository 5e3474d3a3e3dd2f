"""The Python reading of conditions, over one person's facts. Two-valued: absent is false, `not` of it is true."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

from shared.conditions.model import AllOf, AnyOf, Condition, Leaf, Moment, Needs, NotOf, Verdict, leaves
from shared.conditions.values import jsonable
from shared.facts.model import Facts


def needs(condition: Condition) -> Needs:
    """What must be loaded before `condition` can be judged."""
    return reduce(or_, (leaf.needs for leaf in leaves(condition)), Needs())


def evaluate(condition: Condition, facts: Facts, moment: Moment) -> bool:
    """Whether `condition` holds; looks no further than it must. `facts.events` must hold the names of `needs`."""
    match condition:
        case AllOf(parts):
            return all(evaluate(part, facts, moment) for part in parts)
        case AnyOf(parts):
            return any(evaluate(part, facts, moment) for part in parts)
        case NotOf(part):
            return not evaluate(part, facts, moment)
        case Leaf():
            return condition.look(facts, moment).holds


def explain(condition: Condition, facts: Facts, moment: Moment) -> Verdict:
    """As `evaluate`, but looks at every leaf and tells what it saw."""
    seen: list[dict[str, Any]] = []
    return Verdict(holds=_explain(condition, facts, moment, seen), seen=seen)


def _explain(condition: Condition, facts: Facts, moment: Moment, seen: list[dict[str, Any]]) -> bool:
    match condition:
        case AllOf(parts):
            verdicts = [_explain(part, facts, moment, seen) for part in parts]
            return all(verdicts)
        case AnyOf(parts):
            verdicts = [_explain(part, facts, moment, seen) for part in parts]
            return any(verdicts)
        case NotOf(part):
            return not _explain(part, facts, moment, seen)
        case Leaf():
            look = condition.look(facts, moment)
            seen.append(
                {
                    "pointer": condition.pointer,
                    "condition": jsonable(condition.document),
                    "looked_at": jsonable(look.looked_at),
                    "holds": look.holds,
                }
            )
            return look.holds
