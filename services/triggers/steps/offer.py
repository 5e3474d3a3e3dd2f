"""`offer`: names the offer for the sends after it; a code is allotted only when a message is claimed."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from services.triggers.steps.base import Answer, Here, Mention, Next, Step
from shared.conditions.errors import joined
from shared.conditions.fields import Strict


class Parameters(Strict):
    """The pool's name, `{pool: welcome10}`."""

    pool: str = Field(min_length=1, max_length=100)


class Offer(Step):
    key = "offer"
    parameters_type = Parameters
    parameters: Parameters
    examples = [{"pool": "welcome10"}]

    @classmethod
    def template(cls, value: Any) -> str:
        found = value.get("pool") if isinstance(value, dict) else ""
        return found if isinstance(found, str) else ""

    @property
    def mentions(self) -> tuple[Mention, ...]:
        return (Mention("offer", self.parameters.pool, joined(self.pointer, "pool")),)

    def begin(self, here: Here) -> Answer:
        here.run.offer = self.parameters.pool
        return Next()
