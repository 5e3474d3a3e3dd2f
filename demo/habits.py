"""What a visit to the site looks like, as a plan of steps; nothing is sent here."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from demo.catalogue import Catalogue, Product
from demo.people import Person

What = Literal[
    "page", "list", "search", "view", "add", "remove", "cart", "log in", "subscribe", "checkout", "order", "abandon"
]
Why = Literal["habit", "cart", "message"]


@dataclass(frozen=True)
class Step:
    """One step of a visit, `at` a moment. `text`: page, category, query or form. `quantity`: of `product`."""

    at: datetime
    what: What
    product: Product | None = None
    quantity: int = 1
    text: str = ""


def next_visit(person: Person, after: datetime, chance: random.Random) -> datetime:
    """When habit brings this person next: on a day of their own pace, around their favourite hour."""
    days = 0
    while chance.random() >= person.daily_visits:
        days += 1
    day = (after + timedelta(days=days)).replace(hour=0, minute=0, second=0, microsecond=0)
    hour = min(23.4, max(7.0, chance.gauss(person.favourite_hour, 1.8)))
    moment = day + timedelta(hours=hour)
    return moment if moment > after else moment + timedelta(days=1)


def visit(
    person: Person,
    catalogue: Catalogue,
    at: datetime,
    chance: random.Random,
    *,
    why: Why,
    in_cart: dict[str, int],
    known_here: bool,
    may_subscribe: bool,
) -> list[Step]:
    """The steps of one visit that begins at `at`.

    `why`: out of habit, back to one's cart without having been asked, or because of a message. `in_cart`: product id →
    quantity lying in the cart. `known_here`: logged in on this device already. `may_subscribe`: has not subscribed yet.
    """
    planner = _Planner(person, catalogue, at, chance)
    return list(planner.steps(why, in_cart, known_here, may_subscribe))


class _Planner:
    def __init__(self, person: Person, catalogue: Catalogue, at: datetime, chance: random.Random) -> None:
        self.person, self.catalogue, self.now, self.chance = person, catalogue, at, chance

    def _step(self, what: What, product: Product | None = None, quantity: int = 1, text: str = "") -> Step:
        step = Step(self.now, what, product, quantity, text)
        self.now += timedelta(seconds=round(self.chance.lognormvariate(3.6, 0.7), 3) + 1)
        return step

    def steps(self, why: Why, in_cart: dict[str, int], known_here: bool, may_subscribe: bool) -> Iterator[Step]:
        chance, person = self.chance, self.person
        buys = {"habit": person.buys, "cart": 1.0, "message": 0.75}[why]
        if why == "habit" or not in_cart:
            yield self._step("page", text="/")
            if person.user_id and not known_here and chance.random() < 0.5:
                yield self._step("log in")
        filled = dict(in_cart)
        if why == "habit" or not in_cart:
            fills = person.fills if why == "habit" else max(person.fills, 0.7)
            yield from self._browse(filled, fills)
        if may_subscribe and chance.random() < person.signs_up:
            yield self._step("subscribe", text=chance.choice(("popup", "footer")))
        added = filled != in_cart
        if not filled or (why == "habit" and not added):
            return
        yield self._step("cart")
        yield from self._check_out(filled, buys)

    def _browse(self, filled: dict[str, int], fills: float) -> Iterator[Step]:
        chance = self.chance
        if chance.random() < 0.3:
            yield self._step("search", text=self.catalogue.pick(self.person.taste, chance).brand)
        elif chance.random() < 0.5:
            yield self._step("list", text=self.catalogue.pick(self.person.taste, chance).category)
        viewed = [self.catalogue.pick(self.person.taste, chance) for _ in range(chance.choice((1, 1, 2, 2, 3, 4)))]
        for product in viewed:
            yield self._step("view", product)
        if chance.random() >= fills:
            return
        for product in {product.product_id: product for product in viewed[-2:]}.values():
            quantity = 2 if product.category == "care" and chance.random() < 0.3 else 1
            yield self._step("add", product, quantity)
            filled[product.product_id] = filled.get(product.product_id, 0) + quantity
        if len(filled) > 1 and chance.random() < 0.25:
            product_id = chance.choice(sorted(filled))
            yield self._step("remove", self.catalogue.by_id[product_id], filled.pop(product_id))

    def _check_out(self, filled: dict[str, int], buys: float) -> Iterator[Step]:
        goes_on = buys + (1 - buys) * 0.3  # some begin to check out and leave after all
        if self.chance.random() >= goes_on:
            yield self._step("abandon")
            return
        yield self._step("checkout")
        if self.person.user_id is None or self.chance.random() < 0.8:
            yield self._step("log in")
        if self.chance.random() < buys / goes_on:
            yield self._step("order")
        else:
            yield self._step("abandon")
