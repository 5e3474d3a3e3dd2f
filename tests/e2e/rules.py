"""The rules of the stories: the shipped ones, made shorter, and few enough to be active at the same time.

Each cart rule looks at carts with goods of one category, so that the stories do not write to each other's people.
"""

from __future__ import annotations

from tests.support.rules import edited


def cart_rule(name: str, category: str, *, idle: str = "2s", holdout: str = "0%") -> str:
    """The README's example rule for carts with goods of this category, after two seconds instead of twenty."""
    condition = f"{{cart: {{not_empty: true, has: {{category: {{eq: {category}}}}}}}}}"
    return edited("examples/cart-in-20-seconds", **{"name": name, "idle": idle, "if": condition, "holdout": holdout})


CART = cart_rule("cart", "records")
# for stories in which much has to happen before the time is over
CART_PATIENT = cart_rule("cart-patient", "clocks", idle="4s")
CART_HELD_OUT = cart_rule("cart-held-out", "lamps", holdout="100%")
CART_SWITCHED_OFF = cart_rule("cart-switched-off", "chairs")
OPT_IN = edited("double-opt-in", enter="{on: Subscription Requested, where: {form: {ne: hurried}}}")
OPT_IN_HURRIED = edited(
    "double-opt-in",
    name="double-opt-in-hurried",
    enter="{on: Subscription Requested, where: {form: {eq: hurried}}}",
    wait=["1s", "2s"],
)
WELCOME = edited("welcome", holdout="0%")
ORDER_READY = """\
name: order-ready
title: Come and get it
kind: transactional
enter: {on: Order Ready}
again: always
steps:
  - send: order-ready
"""
ORDER_READY_TEMPLATE = {
    "name": "order-ready",
    "title": "Order ready",
    "purpose": "transactional",
    "subject": "Your order {{ event.order_id }} is ready",
    "mjml": "<mjml><mj-body><mj-section><mj-column><mj-text>Order {{ event.order_id }} waits for you.</mj-text>"
    "</mj-column></mj-section></mj-body></mjml>",
    "text": "Order {{ event.order_id }} waits for you.",
}
ALL = (CART, CART_PATIENT, CART_HELD_OUT, CART_SWITCHED_OFF, OPT_IN, OPT_IN_HURRIED, WELCOME, ORDER_READY)
