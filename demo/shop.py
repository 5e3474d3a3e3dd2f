"""The shop's life: who visits when, what is left in carts, who buys at the till, what messages make of people.

Everything due lies in one queue ordered by time. `take(end)` hands out what happens before `end`, in order; `receive`
lets a customer react to a message, which puts more into the queue. Nothing here talks to anybody.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from demo.backoffice import BackOffice
from demo.catalogue import Catalogue
from demo.customers import Customer, Order, Run
from demo.habits import Why, next_visit, visit
from demo.people import make_people
from demo.response import react
from demo.site import Site
from demo.tracking import Event, Sent, Source

# The base from before the run is handed over in parts of so many events.
_PART = 200
_REFUNDED = 0.05


class Post(NamedTuple):
    """Events that one source posts together at `at`, the time of the last of them."""

    at: datetime
    source: Source
    events: list[Event]


class Touch(NamedTuple):
    """What somebody does with a message's link."""

    at: datetime
    what: Literal["open", "click", "confirm", "unsubscribe"]
    url: str


@dataclass(frozen=True)
class Message:
    """A message that was sent, as the API tells of it. `links`: click, open, unsubscribe or confirm → addresses."""

    id: str
    rule: str
    channel: str
    address: str
    sent_at: datetime
    links: dict[str, list[str]]
    coupon: str | None = None


@dataclass
class Tally:
    """What happened, counted on the shop's side."""

    events: Counter[str] = field(default_factory=Counter)
    orders: Counter[str] = field(default_factory=Counter)
    revenue: Counter[str] = field(default_factory=Counter)
    reactions: Counter[str] = field(default_factory=Counter)
    visits: Counter[str] = field(default_factory=Counter)
    abandoned: int = 0
    for_nobody: int = 0


