"""`stop`: the run ends here, for a reason that a marketer reads."""

from __future__ import annotations

from pydantic import Field

from services.triggers.steps.base import Answer, End, Here, Step
from shared.conditions.fields import Strict


class Parameters(Strict):
    """The reason in a few words."""

    why: str = Field(min_length=1, max_length=200)


class Stop(Step):
    """Ends the run; what it has asked for may still be sent."""

    key = "stop"
    short = "why"
    parameters_type = Parameters
    parameters: Parameters
    examples = ["bought elsewhere"]

    def begin(self, here: Here) -> Answer:
        return End(self.parameters.why)
