"""What waits for a person: events that concern a rule, and timers, in one queue with one order."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any
from uuid import UUID

import msgspec

from services.triggers.run import Run
from services.triggers.steps.base import Happened
from shared.events import ProfileEvent
from shared.facts.model import EventFact, Order
from shared.ids import derived_id

NOBODY = UUID(int=0)
ORDER_COMPLETED = "Order Completed"


class ItemKind(IntEnum):
    """Kinds below IDLE are about something that happened and come before timers of the same moment."""

    EVENT = 0
    MERGED = 1
    REMOVED = 2
    IDLE = 3
    STEP = 4
    GOAL = 5
    SCHEDULE = 6


class Item(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One row of the queue. `id` is its natural key under the node."""

    node: UUID
    id: UUID
    kind: int
    due: datetime
    rule: UUID | None = None
    run: UUID | None = None
    payload: dict[str, Any] = {}

    @property
    def order(self) -> tuple[Any, ...]:
        """One order per person: time, events before timers, rule, run."""
        later = self.kind >= ItemKind.IDLE
        return (self.due, later, self.rule or NOBODY, self.run or NOBODY, self.kind, self.id, self.node)


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def fact_of(record: ProfileEvent) -> EventFact:
    """The event of a record as conditions see it; equal to the stored one."""
    event = record.event
    return EventFact(
        id=event.id,
        node=event.origin,
        name=event.name,
        occurred_at=event.occurred_at,
        learned_at=record.learned_at,
        trust=event.trust,
        history=event.history,
        properties=event.properties,
        source=event.source,
        order_key=record.order_key,
        first=record.first,
        hops=event.hops,
    )


def moment_of(event: EventFact, orders: list[Order]) -> datetime:
    """When the event counts as having happened for stop, goal and wait_for. An order happens when any source first
    reported it, so that a nightly file which repeats yesterday's stops nothing today."""
    if event.name == ORDER_COMPLETED and event.order_key is not None:
        return next((order.learned_at for order in orders if order.key == event.order_key), event.learned_at)
    return event.learned_at


def event_item(record: ProfileEvent) -> Item:
    fact = fact_of(record)
    happened = Happened(event=fact, moment=moment_of(fact, record.facts.orders))
    payload = {"event": fact, "moment": happened.moment}
    return Item(node=fact.node, id=fact.id, kind=ItemKind.EVENT, due=fact.learned_at, payload=payload)


def happened_of(item: Item) -> Happened:
    """The event of an item as it was put in."""
    payload = item.payload
    return Happened(
        event=msgspec.convert(payload["event"], EventFact),
        moment=msgspec.convert(payload["moment"], datetime),
    )


# ── timers ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def idle_item(rule: UUID, event: EventFact, idle: timedelta) -> Item:
    return Item(
        node=event.node,
        id=idle_item_id(rule),
        kind=ItemKind.IDLE,
        due=event.learned_at + idle,
        rule=rule,
    )


def idle_item_id(rule: UUID) -> UUID:
    return derived_id("idle", rule)


def step_item_id(run: UUID) -> UUID:
    return derived_id("step", run)


def goal_item_id(run: UUID) -> UUID:
    return derived_id("goal", run)


def timers_of(run: Run) -> list[Item]:
    """The timers that the run's state asks for."""
    found = []
    if run.live and run.due is not None:
        found.append(_timer(run, step_item_id(run.id), ItemKind.STEP, run.due))
    if run.watching and run.closes_at is not None:
        found.append(_timer(run, goal_item_id(run.id), ItemKind.GOAL, run.closes_at))
    return found


def _timer(run: Run, id: UUID, kind: ItemKind, due: datetime) -> Item:
    return Item(node=run.origin, id=id, kind=kind, due=due, rule=run.rule, run=run.id)
