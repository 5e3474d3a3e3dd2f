"""What the shop's own server and tills report: the base from before, receipts, cards, consents, refunds."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from demo import tracking
from demo.catalogue import Catalogue
from demo.customers import Customer, Order
from demo.people import PastOrder
from demo.tracking import Event, Sent


class BackOffice:
    """Makes events of the secret source."""

    def __init__(self, catalogue: Catalogue, shop_url: str) -> None:
        self.catalogue, self.url = catalogue, shop_url
        self._receipts = 0

    def base(self, customers: Iterable[Customer]) -> Iterator[Event]:
        """The customers whom the shop knew before the run, with proofs of consent and past orders, as history."""
        for customer in customers:
            person = customer.person
            if person.since is None or person.since >= customer.run.start:
                continue
            at = person.since.replace(microsecond=0)
            yield _as_history(self._identify(customer, at))
            for channel in person.agreed:
                yield _as_history(self.consent(customer, channel, at, "registration"))
            for number, order in enumerate(person.past_orders, start=1):
                yield self._past_order(customer, number, order)

    def new_card(self, customer: Customer, at: datetime, chance: random.Random) -> Iterator[Sent]:
        """Somebody gets a loyalty card at the till and signs for messages, or does not."""
        yield Sent(at, "server", self._identify(customer, at))
        for channel, share in (("email", 0.8), ("sms", 0.5)):
            if channel in customer.person.addresses and chance.random() < share:
                at += timedelta(seconds=5)
                yield Sent(at, "server", self.consent(customer, channel, at, "till"))

    def _identify(self, customer: Customer, at: datetime) -> Event:
        person = customer.person
        event = tracking.call(
            "identify", customer.message_id(), at, self._who(customer), traits=tracking.traits(person)
        )
        if person.push_token:
            event["context"] = {"device": {"token": person.push_token, "type": "android"}}
        return event

    def _who(self, customer: Customer) -> dict[str, str]:
        return {"userId": customer.person.user_id} if customer.person.user_id else {}

    def consent(self, customer: Customer, channel: str, at: datetime, form: str) -> Event:
        """*Consent Granted* with its proof."""
        customer.agreed.add(channel)
        address = customer.person.addresses[channel]
        properties = tracking.consent_granted(channel, address, at, form, f"{self.url}/{form}")
        return self._about(customer, "Consent Granted", at, properties)

    def _about(self, customer: Customer, name: str, at: datetime, properties: dict[str, Any]) -> Event:
        """An event about somebody whom the server knows by account, card or address."""
        event = tracking.track(name, customer.message_id(), at, self._who(customer), properties)
        if not customer.person.user_id:
            known = {"card": customer.person.card, "email": customer.person.email}
            event["context"] = {"traits": {kind: value for kind, value in known.items() if value}}
        return event

    def purchase(self, customer: Customer, at: datetime, chance: random.Random) -> Event:
        """A receipt of the till, shown with the loyalty card."""
        person = customer.person
        picked = [self.catalogue.pick(person.taste, chance) for _ in range(chance.choice((1, 1, 2, 3)))]
        lines = list({product.product_id: (product, 1) for product in picked}.values())
        self._receipts += 1
        receipt = f"{customer.run.name}-{person.index}-{len(customer.orders) + 1}"
        reference = {"store_id": "store-1", "terminal_id": str(chance.randint(1, 3)), "receipt_id": receipt}
        total = tracking.total(lines)
        customer.orders.append(Order(reference, at, lines, total))
        return self._receipt(customer, at, reference, lines, total)

    def _receipt(self, customer: Customer, at: datetime, reference: dict[str, str], lines: list, total: int) -> Event:
        properties = reference | {
            "channel": "pos",
            "affiliation": "store",
            "card": customer.person.card,
            "total": total,
            "currency": tracking.CURRENCY,
            "products": tracking.products(lines, self.url),
        }
        event = tracking.track("Order Completed", customer.message_id(), at, {}, properties)
        event["context"] = {"traits": {"card": customer.person.card}}
        return event

    def _past_order(self, customer: Customer, number: int, order: PastOrder) -> Event:
        lines = [(self.catalogue.by_id[product_id], quantity) for product_id, quantity in order.lines]
        total, name = tracking.total(lines), f"{customer.person.index}-past-{number}"
        if order.till:
            reference = {"store_id": "store-1", "terminal_id": "1", "receipt_id": name}
            event = self._receipt(customer, order.at, reference, lines, total)
        else:
            properties = {"order_id": f"W{name}", "affiliation": "site", "total": total, "currency": tracking.CURRENCY}
            properties["products"] = tracking.products(lines, self.url)
            event = self._about(customer, "Order Completed", order.at, properties)
        return _as_history(event)

    def refund(self, customer: Customer, order: Order, at: datetime) -> Event:
        """The whole order comes back."""
        properties = order.reference | {
            "refund_id": f"R{customer.run.name}-{customer.person.index}-{customer.orders.index(order) + 1}",
            "total": order.total,
            "currency": tracking.CURRENCY,
            "products": tracking.products(order.lines, self.url),
        }
        return self._about(customer, "Order Refunded", at, properties)

    def adds_card(self, customer: Customer, at: datetime) -> Event:
        """A card holder enters the card into their account on the site: from here on both are one person."""
        return tracking.call(
            "identify", customer.message_id(), at, self._who(customer), traits={"card": customer.person.card}
        )


def _as_history(event: Event) -> Event:
    """It happened before: it is known from here on, and starts nothing."""
    return event | {"context": event.get("context", {}) | {"dripline": {"history": True}}}
