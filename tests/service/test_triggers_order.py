"""One order per person: however arrivals and watermarks are cut, the runs are those of an independent reference."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest

from services.triggers.derive import derive
from shared.events import Event
from tests.reference.cart_reference import first_intents
from tests.support.engine import T0
from tests.support.triggers import Shop, open_shop

RULE = {
    "name": "cart",
    "enter": {"on": "Product Added", "idle": "1h", "if": {"cart": {"not_empty": True}}},
    "again": "after 7d",
    "max_age": "2d",
    "stop": [{"event": "Order Completed"}],
    "steps": [{"send": "first"}, {"wait": "1d"}, {"send": "second"}],
}
PEOPLE = 25
MICROSECOND = timedelta(microseconds=1)
Stream = list[dict[str, object]]


def streams(seed: int) -> dict[str, Stream]:
    """Two weeks of clicks of some people, with gaps that like to be exactly an hour."""
    chance = random.Random(seed)
    found: dict[str, Stream] = {}
    for number in range(PEOPLE):
        moment, stream = int(T0.timestamp() * 1000) + chance.randrange(86_400) * 1000, []
        for _ in range(chance.randrange(2, 14)):
            kind = chance.choices(["carts", "orders", "clicks"], [6, 2, 2])[0]
            stream.append({"type": kind, "ts": moment, "aid": chance.randrange(5)})
            moment += chance.choice([60, 1800, 3599, 3600, 3601, 7200, 86_400, 8 * 86_400]) * 1000 + chance.choice(
                [0, 0, 1]
            )
        found[f"person-{number}"] = stream
    return found


def event_of(shop: Shop, user: str, place: int, click: dict[str, object]) -> Event:
    at = datetime.fromtimestamp(int(click["ts"]) / 1000, UTC)  # type: ignore[call-overload]
    message = f"{user}/{place}"
    product = {"product_id": f"p-{click['aid']}-{place}", "quantity": 1, "price": 10}
    match click["type"]:
        case "carts":
            return shop.event("Product Added", at, user, properties=product, message=message)
        case "orders":
            # What was in the cart is bought: the reference knows no rests.
            said = {"order_id": message, "total": 10}
            return shop.event("Order Completed", at, user, properties=said, message=message)
    return shop.event("Product Viewed", at, user, properties=product, message=message)


async def live(shop: Shop, clicks: dict[str, Stream], cut: str, seed: int) -> None:
    """Posts everything in the order of time; the watermark follows as `cut` says, never past what was not posted."""
    chance = random.Random(seed + 1)
    events = [
        event_of(shop, user, place, click) for user, stream in clicks.items() for place, click in enumerate(stream)
    ]
    events.sort(key=lambda event: event.received_at)
    batch: list[Event] = []
    for index, event in enumerate(events):
        batch.append(event)
        last = index + 1 == len(events)
        if (
            not last
            and (cut == "by event" or chance.random() < 0.2)
            and events[index + 1].received_at > event.received_at
        ):
            await shop.post(*batch)
            batch = []
            if cut == "by event" or (cut == "at random" and chance.random() < 0.5):
                await shop.watermark(events[index + 1].received_at - MICROSECOND)
    await shop.post(*batch)
    await shop.watermark(events[-1].received_at + timedelta(days=20))


@pytest.mark.parametrize("cut", ["by event", "at random", "one backlog"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_the_first_letters_are_those_of_the_reference(database_url: str, cut: str, seed: int) -> None:
    clicks = streams(seed)
    async with open_shop(database_url) as shop:
        await shop.rule(**RULE)
        await live(shop, clicks, cut, seed)
        found: dict[str, list[int]] = defaultdict(list)
        people = {shop.node("user_id", user): user for user in clicks}
        for intent in shop.intents:
            if intent.template == "first":
                found[people[intent.origin]].append(round(intent.decided_at.timestamp() * 1000))
        expected = {user: first_intents(stream) for user, stream in clicks.items()}
        assert sum(map(len, expected.values())) > PEOPLE, "the streams are too quiet to say anything"
        assert {user: sorted(found[user]) for user in clicks} == expected
        derived = await derive(shop.triggers.database, shop.world, T0, T0 + timedelta(days=400))
        assert derived.count > 2 * PEOPLE and derived.differences == []
