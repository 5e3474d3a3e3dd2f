"""People, events and rules for tests of the pure engine: everything is given, nothing is looked up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from services.triggers import engine
from services.triggers.rule import read
from services.triggers.run import Decided, Known, Run
from services.triggers.steps.base import Happened, Version, World
from shared.facts.model import Address, Cart, CartItem, EventFact, Facts, Order

T0 = datetime(2026, 3, 2, 10, 0, tzinfo=UTC)  # a Monday
SPACE = UUID("00000000-0000-0000-0000-00000000feed")
RULE = uuid5(SPACE, "rule")
NODE = uuid5(SPACE, "anna")
MOSCOW = World(zone=ZoneInfo("Europe/Moscow"), country="RU")


def at(**later: float) -> datetime:
    """10:00 UTC of that Monday and some more."""
    return T0 + timedelta(**later)


def rule(**fields: Any) -> Version:
    """Version 1 of a rule; entered by *Product Viewed* with one letter unless said otherwise."""
    document = {"name": "a-rule", "enter": {"on": "Product Viewed"}, "steps": [{"send": "letter"}]} | fields
    return Version(rule=RULE, number=1, document=read(document))


def event(name: str, moment: datetime, *, node: UUID = NODE, key: str = "", **fields: Any) -> EventFact:
    """An event learned as it occurred, from a secret source."""
    defaults = {"occurred_at": moment, "learned_at": moment, "trust": "secret", "properties": {}}
    return EventFact(
        **({"id": uuid5(SPACE, f"{name}{moment}{node}{key}"), "node": node, "name": name} | defaults | fields)
    )


def order_event(moment: datetime, key: str = "o-1", **fields: Any) -> EventFact:
    defaults = {"properties": {"total": "1500"}, "order_key": key, "first": True}
    return event("Order Completed", moment, **(defaults | fields))


def happened(fact: EventFact, moment: datetime | None = None) -> Happened:
    return Happened(event=fact, moment=moment or fact.learned_at)


def order(moment: datetime, total: int | None = 1500, key: str = "o-1", **fields: Any) -> Order:
    return Order(
        key=key,
        node=NODE,
        at=fields.pop("at", moment),
        learned_at=moment,
        total=None if total is None else Decimal(total),
        **fields,
    )


def facts(moment: datetime = T0, *, cart: int = 0, **fields: Any) -> Facts:
    """One person's facts as of a moment; `cart`: the total of one product lying in it, 0 for an empty cart."""
    items = [CartItem(product_id="p-1", quantity=Decimal(1), price=Decimal(cart), added_at=T0)] if cart else []
    return Facts(
        profile=uuid5(SPACE, "person"),
        nodes=[NODE],
        as_of=moment,
        last_learned_at=moment,
        cart=Cart(items=items, total=Decimal(cart), changed_at=T0),
        **fields,
    )


def address(value: str = "anna@example.com", status: str = "claimed") -> Address:
    return Address(kind="email", node=uuid5(SPACE, value), value=value, status=status)


def entering(
    version: Version,
    moment: datetime = T0,
    *,
    by: EventFact | None = None,
    known: list[Known] | None = None,
    **about: Any,
):
    """What comes of somebody who may enter; `about` are the person's facts."""
    fact = by or event("Product Viewed", moment)
    asking = engine.Asking(version=version, at=moment, origin=fact.node, key=str(fact.id), event=fact)
    return engine.enter(asking, known or [], facts(moment, **about), MOSCOW)


def entered(version: Version, moment: datetime = T0, **about: Any) -> Run:
    """The run of somebody who enters; fails if nobody does."""
    decided = entering(version, moment, **about)
    assert isinstance(decided, Decided), decided
    return decided.run


def advanced(run: Run, stimulus: engine.Stimulus, moment: datetime, version: Version, **about: Any) -> Decided:
    """What the run does; fails if it does nothing."""
    decided = engine.advance(run, stimulus, moment, facts(moment, **about), version, MOSCOW)
    assert decided is not None, "the run is not concerned"
    return decided


def heard(run: Run, fact: EventFact, version: Version, moment: datetime | None = None, **about: Any) -> Decided | None:
    return engine.advance(
        run, happened(fact, moment), fact.learned_at, facts(fact.learned_at, **about), version, MOSCOW
    )


def timer(run: Run, version: Version, **about: Any) -> Decided:
    """The run's step timer fires when it is due."""
    assert run.due is not None, "the run waits for nothing"
    return advanced(run, engine.StepDue(), run.due, version, **about)
