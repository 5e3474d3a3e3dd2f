"""The rule document: what a marketer writes. One YAML or JSON mapping, read once into an immutable `Rule`."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, field_validator

from services.triggers.entries.base import Entry, read_entry
from services.triggers.flow import Flow
from services.triggers.language import Again, AgainField, Kind, Share, Worth
from services.triggers.step_ids import with_ids
from services.triggers.steps.base import read_steps
from shared.conditions import Condition, ConditionError, EventMatch, Needs, needs, parse, parse_match
from shared.conditions.errors import joined
from shared.conditions.fields import Duration, Strict
from shared.conditions.validation import validated
from shared.conditions.where import Where, current_name
from shared.durations import format_duration
from shared.windows import Window

RuleError = ConditionError
MAX_AGE = timedelta(days=1)
ALL_EVENTS = "*"


class Goal(Strict):
    """The event that the rule is for, and for how long after the entry it counts."""

    event: str = Field(max_length=200)
    where: Where | None = None
    within: Duration

    _current_name = field_validator("event")(current_name)

    @cached_property
    def match(self) -> EventMatch:
        """Event and `where`."""
        return parse_match({"event": self.event} | ({"where": self.where} if self.where is not None else {}))


class Header(Strict):
    """A rule: who enters, what ends it, what it is for, and its steps."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="unique; a-z, 0-9 and -")
    title: str = Field(default="", max_length=200)
    kind: Kind = "marketing"
    topic: str = Field(default="marketing", min_length=1, max_length=100, description="consent topic")
    enter: dict[str, Any]
    again: AgainField | None = Field(default=None, description="default: never; for transactional rules always")
    max_age: Duration | None = Field(default=None, description="default: 1d, and the idle time on top of it")
    stop: list[Any] = Field(default=[], max_length=50)
    goal: Goal | None = None
    holdout: Share = Decimal(0)
    value: Worth | None = None
    priority: int = Field(default=0, ge=-1000, le=1000, strict=True)
    collect: Duration | None = None
    window: Window | None = None
    on_edit: Literal["finish", "move", "stop"] = Field(
        default="finish",
        description="people inside when this version comes: finish by theirs, move to the same step of this one, or stop",
    )
    steps: list[Any] = Field(min_length=1, max_length=200)


class Rule:
    """A rule's document, read. Equal documents behave equally; nothing here changes."""

    def __init__(self, document: dict[str, Any]) -> None:
        """:raises ConditionError: with the pointer of what is wrong; every step must have its id"""
        header = validated(Header, document, "")
        self.document = document
        self.name, self.title, self.kind, self.topic = header.name, header.title, header.kind, header.topic
        self.enter: Entry = read_entry(document["enter"], "/enter")
        self.again = header.again or Again(allowed=header.kind == "transactional")
        self.max_age = header.max_age or MAX_AGE + (self.enter.idle or timedelta(0))
        self.goal = header.goal
        self.holdout: Decimal = header.holdout
        self.value: dict[str, str] | None = header.value
        self.priority, self.collect, self.window = header.priority, header.collect, header.window
        self.on_edit = header.on_edit
        self.flow = Flow(read_steps(document["steps"], "/steps"))
        self.stop_matches: list[EventMatch] = []
        self.stop_documents: list[dict[str, Any]] = []
        self.stop_conditions: list[Condition] = []
        for index, one in enumerate(header.stop):
            self._read_stop(one, joined("/stop", index))
        self._check()

    def _read_stop(self, document: Any, pointer: str) -> None:
        if isinstance(document, str) or (isinstance(document, dict) and "event" in document):
            self.stop_matches.append(parse_match(document, pointer))
        else:
            self.stop_conditions.append(parse(document, pointer))
            self.stop_documents.append(document)

    def _check(self) -> None:
        if self.kind == "transactional" and self.enter.trigger != "event":
            raise ConditionError("/enter", "a transactional rule answers an event at once: enter by `on`")
        if self.kind == "transactional" and self.enter.idle is not None:
            raise ConditionError("/enter/idle", "a transactional rule answers an event at once: leave idle out")
        if self.kind == "transactional" and self.holdout:
            raise ConditionError("/holdout", "nobody is held out from a transactional rule")
        if self.enter.idle is not None and self.max_age <= self.enter.idle:
            told = f"is over before idle is ({format_duration(self.enter.idle)}), so nobody would ever enter"
            raise ConditionError("/max_age", f"{told}: make it longer, or leave it out")

    @cached_property
    def forward_names(self) -> frozenset[str]:
        """The events that concern people inside: stop, goal, wait_for; `*` for all, where a condition may end a run."""
        named = {match.event for match in self.stop_matches} | ({self.goal.event} if self.goal else set())
        for step in self.flow:
            named |= step.names
        return frozenset(named | ({ALL_EVENTS} if self.stop_conditions else set()))

    @cached_property
    def names(self) -> frozenset[str]:
        """All events that concern the rule."""
        return self.forward_names | self.enter.names

    def slot(self, subject: str) -> str:
        """What a person may have one live run of this rule about: marketing counts the person, a transactional rule answers
        each address (`services.triggers.run.Run.subject`) on its own."""
        return subject if self.kind == "transactional" else ""

    @cached_property
    def needs(self) -> Needs:
        """What facts must hold for any decision of this rule."""
        found = self.enter.needs
        for condition in (*self.stop_conditions, *(c for step in self.flow for c in step.conditions)):
            found |= needs(condition)
        return found


def read(document: Any, stored: dict[str, Any] | None = None) -> Rule:
    """A rule from what YAML or JSON gave; steps without id get one.

    :param stored: the document of the version before, whose step ids are kept
    :raises ConditionError: with a JSON pointer and a sentence
    """
    if not isinstance(document, dict):
        raise ConditionError("", f"a rule is a mapping with name, enter and steps, not {document!r}")
    validated(Header, document, "")
    return Rule(with_ids(document, stored))
