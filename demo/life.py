"""The loop over the slices of virtual time: post what happens, close the slice, let people read their messages."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

from demo.api import Api
from demo.driver import Driver
from demo.shop import Post, Shop


def live(shop: Shop, api: Api, driver: Driver) -> dict[str, Any]:
    """Lives the whole run; what happened, as plain numbers. Raises ApiProblem and DriverGone."""
    run = shop.run
    links: Counter[str] = Counter()
    driver.ready(run.slices)
    closed = run.start
    while (due := shop.next_due()) is not None:
        start = run.slice_end(due) - run.slice
        if start > closed:
            # One close for the last slice with events and the empty ones after it; what was sent meanwhile may bring
            # something into a slice before `start`, so look again.
            driver.close(start)
            closed = start
            _read_messages(shop, api, closed)
            continue
        end = start + run.slice
        driver.slice(start, end)
        for thing in shop.take(end):
            driver.at(thing.at)
            if isinstance(thing, Post):
                api.post(thing)
            else:
                links[f"{thing.what} {api.touch(thing)}"] += 1
    driver.close(run.end)
    _read_messages(shop, api, run.end)
    return _stats(shop, links)


def _read_messages(shop: Shop, api: Api, now: datetime) -> None:
    for message in api.new_messages(shop.run.start):
        shop.receive(message, now)


def _stats(shop: Shop, links: Counter[str]) -> dict[str, Any]:
    tally = shop.tally
    return {
        "people": len(shop.customers),
        "events": dict(tally.events.most_common()),
        "events_total": tally.events.total(),
        "visits": dict(tally.visits),
        "carts_abandoned": tally.abandoned,
        "orders": dict(tally.orders),
        "revenue": dict(tally.revenue),
        "reactions": dict(tally.reactions.most_common()),
        "links": dict(links.most_common()),
        "messages_for_nobody": tally.for_nobody,
    }
