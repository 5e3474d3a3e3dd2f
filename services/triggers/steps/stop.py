"""`stop`: the run ends here, for a reason that a marketer reads."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from services.triggers.steps.base import Answer, End, Here, Step
from shared.conditions.fields import Strict


class Parameters(Strict):
    """The reason in a few words."""

    why: str = Field(min_length=1, max_length=200)


class Stop(Step):
    key = "stop"
    Parameters = Parameters
    parameters: Parameters
    examples = ["bought elsewhere"]

    @classmethod
    def plain(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else {"why": value}

    def begin(self, here: Here) -> Answer:
        return End(self.parameters.why)
