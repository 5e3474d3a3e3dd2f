"""`split`: shares of the people go different ways, by hash and not by chance: the same person the same way."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from pydantic import RootModel, model_validator

from services.triggers.holdout import draw
from services.triggers.language import Share
from services.triggers.steps.base import Answer, Here, Into, Step
from shared.conditions import ConditionError
from shared.conditions.errors import joined, unknown
from shared.conditions.fields import refusal


class Parameters(RootModel[dict[str, dict[str, Share]]]):
    """`{subject-test: {a: 50%, b: 50%}, then: {a: […], b: […]}}`: a name, its shares, and what each part does."""

    @model_validator(mode="after")
    def _one_test(self) -> Parameters:
        if len(self.root) != 1:
            raise refusal(
                "has one name with its shares beside `then`, such as {subject-test: {a: 50%, b: 50%}, then: {…}}"
            )
        if sum(self.shares.values()) != 1:
            raise refusal(
                f"the shares make {sum(self.shares.values()):.0%} in all: they must make 100%", field=self.name
            )
        return self

    @property
    def name(self) -> str:
        return next(iter(self.root))

    @property
    def shares(self) -> dict[str, Decimal]:
        return next(iter(self.root.values()))


class Split(Step):
    """The part is drawn from the name of the test and the run's origin node."""

    key = "split"
    branch_names = ("then",)
    parameters_type = Parameters
    parameters: Parameters
    examples = [
        {"subject-test": {"a": "50%", "b": "50%"}, "then": {"a": [{"send": "letter-a"}], "b": [{"send": "letter-b"}]}}
    ]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for branch in self.branches:
            if branch not in self.parameters.shares:
                place = joined(self.pointer, "then", branch)
                raise ConditionError(place, unknown("part", branch, self.parameters.shares))

    @classmethod
    def schema(cls, steps: dict[str, Any]) -> dict[str, Any]:
        shares = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
        ways = {"type": "object", "additionalProperties": steps}
        return {"type": "object", "properties": {"then": ways}, "additionalProperties": shares, "required": ["then"]}

    @classmethod
    def template(cls, value: Any) -> str:
        return next((str(key) for key in value if key != "then"), "") if isinstance(value, dict) else ""

    @classmethod
    def lists(cls, value: Any) -> dict[str, tuple[list[Any], str]]:
        ways = value.get("then") if isinstance(value, dict) else None
        if not isinstance(ways, dict):
            return {}
        return {str(name): (steps, joined("/then", str(name))) for name, steps in ways.items()}

    def begin(self, here: Here) -> Answer:
        drawn = draw("split", here.run.rule, self.parameters.name, here.run.origin)
        here.seen.append({"split": self.parameters.name, "draw": str(drawn)})
        reached = Decimal(0)
        for name, share in sorted(self.parameters.shares.items()):
            reached += share
            if drawn < reached:
                return Into(name)
        raise AssertionError("the shares make 100 %")
