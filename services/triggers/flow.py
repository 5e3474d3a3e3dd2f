"""The tree of a rule's steps, and places in it.

A place is a list of step ids and branches in turn, `["wait-for", "then", "send-thanks"]`: it can be stored, and it stays
true when steps are added around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from services.triggers.steps.base import Step, walk

Path = list[str]


class Flow:
    """The steps of one rule version."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)

    def __iter__(self) -> Iterator[Step]:
        """All steps in document order."""
        return walk(self.steps)

    def first(self) -> Path | None:
        return [self.steps[0].id] if self.steps else None

    def at(self, path: Sequence[str]) -> Step:
        """The step at a place. Raises KeyError when this version has no such place."""
        step = self._in(self.steps, path[0])
        for branch, id in zip(path[1::2], path[2::2], strict=True):
            step = self._in(step.branches.get(branch, ()), id)
        return step

    def find(self, id: str) -> Path | None:
        """The place of the step with this id, wherever it lies; None when this version has none."""
        return self._find(self.steps, [], id)

    def into(self, path: Path, branch: str) -> Path | None:
        """The first place of a branch of the step at `path`, or what follows that step if the branch is empty."""
        steps = self.at(path).branches.get(branch, ())
        return [*path, branch, steps[0].id] if steps else self.after(path)

    def after(self, path: Path) -> Path | None:
        """The place behind the step at `path`: its neighbour, or the neighbour of what it lies in; None at the end."""
        while path:
            siblings = self.at(path[:-2]).branches[path[-2]] if len(path) > 1 else self.steps
            index = [step.id for step in siblings].index(path[-1])
            if index + 1 < len(siblings):
                return [*path[:-1], siblings[index + 1].id]
            path = path[:-2]
        return None

    def guards(self, path: Sequence[str]) -> list[dict[str, Any]]:
        """The conditions of every step around the place."""
        found: list[dict[str, Any]] = []
        for depth in range(1, len(path), 2):
            found += self.at(path[:depth]).guard(path[depth])
        return found

    @classmethod
    def _find(cls, steps: Sequence[Step], place: Path, id: str) -> Path | None:
        for step in steps:
            path = [*place, step.id]
            if step.id == id:
                return path
            for branch, below in step.branches.items():
                if found := cls._find(below, [*path, branch], id):
                    return found
        return None

    @staticmethod
    def _in(steps: Sequence[Step], id: str) -> Step:
        for step in steps:
            if step.id == id:
                return step
        raise KeyError(f"there is no step {id!r} here")
