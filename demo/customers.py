"""A customer as the shop's systems see one while the run goes on: cart, devices, orders, numbers given out."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from demo.catalogue import Product
from demo.people import Person


@dataclass(frozen=True)
class Run:
    """What one run is about. `name` is part of every id that is given out, so two runs never share one."""

    start: datetime
    end: datetime
    slice: timedelta
    seed: int
    customers: int
    shop_url: str

    @property
    def slices(self) -> int:
        return (self.end - self.start) // self.slice

    @property
    def name(self) -> str:
        return f"{self.start:%y%m%d%H%M}-{self.seed}"

    def slice_end(self, moment: datetime) -> datetime:
        """End of the slice in which `moment` lies."""
        return self.start + ((moment - self.start) // self.slice + 1) * self.slice


@dataclass(frozen=True)
class Order:
    """An order of this run. `reference`: the properties that identify it (order id, or the receipt's)."""

    reference: dict[str, str]
    at: datetime
    lines: list[tuple[Product, int]]
    total: int


@dataclass
class Customer:
    """One person's state. `cart`: product id → quantity. `free_from`: end of the present visit."""

    person: Person
    run: Run
    cart: dict[str, int] = field(default_factory=dict)
    coupon: str | None = None
    known_on: set[str] = field(default_factory=set)
    agreed: set[str] = field(default_factory=set)
    requested: bool = False
    orders: list[Order] = field(default_factory=list)
    free_from: datetime | None = None
    visits: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    _events: int = 0

    def chance(self, what: str, number: int) -> random.Random:
        """The chance of one thing in this person's life: it does not depend on anything else that happens."""
        return random.Random(f"{self.run.seed}/{what}/{self.person.index}/{number}")

    def message_id(self) -> str:
        self._events += 1
        return f"demo-{self.run.name}-{self.person.index}-{self._events}"

    def order_id(self) -> str:
        return f"W{self.run.name}-{self.person.index}-{len(self.orders) + 1}"

    def device(self, chance: random.Random) -> str:
        return chance.choice(self.person.devices)
