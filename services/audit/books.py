"""A book: two sums that must be equal, and what is missing when they are not. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

Amount = int | Decimal


@dataclass(frozen=True)
class Book:
    """`name`: what is counted. `left` and `right`: named amounts; their sums must be equal. `strays`: rows that break the
    book, by name, so that a person finds them (at most a few)."""

    name: str
    left: dict[str, Amount]
    right: dict[str, Amount]
    strays: list[str] = field(default_factory=list)

    @property
    def difference(self) -> Amount:
        """Left less right."""
        return sum(self.left.values()) - sum(self.right.values())

    @property
    def balanced(self) -> bool:
        return self.difference == 0 and not self.strays
