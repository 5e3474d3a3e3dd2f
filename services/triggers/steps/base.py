"""What a step is, what it may answer, and finding the kinds there are.

A kind is one module of this folder with one subclass of `Step`: the key by which a document names it, its parameters, its
behaviour, its examples. A step never does anything by itself: it puts what it wants done into `here.effects` and answers
where the run goes on.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel

from services.triggers import steps as folder
from services.triggers.run import Effect, Run
from shared.conditions import Condition, ConditionError, Moment, explain
from shared.conditions.errors import joined, unknown
from shared.conditions.validation import validated
from shared.events import Cancelled
from shared.facts.model import EventFact, Facts
from shared.holidays import NO_HOLIDAYS, Holidays

if TYPE_CHECKING:
    from services.triggers.rule import Rule

STEP_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}", re.ASCII)
DEEPEST = 10


@dataclass(frozen=True)
class World:
    """What the deployment says: the shop's zone and country, and the days that are holidays there."""

    zone: ZoneInfo
    country: str
    holidays: Holidays = NO_HOLIDAYS


@dataclass(frozen=True)
class Version:
    """One immutable version of a rule, as decisions name it."""

    rule: UUID
    number: int
    document: Rule

    @property
    def name(self) -> str:
        return self.document.name


@dataclass(frozen=True)
class Happened:
    """An event that reaches a run. `moment`: when it counts as having happened for stop, goal and wait_for: its learned-at,
    or for an order that of the order's first report."""

    event: EventFact
    moment: datetime


# ── where a run goes on ───────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Next:
    """To the step behind this one."""


@dataclass(frozen=True)
class Into:
    """Into one of the step's own lists; past the step if that list is empty."""

    branch: str


@dataclass(frozen=True)
class Wait:
    """It stays here until `due`, or until an event the step listens to."""

    due: datetime


@dataclass(frozen=True)
class End:
    """The run is over; `why` is what a marketer reads."""

    why: str


Answer = Next | Into | Wait | End


@dataclass(frozen=True)
class Mention:
    """A thing of dispatch's that a step names: a template or an offer, and where the document says so."""

    kind: Literal["template", "offer"]
    name: str
    pointer: str


@dataclass
class Here:
    """One decision on the way: the run (a copy that may be changed), the moment, and what is known."""

    run: Run
    version: Version
    now: datetime
    facts: Facts
    world: World
    # the rule is paused: events may end the run, but it takes no step
    paused: bool = False
    effects: list[Effect] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rule(self) -> Rule:
        return self.version.document

    @property
    def moment(self) -> Moment:
        run = self.run
        return Moment(
            at=self.now,
            entered_at=run.entered_at,
            zone=self.world.zone,
            topic=self.rule.topic,
            holidays=self.world.holidays.at(self.now),
            entry_id=run.event.id if run.event else None,
        )

    @property
    def zone(self) -> ZoneInfo:
        """The person's zone, else the shop's."""
        return self.moment.zone_of(self.facts)

    def cancel_intents(self, why: str) -> None:
        """Cancels what the run has asked for and what may still wait to be sent."""
        for intent in self.run.intents:
            if intent.until > self.now:
                self.effects.append(
                    Cancelled(
                        message=intent.message,
                        run=self.run.id,
                        run_version=self.run.number,
                        rule=self.run.rule,
                        reason=why,
                        decided_at=self.now,
                    )
                )
        self.run.intents = []

    def holds(self, condition: Condition) -> bool:
        """Judges the condition and keeps what was seen."""
        verdict = explain(condition, self.facts, self.moment)
        self.seen += verdict.seen
        return verdict.holds


