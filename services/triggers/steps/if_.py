"""`if`: one way or the other, by the person's facts at this moment."""

from __future__ import annotations

from typing import Any

from shared.conditions import Condition, ConditionError
from services.triggers.steps.base import Answer, Here, Into, NoParameters, Step, branch_lists, condition_of


class If(Step):
    """What is sent under it is sent only while the condition still holds (under `else`: while it does not)."""

    key = "if"
    Parameters = NoParameters
    examples = [{"orders": {"count": {"gte": 1}}, "then": [{"stop": "bought"}], "else": [{"send": "second-letter"}]}]

    def __init__(self, value: Any, *args: Any) -> None:
        super().__init__(value, *args)
        if not isinstance(value, dict):
            raise ConditionError(self.pointer, f"is a mapping of a condition with then and else, not {value!r}")
        self.document = {key: item for key, item in value.items() if key not in ("then", "else")}
        if not self.document:
            raise ConditionError(self.pointer, "has no condition: write for example {cart: {not_empty: true}, then: […]}")
        if not self.branches:
            raise ConditionError(self.pointer, "has neither then nor else: nothing depends on it")
        self.condition = condition_of(self.document, self.pointer)

    @classmethod
    def plain(cls, value: Any) -> Any:
        return {}

    @classmethod
    def lists(cls, value: Any) -> dict[str, tuple[list[Any], str]]:
        return branch_lists(value, ("then", "else"))

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return (self.condition,)

    def guard(self, branch: str) -> list[dict[str, Any]]:
        return [self.document if branch == "then" else {"not": self.document}]

    def begin(self, here: Here) -> Answer:
        return Into("then" if here.holds(self.condition) else "else")
