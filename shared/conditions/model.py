"""What a condition is: a tree of `all`, `any` and `not` whose leaves are the kinds in `kinds/`.

A kind is one module there: its pydantic parameters, how it looks at the facts, what it reads, how SQL says it, and
examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel

from shared.facts.model import Facts

if TYPE_CHECKING:
    from shared.conditions.sql.builder import Bounds, Statement


@dataclass(frozen=True)
class Moment:
    """As of when, and under which circumstances a condition is judged.

    :param at: T; what looks back from it uses occurred-at in (T − d, T]
    :param entered_at: T of the run's entry, for `since: entry`; None where no run has begun (nothing happened since)
    :param zone: the shop's zone; a person with a zone of their own (`facts.zone`) is judged by that
    :param topic: the rule's consent topic
    :param holidays: local dates that are holidays
    :param entry_id: the event that entered, which `since: entry` does not count
    """

    at: datetime
    entered_at: datetime | None
    zone: ZoneInfo
    topic: str = "marketing"
    holidays: frozenset[date] = frozenset()
    entry_id: UUID | None = None

    def zone_of(self, facts: Facts) -> ZoneInfo:
        """The person's zone; the shop's where theirs is absent or unknown."""
        if not facts.zone:
            return self.zone
        try:
            return ZoneInfo(facts.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            return self.zone


@dataclass(frozen=True)
class Needs:
    """What must be loaded before the condition can be judged.

    :param names: event names whose rows `facts.events` must hold
    :param look_back: how far before T those rows must reach by occurred-at; None: to the beginning
    :param lines: the orders must have their lines, which records of `profile-events` leave out
    :param entry: the condition speaks of the time since the run began (`since: entry`)
    :param suppressions: `facts.suppressed` must be filled
    """

    names: frozenset[str] = frozenset()
    look_back: timedelta | None = timedelta(0)
    lines: bool = False
    entry: bool = False
    suppressions: bool = False

    def __or__(self, other: Needs) -> Needs:
        endless = self.look_back is None or other.look_back is None
        return Needs(
            names=self.names | other.names,
            look_back=None if endless else max(self.look_back, other.look_back),  # type: ignore[type-var]
            lines=self.lines or other.lines,
            entry=self.entry or other.entry,
            suppressions=self.suppressions or other.suppressions,
        )


@dataclass(frozen=True)
class Look:
    """What a leaf saw: whether it holds, and the values it looked at (plain Python values)."""

    holds: bool
    looked_at: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether a condition holds, and every leaf in document order.

    Each of `seen` is JSON-able: `{"pointer", "condition", "looked_at", "holds"}`; decimals are texts. `holds` is the
    leaf's own, so that a leaf under `not` that holds makes its part false.
    """

    holds: bool
    seen: list[dict[str, Any]]


class Leaf(ABC):
    """One condition of one kind, as the document named it at `pointer`."""

    name: ClassVar[str]
    """The key in a condition document."""
    parameters_type: ClassVar[type[BaseModel]]
    """The pydantic type of what stands behind the key."""
    examples: ClassVar[tuple[Any, ...]]
    """Parameters as a marketer writes them."""

    def __init__(self, parameters: Any, document: Any = None, pointer: str = "") -> None:
        self.parameters = parameters
        self.document = document
        self.pointer = pointer

    @abstractmethod
    def look(self, facts: Facts, moment: Moment) -> Look:
        """The condition's own reading of the facts."""

    @cached_property
    def needs(self) -> Needs:
        """What the condition reads besides traits, cart, orders, consents and addresses."""
        return Needs()

    def sql(self, statement: Statement) -> Bounds:
        """The condition over `person.profile` as SQL; a kind that has no such reading is left to Python."""
        return statement.undecided()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.document!r})"


@dataclass(frozen=True)
class AllOf:
    """Every part holds; of none it is true."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class NotOf:
    """The part does not hold."""

    part: Condition


Condition = Leaf | AllOf | AnyOf | NotOf


def leaves(condition: Condition) -> Iterator[Leaf]:
    """All leaves, in document order."""
    match condition:
        case AllOf(parts) | AnyOf(parts):
            for part in parts:
                yield from leaves(part)
        case NotOf(part):
            yield from leaves(part)
        case Leaf():
            yield condition