class Step(ABC):
    """One step of one rule version."""

    key: ClassVar[str]
    """The field that names this kind: `send`, `wait`, …"""
    parameters_type: ClassVar[type[BaseModel]]
    """The pydantic type of what stands behind the key (without the lists of steps in it)."""
    examples: ClassVar[list[Any]]
    short: ClassVar[str | None] = None
    """The parameter that a plain text in place of the mapping means."""
    branch_names: ClassVar[tuple[str, ...]] = ()
    """The keys of the mapping that are lists of steps."""

    def __init__(self, value: Any, id: str, pointer: str, branches: dict[str, tuple[Step, ...]]) -> None:
        """:raises ConditionError: with the pointer of what is wrong"""
        self.id = id
        self.pointer = pointer
        self.branches = branches
        self.spelled_out = isinstance(value, dict)  # not the shorthand
        try:
            self.parameters: Any = validated(self.parameters_type, self.plain(value), pointer)
        except ConditionError as error:
            if isinstance(value, dict) or error.pointer != joined(pointer, self.short or ""):
                raise
            raise ConditionError(pointer, error.message) from error  # nobody wrote the parameter's name

    @classmethod
    def plain(cls, value: Any) -> Any:
        """The parameters as a document for `parameters_type`: shorthands spelled out, lists of steps left out."""
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if key not in cls.branch_names}
        return {cls.short: value} if cls.short else value

    @classmethod
    def schema(cls, steps: dict[str, Any]) -> dict[str, Any]:
        """The JSON schema of what stands behind the key; `steps` is that of a list of steps."""
        found = cls.parameters_type.model_json_schema(by_alias=True)
        for name in cls.branch_names:
            found.setdefault("properties", {})[name] = steps
        if cls.short is None:
            return found
        alone = found["properties"][cls.short]
        return {
            "anyOf": [alone, {key: item for key, item in found.items() if key != "$defs"}],
            "$defs": found.get("$defs", {}),
        }

    @classmethod
    def template(cls, value: Any) -> str:
        """What makes two steps of one kind the same step in two versions of a rule; part of the id that is made."""
        return ""

    @classmethod
    def lists(cls, value: Any) -> dict[str, tuple[list[Any], str]]:
        """The lists of steps within: by branch the list and its place (a pointer below the value)."""
        if not isinstance(value, dict):
            return {}
        return {name: (value[name], f"/{name}") for name in cls.branch_names if value.get(name) is not None}

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All conditions that it judges."""
        return ()

    @property
    def names(self) -> frozenset[str]:
        """The events it listens to while a run waits in it."""
        return frozenset()

    @property
    def mentions(self) -> tuple[Mention, ...]:
        """The templates and offers it names: they must exist before a rule is activated."""
        return ()

    def guard(self, branch: str) -> list[dict[str, Any]]:
        """Condition documents that must still hold when something from this branch is sent."""
        return []

    @abstractmethod
    def begin(self, here: Here) -> Answer:
        """The run has come here."""

    def resume(self, here: Here) -> Answer:
        """The timer of `Wait` has fired."""
        return Next()

    def moved(self, here: Here) -> Answer:
        """The run waits here since `here.run.since`, by this very step of another version: what it waits for now."""
        return Wait(here.run.due) if here.run.due is not None else self.begin(here)

    def hear(self, here: Here, happened: Happened) -> Answer | None:
        """An event while the run waits here; None if it does not concern the step."""
        return None


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@cache
def kinds() -> dict[str, type[Step]]:
    """The kinds of steps by the key that names them."""
    found: dict[str, type[Step]] = {}
    for info in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{folder.__name__}.{info.name}")
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, Step) and thing.__module__ == module.__name__ != __name__:
                found[thing.key] = thing
    return dict(sorted(found.items()))


# Steps of the language that this version cannot carry out; a kind of that key replaces the refusal.
WAITING = {"webhook": "outgoing webhooks"}


def kind_of(document: Any, pointer: str) -> type[Step]:
    """The kind of the step that `document` is.

    :raises ConditionError: no kind, two kinds, unknown fields
    """
    if not isinstance(document, dict) or not document:
        raise ConditionError(pointer, f"a step is a mapping such as {{wait: 1d}}, not {document!r}")
    named = []
    for key in document:
        if key in kinds():
            named.append(key)
        elif key in WAITING:
            raise ConditionError(
                joined(pointer, key), f"{key} is not available: {WAITING[key]} are not part of this version"
            )
        elif key != "id":
            raise ConditionError(joined(pointer, str(key)), unknown("step", str(key), [*kinds(), "id"]))
    if len(named) != 1:
        wanted = "one of " + ", ".join(kinds())
        raise ConditionError(
            pointer, f"has several kinds ({', '.join(named)}): a step is {wanted}" if named else f"is {wanted}"
        )
    return kinds()[named[0]]


def read_steps(document: Any, pointer: str, depth: int = 0) -> tuple[Step, ...]:
    """A list of steps; every step must have its id already (`services.triggers.step_ids`).

    :raises ConditionError: with the pointer of what is wrong
    """
    if not isinstance(document, list):
        raise ConditionError(pointer, f"is a list of steps, not {document!r}")
    if depth > DEEPEST:
        raise ConditionError(pointer, f"steps are nested deeper than {DEEPEST}")
    found = []
    for index, one in enumerate(document):
        place = joined(pointer, index)
        kind = kind_of(one, place)
        value = one[kind.key]
        below = joined(place, kind.key)
        branches = {name: read_steps(steps, below + at, depth + 1) for name, (steps, at) in kind.lists(value).items()}
        found.append(kind(value, one["id"], below, branches))
    return tuple(found)


def walk(steps: Sequence[Step]) -> Iterator[Step]:
    """All steps in document order."""
    for step in steps:
        yield step
        for branch in step.branches.values():
            yield from walk(branch)
