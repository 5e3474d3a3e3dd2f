"""Which stored events and orders a condition counts, and within which time."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Literal

from pydantic import Field, field_validator

from shared.conditions.fields import Duration, Strict
from shared.conditions.model import Moment, Needs
from shared.conditions.values import folded_of, values_at
from shared.conditions.where import Where, current_name, where_holds
from shared.facts.model import EventFact, Facts, Order
from shared.facts.rhythm import counted as counted_of

ORDER_COMPLETED = "Order Completed"


class Span(Strict):
    """How far back: `within` looks at occurred-at in (T − d, T]; `since: entry` at learned-at in (entry, T]."""

    within: Duration | None = None
    since: Literal["entry"] | None = None

    def look_back(self) -> timedelta | None:
        """How far before T rows by occurred-at are wanted; None: to the beginning."""
        return None if self.since else self.within


class Counted(Span):
    """The events that `did` and `did_not` count."""

    event: str = Field(max_length=200)
    where: Where | None = None

    _current_name = field_validator("event")(current_name)

    def needs(self) -> Needs:
        return Needs(names=frozenset({self.event}), look_back=self.look_back(), entry=self.since is not None)


def events_counted(counted: Counted, facts: Facts, moment: Moment) -> list[EventFact]:
    """The matching events as of the moment, by occurred-at; of several reports of one completed order only one."""
    learned = {order.key: order.learned_at for order in facts.orders}
    matching = [
        event
        for event in facts.events
        if event.name == counted.event
        and _in_span(counted, event, facts_learned=learned, moment=moment)
        and where_holds(counted.where, event.properties)
    ]
    matching.sort(key=lambda event: (event.occurred_at, event.id))
    if counted.event != ORDER_COMPLETED:
        return matching
    by_order = {event.order_key or event.id: event for event in reversed(matching)}
    return list(reversed(by_order.values()))


def _in_span(span: Span, event: EventFact, facts_learned: dict[str, datetime], moment: Moment) -> bool:
    if event.occurred_at > moment.at or event.learned_at > moment.at:
        return False
    if span.within is not None and event.occurred_at <= moment.at - span.within:
        return False
    if span.since is None:
        return True
    # A later report of an order that was known before the run began says nothing new.
    learned_at = event.learned_at
    if event.name == ORDER_COMPLETED and event.order_key in facts_learned:
        learned_at = facts_learned[event.order_key]
    return moment.entered_at is not None and learned_at > moment.entered_at and event.id != moment.entry_id


def largest_group(events: list[EventFact], path: str) -> tuple[str | None, int]:
    """The case-folded value at `path` that most of the events share, and how many do. (None, 0) if none has one."""
    groups = Counter(
        folded
        for event in events
        for folded in {folded_of(value) for value in values_at(event.properties, path)}
        if folded is not None
    )
    return min(groups.items(), key=lambda group: (-group[1], group[0]), default=(None, 0))


def orders_counted(facts: Facts, moment: Moment, span: Span | None = None) -> list[Order]:
    """The orders that figures are made of, by time, up to the moment: their money is known, none is cancelled."""
    return [
        order
        for order in counted_of(facts.orders)
        if order.at <= moment.at
        and order.learned_at <= moment.at
        and (span is None or _order_in_span(span, order, moment))
    ]


def _order_in_span(span: Span, order: Order, moment: Moment) -> bool:
    if span.within is not None and order.at <= moment.at - span.within:
        return False
    return span.since is None or (moment.entered_at is not None and order.learned_at > moment.entered_at)
