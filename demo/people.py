"""Who the customers are: how they can be recognised, what they like, when they come, what they have agreed to."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Literal

from demo.response import Truth, make_truth

Kind = Literal["visitor", "member", "cardholder"]

# These numbers are reserved for fiction (Ofcom): whatever is configured by mistake, no real telephone rings. There are
# a thousand of them, and two people with one number would be one person; so customers beyond that have none.
_FICTIONAL_PHONES = 1_000

_FIRST = (
    "Anna Boris Vera Gleb Daria Egor Zhanna Ivan Kira Lev Maria Nikita Olga Pavel Raisa Sergei Taisia Fedor Elena "
    "Timur Alina Denis Galina Ilya Larisa Maxim Nina Oleg Polina Roman Sofia Viktor Yana Artem Ksenia Yuri"
).split()
_LAST = (
    "Arsenyev Belov Chaykin Dronov Ershov Filin Gromov Ignatov Kalinin Lunin Markov Nosov Orlov Pavlov Rybin Savin "
    "Titov Ulanov Volkov Yakovlev Zaytsev Berezin Dubov Klenov Lipin Osin Ryabov Topolev"
).split()
_CITIES = ["Moscow", "Saint Petersburg", "Kazan", "Samara", "Perm", "Tver", "Tula"]


@dataclass(frozen=True)
class PastOrder:
    """An order from before the run. `lines`: product id and quantity."""

    at: datetime
    till: bool
    lines: list[tuple[str, int]]


@dataclass
class Person:
    """One customer.

    `since`: since when the shop knows them (None: it does not). `agreed`: channels for which the shop holds a proof of
    consent at the start. `taste`: weight by category. `daily_visits`: chance of a visit to the site on a day;
    `fills`: that a visit puts something into the cart; `buys`: that a filled cart is bought on the spot; `returns`:
    that an abandoned one is bought later without a reminder; `signs_up`: that a visitor subscribes by a form;
    `till_days`: mean days between purchases at the till (None: never).
    """

    index: int
    kind: Kind
    first_name: str
    last_name: str
    email: str
    phone: str | None
    card: str | None
    user_id: str | None
    push_token: str | None
    birthday: date
    city: str
    since: datetime | None
    agreed: list[str]
    devices: list[str]
    taste: dict[str, float]
    favourite_hour: float
    daily_visits: float
    fills: float
    buys: float
    returns: float
    signs_up: float
    till_days: float | None
    truth: Truth
    past_orders: list[PastOrder] = field(default_factory=list)

    @property
    def addresses(self) -> dict[str, str]:
        """Channel → address."""
        known = {"email": self.email, "sms": self.phone, "push": self.push_token}
        return {channel: address for channel, address in known.items() if address}


def make_people(count: int, seed: int, start: datetime, product_ids: list[str], categories: list[str]) -> list[Person]:
    """`count` customers; each depends on the seed and their own number only, not on how many there are."""
    return [
        _person(index, random.Random(f"{seed}/person/{index}"), start, product_ids, categories)
        for index in range(count)
    ]


def _person(
    index: int, chance: random.Random, start: datetime, product_ids: list[str], categories: list[str]
) -> Person:
    kind: Kind = chance.choices(("visitor", "member", "cardholder"), weights=(0.40, 0.38, 0.22))[0]
    first, last = chance.choice(_FIRST), chance.choice(_LAST)
    since = None if kind == "visitor" else _since(kind, chance, start)
    has_account = kind == "member" or (kind == "cardholder" and chance.random() < 0.4)
    phone = (
        f"+447700900{index:03d}" if index < _FICTIONAL_PHONES and kind != "visitor" and chance.random() < 0.8 else None
    )
    push = f"push-{index:04d}-{chance.randrange(16**12):012x}" if kind == "member" and chance.random() < 0.3 else None
    eager = chance.lognormvariate(0, 0.5)
    person = Person(
        index=index,
        kind=kind,
        first_name=first,
        last_name=last,
        email=f"{first}.{last}{index}@example.com".lower(),
        phone=phone,
        card=f"CARD{10_000 + index}" if kind == "cardholder" else None,
        user_id=f"u-{1_000 + index}" if has_account else None,
        push_token=push,
        birthday=date(chance.randint(1958, 2005), chance.randint(1, 12), chance.randint(1, 28)),
        city=chance.choice(_CITIES),
        since=since,
        agreed=_agreed(phone, push, chance) if since and since < start else [],
        devices=[f"browser-{index:04d}-{number}" for number in range(chance.choice((1, 1, 2)))],
        taste=_taste(categories, chance),
        favourite_hour=chance.choice((8.5, 12.5, 13.5, 18.5, 20.0, 21.0)),
        daily_visits=min(0.8, 0.16 * eager),
        fills=min(0.8, chance.betavariate(4, 7)),
        buys=min(0.8, chance.betavariate(3, 6)),
        returns=chance.betavariate(1.5, 12),
        signs_up=chance.betavariate(2, 5) if kind == "visitor" else 0.0,
        till_days=chance.uniform(9, 40) if kind == "cardholder" else None,
        truth=make_truth(chance),
    )
    if since is not None and since < start:
        person.past_orders = _past_orders(person, chance, since, start, product_ids)
    return person


def _since(kind: Kind, chance: random.Random, start: datetime) -> datetime:
    """Most were customers before the run begins; some card holders get their card during it."""
    if kind == "cardholder" and chance.random() < 0.2:
        return start + timedelta(days=chance.uniform(0.5, 14))
    return start - timedelta(days=chance.uniform(10, 800))


def _agreed(phone: str | None, push: str | None, chance: random.Random) -> list[str]:
    likely = {"email": 0.75, "sms": 0.4 if phone else 0.0, "push": 0.9 if push else 0.0}
    return [channel for channel, share in likely.items() if chance.random() < share]


def _taste(categories: list[str], chance: random.Random) -> dict[str, float]:
    return {category: chance.gammavariate(2.0 if category == "vinyl" else 0.7, 1.0) + 0.02 for category in categories}


def _past_orders(
    person: Person, chance: random.Random, since: datetime, start: datetime, product_ids: list[str]
) -> list[PastOrder]:
    """Orders at a rhythm of one's own; a third gave up buying some day, and some never began."""
    if chance.random() < 0.15:
        return []
    rhythm = chance.lognormvariate(4.2, 0.5)  # days; the median is about two months
    ends = since + (start - since) * chance.uniform(0.3, 1.0) if chance.random() < 0.35 else start
    orders: list[PastOrder] = []
    at = since + timedelta(days=chance.uniform(0, 5))
    while at < ends - timedelta(hours=2) and len(orders) < 12:
        lines = [(chance.choice(product_ids), 1) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
        till = person.card is not None and (person.user_id is None or chance.random() < 0.7)
        orders.append(PastOrder(at.replace(microsecond=0), till, list(dict(lines).items())))
        at += timedelta(days=rhythm * chance.uniform(0.6, 1.5))
    return orders
