"""What decisions want written: themselves, the runs as they are now, and what becomes of items and timers. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from services.triggers.effects import summary_of
from services.triggers.material import Key, Whose
from services.triggers.queue import Item, goal_item_id, step_item_id, timers_of
from services.triggers.run import Decided, Effect, Run
from services.triggers.steps.base import Version
from shared.events import Outcome


@dataclass(frozen=True)
class Decision:
    """A decision with everything that is stored of it."""

    at: datetime
    version: Version
    before: int
    decided: Decided | None
    whose: Whose
    cause: dict[str, Any]
    node: UUID
    what: str
    why: str
    seen: list[dict[str, Any]]

    @property
    def effects(self) -> list[Effect]:
        """What it wants done, in order."""
        return self.decided.effects if self.decided else []

    @property
    def summary(self) -> list[dict[str, Any]]:
        """The effects as they are stored and compared."""
        return [summary_of(effect) for effect in self.effects]


@dataclass
class Changes:
    """What a batch of decisions wants written."""

    decisions: list[Decision] = field(default_factory=list)
    # by run: the run as it is now, and the number it was read with (0: new)
    runs: dict[UUID, tuple[Run, int]] = field(default_factory=dict)
    handled: list[Key] = field(default_factory=list)
    moved: list[Item] = field(default_factory=list)
    held: list[Key] = field(default_factory=list)
    # subject and the person's nodes, where an address is to be forgotten
    purged: list[tuple[str, tuple[UUID, ...]]] = field(default_factory=list)

    @property
    def revenue(self) -> dict[UUID, str]:
        """By run whose goal window closed what its outcome told: roubles, a decimal as text."""
        effects = (effect for decision in self.decisions for effect in decision.effects)
        return {effect.run: str(effect.revenue) for effect in effects if isinstance(effect, Outcome)}


def timer_changes(changes: Changes) -> tuple[list[Item], list[Key]]:
    """The rows of timers that the changed runs ask for, and those that go: a run's timers follow its state."""
    put: list[Item] = list(changes.moved)
    gone = list(changes.handled)
    held = set(changes.held)
    for run, before in changes.runs.values():
        wanted = timers_of(run)
        put += [item for item in wanted if (item.node, item.id) not in held]
        if before:
            kept = {item.id for item in wanted}
            gone += [(run.origin, id) for id in (step_item_id(run.id), goal_item_id(run.id)) if id not in kept]
    return put, gone
