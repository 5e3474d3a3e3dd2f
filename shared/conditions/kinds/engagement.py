"""`engagement`: how the person answered to what was sent."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, get_args

from pydantic import RootModel, field_validator

from shared.conditions.consents import event_word, known_channel
from shared.conditions.counting import Counted, events_counted
from shared.conditions.errors import unknown
from shared.conditions.fields import Duration, PositiveCount, Strict, refusal
from shared.conditions.model import Leaf, Look, Moment, Needs
from shared.conditions.sql.builder import Bounds, Statement, Test, all_of
from shared.conditions.sql.events import count_bounds
from shared.facts.model import EventFact, Facts

Answer = Literal["sent", "delivered", "opened", "clicked", "bounced", "complained", "failed"]
ANSWERS: tuple[str, ...] = get_args(Answer)


class Span(Strict):
    """How often, how far back: occurred-at in (T − d, T]."""

    within: Duration | None = None
    at_least: PositiveCount = 1


class Parameters(RootModel[dict[str, dict[Answer, Span]]]):
    """By channel and answer; all must hold."""

    @field_validator("root", mode="before")
    @classmethod
    def _known_channels(cls, document: Any) -> Any:
        if not isinstance(document, dict) or not document:
            raise refusal(
                f"names no channel: write for example {{email: {{opened: {{within: 60d}}}}}}, not {document!r}"
            )
        for channel, answers in document.items():
            if not isinstance(answers, dict) or not answers:
                raise refusal("names no answer: write for example {opened: {within: 60d}}", field=str(channel))
            for answer in answers:
                if answer not in ANSWERS:
                    raise refusal(unknown("answer", str(answer), ANSWERS), field=[str(channel), str(answer)])
        return {known_channel(channel, key=True): answers for channel, answers in document.items()}

    def asked(self) -> list[tuple[str, str, Span, Counted]]:
        """Channel, answer, how often, and the events that say so."""
        return [
            (channel, answer, span, _counted(channel, answer, span))
            for channel, answers in self.root.items()
            for answer, span in answers.items()
        ]


def _counted(channel: str, answer: str, span: Span) -> Counted:
    event = f"{event_word(channel)} {answer.capitalize()}"
    return Counted(event=event) if span.within is None else Counted(event=event, within=span.within)


class Engagement(Leaf):
    """What bots and privacy proxies opened or clicked does not count."""

    name = "engagement"
    parameters_type = Parameters
    examples = ({"email": {"opened": {"within": "60d"}}}, {"sms": {"clicked": {"within": "30d", "at_least": 2}}})
    parameters: Parameters

    def look(self, facts: Facts, moment: Moment) -> Look:
        looked_at: dict[str, Any] = {}
        holds = True
        for channel, answer, span, counted in self.parameters.asked():
            events = [event for event in events_counted(counted, facts, moment) if by_person(event)]
            last = events[-1].occurred_at if events else None
            looked_at.setdefault(channel, {})[answer] = {"count": len(events), "last": last}
            holds = len(events) >= span.at_least and holds
        return Look(holds, looked_at)

    @cached_property
    def needs(self) -> Needs:
        needs = Needs()
        for _, _, _, counted in self.parameters.asked():
            needs |= counted.needs()
        return needs

    def sql(self, statement: Statement) -> Bounds:
        by_person = Test("(e.properties -> 'bot' IS DISTINCT FROM 'true'::jsonb)")
        return all_of(
            [
                count_bounds(statement, counted, fewest=span.at_least, extra=by_person)
                for _, _, span, counted in self.parameters.asked()
            ]
        )


def by_person(event: EventFact) -> bool:
    """Whether the event is not marked as made by a bot."""
    return event.properties.get("bot") is not True
