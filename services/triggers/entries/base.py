"""What an entry is, and finding the kinds there are.

A kind is one module of this folder with one subclass of `Entry`: the key by which a document names it, its parameters,
its behaviour, its examples.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC
from datetime import timedelta
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from services.triggers import entries as folder
from shared.conditions import Condition, ConditionError, Needs, needs, parse
from shared.conditions.errors import joined, unknown
from shared.conditions.validation import validated
from shared.events import TRUST_RANK
from shared.facts.model import EventFact

ORDER_COMPLETED = "Order Completed"


class Entry(ABC):
    """One rule's entry."""

    key: ClassVar[str]
    """The field of `enter` that names this kind: `on`, `schedule`, …"""
    parameters_type: ClassVar[type[BaseModel]]
    """The pydantic type of all of `enter`."""
    condition_key: ClassVar[str] = "if"
    """The field that holds the condition which everybody who enters must meet."""
    examples: ClassVar[list[Any]]

    def __init__(self, parameters: Any, document: dict[str, Any], pointer: str) -> None:
        self.parameters = parameters
        self.document = document
        held = document.get(self.condition_key)
        self.condition_document: dict[str, Any] | None = held
        self.condition: Condition | None = (
            parse(held, joined(pointer, self.condition_key)) if held is not None else None
        )

    trigger: ClassVar[Literal["event", "schedule"]]
    """Who starts it: an event of the person, or a moment for everybody."""
    names: frozenset[str] = frozenset()
    """Names of the events by which it is entered, or that arm its idle timer."""
    idle: timedelta | None = None

    @property
    def needs(self) -> Needs:
        """What facts must hold to judge the condition."""
        return needs(self.condition) if self.condition is not None else Needs()

    def matches(self, event: EventFact) -> bool:
        """Whether this event enters, or arms the idle timer."""
        return False


def may_enter(event: EventFact) -> bool:
    """Imports start nothing; of an order only the first report from a source that may state money enters rules."""
    if event.history or event.trust not in TRUST_RANK:
        return False
    return event.name != ORDER_COMPLETED or event.order_key is None or event.first


@cache
def kinds() -> dict[str, type[Entry]]:
    """The kinds of entries by the key that names them."""
    found: dict[str, type[Entry]] = {}
    for info in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{folder.__name__}.{info.name}")
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, Entry) and thing.__module__ == module.__name__ != __name__:
                found[thing.key] = thing
    return dict(sorted(found.items()))


# Entries of the language whose data is not kept yet; a kind of that key replaces the refusal.
WAITING = {"date": "days of the calendar by trait", "segment": "segments"}


def read_entry(document: Any, pointer: str) -> Entry:
    """The entry that `document` says.

    :raises ConditionError: no or two kinds, unknown fields, wrong parameters
    """
    if not isinstance(document, dict):
        raise ConditionError(pointer, f"is a mapping such as {{on: Product Viewed}}, not {document!r}")
    named = [key for key in kinds() if key in document]
    for key, what in WAITING.items():
        if key in document and key not in kinds():
            raise ConditionError(
                joined(pointer, key), f"is not available: it needs {what}, which this version does not keep yet"
            )
    if len(named) != 1:
        wanted = ", ".join(kinds())
        if named:
            raise ConditionError(
                pointer, f"has several entries ({', '.join(named)}): a rule has exactly one of {wanted}"
            )
        strange = next(iter(document), "")
        raise ConditionError(
            pointer, unknown("entry", str(strange), kinds()) if strange else f"is empty: give one of {wanted}"
        )
    kind = kinds()[named[0]]
    return kind(validated(kind.parameters_type, document, pointer), document, pointer)
