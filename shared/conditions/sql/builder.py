"""What kinds use to say themselves in SQL: parameters, membership at T, and bounds.

Some things SQL cannot decide as Python does (the folded cart, texts beyond ASCII without a folded column). So a
condition has two bounds: `upper` holds for everybody who may meet it, `lower` only for those who surely do. `not` swaps
them. Where the two are the same expression, SQL alone decides; else Python looks at those between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.conditions.model import Moment


@dataclass(frozen=True)
class Bounds:
    """Boolean SQL expressions over `person.profile`, never null; lower implies upper."""

    upper: str
    lower: str

    @property
    def exact(self) -> bool:
        """Whether SQL alone decides."""
        return self.upper == self.lower

    def negated(self) -> Bounds:
        """`not` of it."""
        return Bounds(upper=f"NOT {self.lower}", lower=f"NOT {self.upper}")


TRUE, FALSE = "true", "false"
UNDECIDED = Bounds(upper=TRUE, lower=FALSE)


class Statement:
    """One statement in the making: its parameters and the moment it asks about."""

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self.parameters: list[Any] = []
        self.at = self.parameter(moment.at, "timestamptz")

    def parameter(self, value: Any, type_name: str) -> str:
        """A placeholder for `value`, with its PostgreSQL type."""
        self.parameters.append(value)
        return f"${len(self.parameters)}::{type_name}"

    def present(self, membership: str) -> str:
        """Whether the row of cdp.membership (by its alias) held at T."""
        return f"{membership}.from_at <= {self.at} AND ({membership}.to_at IS NULL OR {membership}.to_at > {self.at})"

    def undecided(self) -> Bounds:
        """Python must look at everybody."""
        return UNDECIDED

    def exact(self, expression: str) -> Bounds:
        """SQL decides by this expression."""
        return Bounds(upper=f"({expression})", lower=f"({expression})")
