"""`set`: writes traits of the person."""

from __future__ import annotations

from typing import Any

from pydantic import RootModel, model_validator

from services.triggers.filling import filled, unknown_roots
from services.triggers.steps.base import Answer, Here, Next, Step
from shared.conditions.fields import refusal
from shared.events import MAX_HOPS, internal_event


class Parameters(RootModel[dict[str, Any]]):
    """Traits by name, `{favourite_category: "{{ event.category }}"}`."""

    @model_validator(mode="after")
    def _known_paths(self) -> Parameters:
        if not self.root:
            raise refusal("names no trait")
        if strange := unknown_roots(self.root):
            raise refusal(f"{strange[0]} is not known here: paths begin with event, person or run")
        return self


class Set(Step):
    """Publishes *Traits Set*; what is absent is left alone."""

    key = "set"
    parameters_type = Parameters
    parameters: Parameters
    examples = [{"favourite_category": "{{ event.category }}"}]

    @classmethod
    def template(cls, value: Any) -> str:
        return "-".join(sorted(map(str, value))) if isinstance(value, dict) else ""

    def begin(self, here: Here) -> Answer:
        run = here.run
        traits = {name: value for name, value in filled(self.parameters.root, here).items() if value is not None}
        if traits and not run.ghost and run.hops < MAX_HOPS:
            here.effects.append(
                internal_event(
                    "Traits Set",
                    key=f"{run.id}/{self.id}",
                    origin=run.origin,
                    at=here.now,
                    traits=traits,
                    properties={"run_id": str(run.id), "rule": here.rule.name},
                    hops=run.hops + 1,
                )
            )
        return Next()
