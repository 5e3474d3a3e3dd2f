"""What the clients are told to say, and what came of it on the person's timeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.clients.programs import Call, Client
from tests.support.shop import Shop

# Each kind of value that a client's JSON could spoil.
WHOLE: dict[str, Any] = {
    "product_id": "p-1",
    "name": "Чайник «Гжель» ☕",
    "price": 1499.9,
    "quantity": 2,
    "big": 9007199254740991,
    "empty": "",
    "none": None,
    "yes": True,
    "nested": {"list": [1, "два", {"three": 3}], "quote": '" \\ \n'},
}
MARKER = "Marker Seen"


def viewed(number: int, who: dict[str, str]) -> Call:
    """One of several events that differ in a number."""
    return {"call": "track", "event": "Product Viewed", **who, "properties": {**WHOLE, "number": number}}


class Told:
    """One client's person: whose events they are, and by which key."""

    def __init__(self, shop: Shop, client: Client, name: str) -> None:
        self._shop, self._public = shop, client.public
        self.key = shop.site_key if client.public else shop.server_key
        # The origin of a public event is its anonymous id, of a server's its user id.
        self.who = {"anonymousId": f"a-{name}"} if client.public else {"userId": f"u-{name}"}
        self._question = {"anonymous_id": f"a-{name}"} if client.public else {"user_id": f"u-{name}"}

    async def events(self) -> list[dict[str, Any]]:
        """All of the person's events, oldest first, once everything that was answered up to now has taken effect.

        A marker goes the same way: its record has the same origin, so it lies in the same partition behind theirs.
        """
        marker = {"type": "track", "event": MARKER, **self.who}
        await self._shop.tell(marker, key=self.key)
        profile = (await self._shop.known(**self._question))["id"]
        markers = await self._shop.heard(profile, MARKER)
        learned = min(marker["learned_at"] for marker in markers)
        events = [event for event in await self._shop.timeline(profile) if event["name"] != MARKER]
        assert all(event["learned_at"] < learned for event in events), "something came behind the marker"
        return sorted(events, key=lambda event: event["occurred_at"])


def said(events: Sequence[dict[str, Any]], kind: str = "track") -> list[dict[str, Any]]:
    """The properties of the events of one kind, in the order of their numbers."""
    found = [event["properties"] for event in events if event["type"] == kind]
    return sorted(found, key=lambda properties: properties.get("number", 0))
