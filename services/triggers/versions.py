"""Which version of which rule is in force at a moment: immutable rows with *valid from*, read by every transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Literal
from uuid import UUID

from services.triggers.rule import ALL_EVENTS, Rule
from services.triggers.steps.base import Version, World
from shared.holidays import NO_HOLIDAYS, Holidays

State = Literal["draft", "active", "paused", "archived"]


@dataclass(frozen=True)
class Change:
    """From `valid_from` on, the rule is in this state with this version."""

    rule: UUID
    number: int
    state: State
    version: int
    valid_from: datetime


class Rules:
    """All rules and everything that was ever said about them, as one transaction saw it."""

    def __init__(
        self,
        changes: Iterable[Change],
        versions: Mapping[tuple[UUID, int], Version],
        holidays: Holidays = NO_HOLIDAYS,
    ) -> None:
        """:param changes: in order of (rule, number); :param versions: by rule and number; unreadable ones are left out"""
        self._changes: dict[UUID, list[Change]] = {}
        for change in changes:
            self._changes.setdefault(change.rule, []).append(change)
        self._versions = versions
        self.holidays = holidays

    def __iter__(self) -> Iterator[UUID]:
        return iter(sorted(self._changes))

    def world(self, world: World) -> World:
        """What the deployment says, with the holidays that this transaction saw."""
        return replace(world, holidays=self.holidays)

    def version(self, rule: UUID, number: int) -> Version:
        """Raises KeyError when there is none, or its document can no longer be read."""
        return self._versions[rule, number]

    def changes(self, rule: UUID) -> list[Change]:
        """Everything that was ever said about a rule, in order."""
        return list(self._changes.get(rule, ()))

    def at(self, rule: UUID, moment: datetime) -> Change | None:
        """What is in force at a moment; None before the rule was first activated."""
        found = None
        for change in self._changes.get(rule, ()):
            if change.valid_from <= moment:
                found = change
        return found

    def active(self, rule: UUID, moment: datetime) -> Version | None:
        """The version by which people enter at a moment."""
        change = self.at(rule, moment)
        if change is None or change.state != "active":
            return None
        return self._versions.get((rule, change.version))

    def entered_by(self, rule: UUID | None, moment: datetime) -> Rule | None:
        """The document by which people enter at a moment."""
        version = self.active(rule, moment) if rule is not None else None
        return version.document if version is not None else None

    def active_since(self, rule: UUID, moment: datetime) -> list[Version]:
        """The versions by which people enter at a moment or at any later one."""
        now = self.at(rule, moment)
        first = now.number if now is not None else 0
        changes = (c for c in self._changes.get(rule, ()) if c.number >= first and c.state == "active")
        numbers = sorted({change.version for change in changes})
        return [self._versions[rule, number] for number in numbers if (rule, number) in self._versions]

    def unreadable(self, rule: UUID, moment: datetime) -> bool:
        """Whether the rule is active at a moment by a version whose document this program cannot read: another one may."""
        change = self.at(rule, moment)
        return change is not None and change.state == "active" and (rule, change.version) not in self._versions

    def all_active(self, moment: datetime, kind: str) -> list[Version]:
        """The active versions of one kind of rule at a moment, in the order of the rules' ids."""
        found = [version for rule in self if (version := self.active(rule, moment)) is not None]
        return [version for version in found if version.document.kind == kind]

    @cached_property
    def ever_active(self) -> list[Version]:
        """Every version that people may be inside of."""
        numbers = {(c.rule, c.version) for changes in self._changes.values() for c in changes if c.state == "active"}
        return [self._versions[key] for key in sorted(numbers) if key in self._versions]

    @cached_property
    def names(self) -> dict[str, frozenset[str]]:
        """By kind of rule the events that concern anybody inside or entering at once; `*` is all of them."""
        found: dict[str, set[str]] = {"marketing": set(), "transactional": set()}
        for version in self.ever_active:
            document = version.document
            found[document.kind] |= document.forward_names if document.enter.idle is not None else document.names
        return {kind: frozenset(names) for kind, names in found.items()}

    @cached_property
    def longest_idle(self) -> dict[UUID, float]:
        """By rule the longest `idle` of any version, in seconds: how far before its timer the last match can lie."""
        found: dict[UUID, float] = {}
        for version in self.ever_active:
            if (idle := version.document.enter.idle) is not None:
                found[version.rule] = max(found.get(version.rule, 0.0), idle.total_seconds())
        return found

    def removal(self, rule: UUID, number: int, moment: datetime) -> tuple[str, str] | None:
        """Whether a run by version `number` has to end at a moment whatever its steps say: how, and why."""
        change = self.at(rule, moment)
        if change is None:
            return None
        if change.state == "archived":
            return "archived", "the rule was archived"
        if change.state == "active" and change.version > number:
            newest = self._versions.get((rule, change.version))
            if newest is not None and newest.document.on_edit == "stop":
                return "edited", f"version {change.version} of the rule came, which says on_edit: stop"
        return None

    def steps_of(self, rule: UUID, number: int) -> list[str]:
        """The ids of all steps of a version; none if it cannot be read."""
        version = self._versions.get((rule, number))
        return [step.id for step in version.document.flow] if version is not None else []

    def mover(self, rule: UUID, number: int, moment: datetime) -> Version | None:
        """The version by which runs of version `number` go on from a moment on, where they find their step in it."""
        change = self.at(rule, moment)
        if change is None or change.state != "active" or change.version <= number:
            return None
        newest = self._versions.get((rule, change.version))
        return newest if newest is not None and newest.document.on_edit == "move" else None


def concerns(names: frozenset[str], event: str) -> bool:
    """Whether an event of this name is among `names`, of which `*` is all."""
    return event in names or ALL_EVENTS in names