class Shop:
    """The simulation. Deterministic: the same run and the same messages received make the same posts."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.catalogue = Catalogue()
        self.site = Site(self.catalogue, run.shop_url)
        self.office = BackOffice(self.catalogue, run.shop_url)
        self.tally = Tally()
        product_ids = [product.product_id for product in self.catalogue.products]
        people = make_people(run.customers, run.seed, run.start, product_ids, self.catalogue.categories)
        self.customers = [Customer(person, run, agreed=set(person.agreed)) for person in people]
        self._by_address = {
            address.lower(): customer for customer in self.customers for address in customer.person.addresses.values()
        }
        self._queue: list[tuple[datetime, int, Post | Touch | Callable[[], None]]] = []
        self._order = itertools.count()
        self._now = run.start
        self._open()

    def next_due(self) -> datetime | None:
        """When something happens next, or None if nothing will before the end of the run."""
        return self._queue[0][0] if self._queue and self._queue[0][0] < self.run.end else None

    def take(self, end: datetime) -> Iterator[Post | Touch]:
        """All that happens before `end`, in the order of time."""
        while self._queue and self._queue[0][0] < min(end, self.run.end):
            self._now, _, thing = heapq.heappop(self._queue)
            if isinstance(thing, Post | Touch):
                self._count(thing)
                yield thing
            else:
                thing()

    def receive(self, message: Message, now: datetime) -> None:
        """Lets the addressee react, not before `now`."""
        customer = self._by_address.get(message.address.lower())
        if customer is None:
            self.tally.for_nobody += 1
            return
        number = customer.received[message.rule]
        customer.received[message.rule] += 1
        chance = customer.chance(f"message/{message.rule}", number)
        asks = bool(message.links.get("confirm"))
        reaction = react(
            customer.person.truth,
            message.channel,
            message.sent_at.astimezone(self.run.start.tzinfo),
            asks=asks,
            relevance=2.5 if customer.cart else 1.0,
            chance=chance,
        )
        self.tally.reactions[f"{message.channel} {reaction.what}"] += 1
        if reaction.what == "ignored":
            return
        at = max(now, message.sent_at + reaction.after)
        self._touch(at, "open", message)
        at += timedelta(seconds=chance.uniform(4, 40))
        if reaction.what == "confirmed":
            self._touch(at, "confirm", message)
        elif reaction.what == "unsubscribed":
            self._touch(at, "unsubscribe", message)
        elif reaction.what == "acted":
            self._touch(at, "click", message)
            self._at(at + timedelta(seconds=2), lambda: self._come(customer, "message", message.coupon))

    # -- what is due

    def _at(self, at: datetime, thing: Post | Touch | Callable[[], None]) -> None:
        heapq.heappush(self._queue, (at, next(self._order), thing))

    def _touch(self, at: datetime, what: Literal["open", "click", "confirm", "unsubscribe"], message: Message) -> None:
        for url in message.links.get(what, [])[:1]:
            self._at(at, Touch(at, what, url))

    def _post(self, sent: list[Sent]) -> None:
        """Puts events into posts: what one source reports within one slice goes together."""
        for _, group in itertools.groupby(sent, key=lambda one: (one.source, self.run.slice_end(one.at))):
            together = list(group)
            post = Post(together[-1].at, together[0].source, [one.event for one in together])
            self._at(post.at, post)

    def _open(self) -> None:
        """The first morning: the base is handed over, and everybody's first visits are planned."""
        at = self.run.start + timedelta(seconds=1)
        events = list(self.office.base(self.customers))
        for part in range(0, len(events), _PART):
            self._at(at, Post(at, "server", events[part : part + _PART]))
        for customer in self.customers:
            self._plan_visit(customer, self.run.start)
            self._plan_till(customer)

    def _plan_visit(self, customer: Customer, after: datetime) -> None:
        number = customer.visits["planned"]
        customer.visits["planned"] += 1
        at = next_visit(customer.person, after, customer.chance("pace", number))
        if at < self.run.end:
            self._at(at, lambda: self._habit(customer, at))

    def _habit(self, customer: Customer, at: datetime) -> None:
        if customer.free_from is None or customer.free_from <= at:
            self._come(customer, "habit", None, at)
        next_day = (at + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        self._plan_visit(customer, next_day)

    def _come(self, customer: Customer, why: Why, coupon: str | None, at: datetime | None = None) -> None:
        """One visit to the site: its steps become posts, and a cart left behind may be thought of again."""
        number = customer.visits[why]
        customer.visits[why] += 1
        self.tally.visits[why] += 1
        chance = customer.chance(f"visit/{why}", number)
        begins = max(at or self._now, customer.free_from or self._now)
        device = customer.device(chance)
        customer.coupon = coupon or customer.coupon
        orders_before = len(customer.orders)
        steps = visit(
            customer.person,
            self.catalogue,
            begins,
            chance,
            why=why,
            in_cart=customer.cart,
            known_here=device in customer.known_on,
            may_subscribe=not customer.requested and "email" not in customer.agreed,
        )
        sent = self.site.visit(customer, device, steps, chance)
        customer.free_from = max(step.at for step in steps) + timedelta(minutes=1) if steps else begins
        self._post(sent)
        if len(customer.orders) > orders_before:
            self._sold(customer, f"site, {why}")
        elif customer.cart and any(step.what == "abandon" for step in steps):
            self.tally.abandoned += 1
            if chance.random() < customer.person.returns:
                back = customer.free_from + timedelta(hours=chance.uniform(0.4, 40))
                self._at(back, lambda: self._return(customer))

    def _return(self, customer: Customer) -> None:
        if customer.cart:
            self._come(customer, "cart", None)

    def _plan_till(self, customer: Customer) -> None:
        person = customer.person
        if person.till_days is None:
            return
        number = customer.visits["till planned"]
        customer.visits["till planned"] += 1
        chance = customer.chance("till", number)
        at = self._now + timedelta(days=chance.expovariate(1 / person.till_days))
        if number == 0 and _is_new(customer):
            at = person.since or at
        at = at.replace(hour=chance.randint(10, 19), minute=chance.randint(0, 59), second=chance.randint(0, 59))
        if at <= self._now:
            at += timedelta(days=1)
        if at < self.run.end:
            self._at(at, lambda: self._buy_at_till(customer, at, number))

    def _buy_at_till(self, customer: Customer, at: datetime, number: int) -> None:
        chance = customer.chance("basket", number)
        sent: list[Sent] = []
        if number == 0 and _is_new(customer):
            sent += self.office.new_card(customer, at, chance)
            at += timedelta(seconds=30)
        sent.append(Sent(at, "server", self.office.purchase(customer, at, chance)))
        self._post(sent)
        self._sold(customer, "till")
        if customer.person.user_id and number == 0:
            later = at + timedelta(hours=chance.uniform(1, 60))
            self._at(later, lambda: self._post([Sent(later, "server", self.office.adds_card(customer, later))]))
        self._plan_till(customer)

    def _sold(self, customer: Customer, where: str) -> None:
        order = customer.orders[-1]
        self.tally.orders[where] += 1
        self.tally.revenue[where] += order.total
        chance = customer.chance("refund", len(customer.orders))
        if chance.random() < _REFUNDED:
            at = order.at + timedelta(days=chance.uniform(2, 8))
            self._at(at, lambda: self._refund(customer, order, at))

    def _refund(self, customer: Customer, order: Order, at: datetime) -> None:
        self._post([Sent(at, "server", self.office.refund(customer, order, at))])
        self.tally.orders["refunded"] += 1
        self.tally.revenue["refunded"] += order.total

    def _count(self, thing: Post | Touch) -> None:
        if isinstance(thing, Post):
            self.tally.events.update(str(event.get("event") or event["type"]) for event in thing.events)


def _is_new(customer: Customer) -> bool:
    """Whether somebody becomes a customer during the run."""
    since = customer.person.since
    return since is not None and since >= customer.run.start
