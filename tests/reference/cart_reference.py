"""When the abandoned-cart rule must want its first letter, worked out from a click stream by plain rules of thumb.

An independent reference for the end-to-end test of click streams. It imports nothing from the product and looks at
nothing but one session's own events. The rule it answers for:

    enter: {on: Product Added, idle: 60 minutes, if: the cart is not empty}
    again: after 7d                     stop: any order
    steps: [send, wait 1 day, send]     holdout: 0 %

What it takes for granted:

1. An event takes effect at its own time (one slice of virtual time an event), and of two events with the same time
   the one that stands first in the stream is first.
2. A person enters at T = (a cart event's time) + 60 minutes if no other cart event follows in (that event, T] and no
   order follows in (that event, T]. Events come before timers: what happens exactly at T still counts.
3. Nothing is ever taken out of a cart except by an order. So after a cart event without a later order there is
   something in the cart, and the entry's condition on the cart never decides.
4. A run ends at entry + 1 day, with its second letter, or earlier at the first order in (entry, entry + 1 day]. An
   order exactly at entry + 1 day ends it too, at the same moment.
5. `again: after 7d` counts from the end of the last run: T must be at or after that end + 7 days. A T that is too
   early is passed over for good: only a cart event after it can lead to another entry.
6. Time goes on after the last event of a stream, so its timers fall due.
7. Somebody who enters gets the first letter wanted at T itself: consent, caps and the choice of channel decide later
   whether it is sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MINUTE = 60 * 1000  # streams count in milliseconds since 1970
DAY = 24 * 60 * MINUTE
IDLE = 60 * MINUTE
RUN = 1 * DAY
AGAIN = 7 * DAY


def first_intents(events: Iterable[Mapping[str, Any]]) -> list[int]:
    """The moments, in milliseconds since 1970, at which the first letter of a run is wanted for one session.

    `events`: the session's events in the order of its stream, each with `ts` (milliseconds) and `type` (clicks, carts
    or orders).
    """
    ordered = sorted(events, key=lambda event: event["ts"])  # stable: equal times keep the stream's order
    wanted: list[int] = []
    free_from: int | None = None
    for place, event in enumerate(ordered):
        if event["type"] != "carts":
            continue
        entry = event["ts"] + IDLE
        if any(later["type"] in ("carts", "orders") and later["ts"] <= entry for later in ordered[place + 1 :]):
            continue
        if free_from is not None and entry < free_from:
            continue
        wanted.append(entry)
        stopped = [later["ts"] for later in ordered if later["type"] == "orders" and entry < later["ts"] <= entry + RUN]
        free_from = min([entry + RUN, *stopped]) + AGAIN
    return wanted


def first_intents_of_file(path: Path) -> dict[int, list[int]]:
    """`first_intents` for every session of a file of JSON lines, by session; sessions without any are there too."""
    return {session["session"]: first_intents(session["events"]) for session in _sessions(path)}


def _sessions(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
