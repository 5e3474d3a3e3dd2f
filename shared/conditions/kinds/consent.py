"""`consent`: what the person allowed, for the rule's topic or another."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, RootModel, field_validator, model_validator

from shared.conditions.consents import STATES, consent_channel, counts_as, standing
from shared.conditions.errors import unknown
from shared.conditions.fields import Strict, refusal
from shared.conditions.model import Leaf, Look, Moment
from shared.conditions.sql.builder import Bounds, Statement, all_of
from shared.conditions.sql.consents import standing as standing_sql
from shared.facts.model import Facts

State = Literal["requested", "granted", "confirmed", "withdrawn", "complained"]


def _or_bare_state(schema: dict[str, Any]) -> None:
    mapping = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string", "enum": list(STATES)}, mapping]


class Wanted(Strict):
    """The state that is asked for, and for which topic if not the rule's."""

    model_config = ConfigDict(json_schema_extra=_or_bare_state)

    is_: State = Field(alias="is")
    topic: str | None = Field(default=None, min_length=1, max_length=100)

    @model_validator(mode="before")
    @classmethod
    def _bare_state(cls, document: Any) -> Any:
        if not isinstance(document, str):
            return document
        if document not in STATES:
            raise refusal(unknown("state of consent", document, STATES))
        return {"is": document}


class Parameters(RootModel[dict[str, Wanted]]):
    """By channel; all must hold."""

    @field_validator("root", mode="before")
    @classmethod
    def _known_channels(cls, document: Any) -> Any:
        if not isinstance(document, dict) or not document:
            raise refusal(f"names no channel: write for example {{email: confirmed}}, not {document!r}")
        return {consent_channel(channel, key=True): wanted for channel, wanted in document.items()}


class ConsentCondition(Leaf):
    """One of the person's addresses on the channel is in that state; granted with proof counts as confirmed."""

    name = "consent"
    parameters_type = Parameters
    examples = ({"email": "confirmed"}, {"email": {"topic": "news", "is": "confirmed"}}, {"sms": "withdrawn"})
    parameters: Parameters

    def look(self, facts: Facts, moment: Moment) -> Look:
        looked_at: dict[str, Any] = {}
        holds = True
        for channel, wanted in self.parameters.root.items():
            consents = standing(facts, channel, wanted.topic or moment.topic)
            looked_at[channel] = [
                {"node": consent.node, "topic": consent.topic, "state": consent.state, "at": consent.at}
                for consent in consents
            ]
            holds = any(counts_as(consent, wanted.is_) for consent in consents) and holds
        return Look(holds, looked_at)

    def sql(self, statement: Statement) -> Bounds:
        return all_of([_bounds(statement, channel, wanted) for channel, wanted in self.parameters.root.items()])


def _bounds(statement: Statement, channel: str, wanted: Wanted) -> Bounds:
    rows = standing_sql(statement, channel, wanted.topic or statement.moment.topic)
    states = ["granted", "confirmed"] if wanted.is_ == "confirmed" else [wanted.is_]
    found = f"SELECT profile FROM {rows} s WHERE s.state = ANY({statement.parameter(states, 'text[]')})"
    return statement.among(found, found, others=False)
