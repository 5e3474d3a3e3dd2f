"""The shop's web site and the server behind it: a visit's steps as events of the public and the secret source."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta

from demo import tracking
from demo.catalogue import COUPONS, Catalogue, Product
from demo.customers import Customer, Order
from demo.habits import Step
from demo.tracking import Sent


class Site:
    """Turns a visit into events and keeps the customer's cart and log-in as the site has them."""

    def __init__(self, catalogue: Catalogue, shop_url: str) -> None:
        self.catalogue, self.url = catalogue, shop_url

    def visit(self, customer: Customer, device: str, steps: list[Step], chance: random.Random) -> list[Sent]:
        return [sent for step in steps for sent in self._step(customer, device, step, chance)]

    def _step(self, customer: Customer, device: str, step: Step, chance: random.Random) -> Iterator[Sent]:
        match step.what:
            case "page":
                yield self._page(customer, device, step.at, step.text)
            case "list":
                listed = {"list_id": step.text, "category": step.text}
                yield self._track(customer, device, step.at, "Product List Viewed", listed)
            case "search":
                yield self._track(customer, device, step.at, "Products Searched", {"query": step.text})
            case "view" | "add" | "remove":
                yield self._product(customer, device, step)
            case "cart":
                properties = {"cart_id": _cart_id(customer), "products": self._products(customer)}
                yield self._track(customer, device, step.at, "Cart Viewed", properties)
            case "subscribe":
                yield from self._subscribe(customer, device, step)
            case "log in":
                yield from self._log_in(customer, device, step.at)
            case "checkout":
                yield self._checkout(customer, device, step.at)
            case "order":
                yield from self._order(customer, device, step.at, chance)
            case "abandon":
                pass

    def _who(self, customer: Customer, device: str) -> dict[str, str]:
        """What the site's script knows: its own cookie, and the account if somebody has logged in on this device."""
        who = {"anonymousId": device}
        if customer.person.user_id and device in customer.known_on:
            who["userId"] = customer.person.user_id
        return who

    def _track(self, customer: Customer, device: str, at: datetime, name: str, properties: dict) -> Sent:
        who = self._who(customer, device)
        return Sent(at, "site", tracking.track(name, customer.message_id(), at, who, properties))

    def _page(self, customer: Customer, device: str, at: datetime, path: str) -> Sent:
        properties = {"path": path, "url": self.url + path, "title": "The Record Shelf"}
        who = self._who(customer, device)
        return Sent(at, "site", tracking.call("page", customer.message_id(), at, who, properties=properties))

    def _product(self, customer: Customer, device: str, step: Step) -> Sent:
        product = step.product
        if product is None:
            raise ValueError(f"the step {step.what!r} names no product")
        if step.what == "view":
            properties = tracking.product(product, self.url)
            return self._track(customer, device, step.at, "Product Viewed", properties)
        properties = tracking.product(product, self.url, step.quantity, _cart_id(customer))
        if step.what == "add":
            customer.cart[product.product_id] = customer.cart.get(product.product_id, 0) + step.quantity
            return self._track(customer, device, step.at, "Product Added", properties)
        customer.cart.pop(product.product_id, None)
        return self._track(customer, device, step.at, "Product Removed", properties)

    def _subscribe(self, customer: Customer, device: str, step: Step) -> Iterator[Sent]:
        customer.requested = True
        properties = tracking.subscription_requested(step.text, customer.person, f"{self.url}/#{step.text}")
        yield self._track(customer, device, step.at, "Subscription Requested", properties)

    def _log_in(self, customer: Customer, device: str, at: datetime) -> Iterator[Sent]:
        """Somebody logs in, or a guest leaves their address at the checkout; the shop's server says who it is."""
        person = customer.person
        if device in customer.known_on:
            return
        customer.known_on.add(device)
        who = {"userId": person.user_id, "anonymousId": device} if person.user_id else {"anonymousId": device}
        known = tracking.traits(person) if person.user_id else {"email": person.email, "first_name": person.first_name}
        known.pop("card", None)
        if person.user_id:
            yield Sent(at, "site", tracking.call("identify", customer.message_id(), at, who, traits={}))
        later = at + timedelta(seconds=0.4)
        yield Sent(later, "server", tracking.call("identify", customer.message_id(), later, who, traits=known))

    def _checkout(self, customer: Customer, device: str, at: datetime) -> Sent:
        lines = self._lines(customer)
        properties = {
            "order_id": customer.order_id(),
            "value": tracking.total(lines),
            "currency": tracking.CURRENCY,
            "products": tracking.products(lines, self.url),
        }
        return self._track(customer, device, at, "Checkout Started", properties)

    def _order(self, customer: Customer, device: str, at: datetime, chance: random.Random) -> Iterator[Sent]:
        """The site's script reports the order, and a little later the server does, with the money that counts."""
        person, lines = customer.person, self._lines(customer)
        reference = {"order_id": customer.order_id()}
        subtotal = tracking.total(lines)
        discount = COUPONS[customer.coupon].discount(subtotal) if customer.coupon else 0
        properties = reference | {
            "affiliation": "site",
            "subtotal": subtotal,
            "discount": discount,
            "total": subtotal - discount,
            "currency": tracking.CURRENCY,
            "products": tracking.products(lines, self.url),
        }
        if customer.coupon:
            properties["coupon"] = customer.coupon
        yield self._track(customer, device, at, "Order Completed", properties)
        later = at + timedelta(seconds=round(chance.uniform(1, 20), 3))
        who = {"userId": person.user_id} if person.user_id else {"anonymousId": device}
        event = tracking.track("Order Completed", customer.message_id(), later, who, properties)
        event["context"] = {"traits": {"email": person.email}}
        yield Sent(later, "server", event)
        customer.orders.append(Order(reference, at, lines, subtotal - discount))
        customer.cart, customer.coupon = {}, None

    def _lines(self, customer: Customer) -> list[tuple[Product, int]]:
        return [(self.catalogue.by_id[product_id], quantity) for product_id, quantity in customer.cart.items()]

    def _products(self, customer: Customer) -> list[dict]:
        return tracking.products(self._lines(customer), self.url)


def _cart_id(customer: Customer) -> str:
    return f"cart-{customer.run.name}-{customer.person.index}-{len(customer.orders) + 1}"
