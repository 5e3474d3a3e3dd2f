"""`if`: one way or the other, by the person's facts at this moment."""

from __future__ import annotations

from typing import Any

from pydantic import RootModel, model_validator

from services.triggers.steps.base import Answer, Here, Into, Step
from shared.conditions import Condition, ConditionError, parse
from shared.conditions.fields import refusal


class Parameters(RootModel[dict[str, Any]]):
    """A condition; its lists of steps are beside it, under `then` and `else`."""

    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            raise refusal(f"is a mapping of a condition with then and else, not {document!r}")
        return document


class If(Step):
    """What is sent under it is sent only while the condition still holds (under `else`: while it does not)."""

    key = "if"
    parameters_type = Parameters
    branch_names = ("then", "else")
    examples = [{"orders": {"count": {"gte": 1}}, "then": [{"stop": "bought"}], "else": [{"send": "second-letter"}]}]

    def __init__(self, value: Any, *args: Any) -> None:
        super().__init__(value, *args)
        self.document = self.plain(value)
        if not self.document:
            raise ConditionError(
                self.pointer, "has no condition: write for example {cart: {not_empty: true}, then: […]}"
            )
        if not self.branches:
            raise ConditionError(self.pointer, "has neither then nor else: nothing depends on it")
        self.condition = parse(self.document, self.pointer)

    @classmethod
    def schema(cls, steps: dict[str, Any]) -> dict[str, Any]:
        return {"$ref": "#/$defs/condition_with_steps"}

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return (self.condition,)

    def guard(self, branch: str) -> list[dict[str, Any]]:
        return [self.document if branch == "then" else {"not": self.document}]

    def begin(self, here: Here) -> Answer:
        return Into("then" if here.holds(self.condition) else "else")
