"""What kinds use to say themselves in SQL: parameters, people at T, and bounds.

Some things SQL cannot decide as Python does (the folded cart, texts beyond ASCII without a folded column). So a
condition has two bounds: `upper` holds for everybody who may meet it, `lower` only for those who surely do. `not` swaps
them. Where the two are the same expression, SQL alone decides; else Python looks at those between them.

Inside a condition SQL's own third value says "cannot tell": `x IS NOT FALSE` is its upper bound, `x IS TRUE` its lower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.conditions.model import Moment

TRUE, FALSE, CANNOT_TELL = "true", "false", "NULL::boolean"


@dataclass(frozen=True)
class Bounds:
    """Boolean SQL expressions over the row `person`, never null; lower implies upper."""

    upper: str
    lower: str

    @property
    def exact(self) -> bool:
        """Whether SQL alone decides."""
        return self.upper == self.lower

    def negated(self) -> Bounds:
        """`not` of it."""
        return Bounds(upper=f"NOT {self.lower}", lower=f"NOT {self.upper}")


def all_of(parts: list[Bounds]) -> Bounds:
    """Every part holds."""
    return _joined(" AND ", parts)


def any_of(parts: list[Bounds]) -> Bounds:
    """At least one part holds."""
    return _joined(" OR ", parts)


def _joined(glue: str, parts: list[Bounds]) -> Bounds:
    upper, lower = glue.join(part.upper for part in parts), glue.join(part.lower for part in parts)
    return Bounds(upper=f"({upper})", lower=f"({lower})")


UNDECIDED = Bounds(upper=TRUE, lower=FALSE)


@dataclass(frozen=True)
class Test:
    """A boolean SQL expression over some row; NULL where SQL cannot tell, which only `decided = False` may be."""

    expression: str
    decided: bool = True

    @property
    def may(self) -> str:
        """Whether it may hold."""
        return self.expression if self.decided else f"({self.expression}) IS NOT FALSE"

    @property
    def surely(self) -> str:
        """Whether it surely holds."""
        return self.expression if self.decided else f"({self.expression}) IS TRUE"


def both(tests: list[Test]) -> Test:
    """All of them; of none it is true."""
    if not tests:
        return Test(TRUE)
    return Test("(" + " AND ".join(test.expression for test in tests) + ")", all(test.decided for test in tests))


class Statement:
    """One statement in the making: its parameters and the moment it asks about."""

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self.parameters: list[Any] = []
        self._places: dict[tuple[str, str], str] = {}
        self.shared: dict[str, str] = {}
        self.at = self.parameter(moment.at, "timestamptz")

    @property
    def nobody_entered(self) -> bool:
        """Whether people are looked for who enter only now: nothing happened since their entry."""
        entered_at = self.moment.entered_at
        return entered_at is None or entered_at >= self.moment.at

    def parameter(self, value: Any, type_name: str) -> str:
        """A placeholder for `value`, with its PostgreSQL type; the same one for the same value."""
        key = (type_name, repr(value))
        if key not in self._places:
            self.parameters.append(value)
            self._places[key] = f"${len(self.parameters)}::{type_name}"
        return self._places[key]

    def once(self, select: str) -> str:
        """A name for the rows of `select`: what several conditions, or both bounds of one, ask for is read once."""
        return self.shared.setdefault(select, f"q{len(self.shared) + 1}")

    def present(self, membership: str) -> str:
        """Whether the row of cdp.membership (by its alias) held at T."""
        return f"{membership}.from_at <= {self.at} AND ({membership}.to_at IS NULL OR {membership}.to_at > {self.at})"

    def owner(self, node: str) -> str:
        """A join that gives the row with that node column its person at T, as `m.profile`."""
        return f"JOIN cdp.membership m ON m.node = {node} AND {self.present('m')}"

    def undecided(self) -> Bounds:
        """Python must look at everybody."""
        return UNDECIDED

    def constant(self, holds: bool) -> Bounds:
        """The same for everybody."""
        return Bounds(upper=TRUE, lower=TRUE) if holds else Bounds(upper=FALSE, lower=FALSE)

    def among(self, may: str, surely: str, *, others: bool) -> Bounds:
        """A person for whom there is a row, where one exists; `others`: whether people without a row meet the condition.

        :param may: a SELECT of the profiles with a row that may meet it, or, with `others`, that may fail to
        :param surely: the same of those that surely do
        """
        if others:
            return Bounds(upper=f"({self.found(surely, 'NOT IN')})", lower=f"({self.found(may, 'NOT IN')})")
        return Bounds(upper=f"({self.found(may, 'IN')})", lower=f"({self.found(surely, 'IN')})")

    def found(self, select: str, sign: str = "IN") -> str:
        """Whether the person is among the profiles of the SELECT, or (NOT IN) is not."""
        return f"person.profile {sign} (SELECT profile FROM {self.once(select)})"

    def of_settled(self, bounds: Bounds) -> Bounds:
        """Bounds made of present rows: they say how it was at T only for people to whom nothing happened since."""
        return Bounds(upper=f"(NOT person.settled OR {bounds.upper})", lower=f"(person.settled AND {bounds.lower})")
