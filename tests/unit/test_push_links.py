"""Where a press on a push leads: through our own door, which counts it, to the shop."""

from __future__ import annotations

from uuid import uuid4

import pytest

from services.dispatch.links import Signer
from services.dispatch.rendered import Rendered
from services.dispatch.templates import Template, TemplateFault, check, render
from services.dispatch.view import Shop, example

SIGNER = Signer(b"secret", "https://mail.shop.example")
SHOP = Shop("Corner Shop", "https://shop.example", "RUB", "shop@shop.example", frozenset({"shop.example"}))
MESSAGE = uuid4()


def rendered(**parts: str) -> Rendered:
    links = {"unsubscribe": SIGNER.url("unsubscribe", MESSAGE), "preferences": SIGNER.url("unsubscribe", MESSAGE)}
    made = Template("test", 1, "marketing", parts)
    return render(made, "push", example(SHOP, links), SIGNER, MESSAGE, SHOP.hosts)


def led_to(push: Rendered) -> str:
    """Follows the push's link as a click does."""
    token = SIGNER.read("click", push.urls["click"].rpartition("/")[2])
    assert token is not None and token.message == MESSAGE
    return next(link.url for link in push.links if link.number == token.number)


def test_a_push_without_a_link_leads_to_the_shop() -> None:
    assert led_to(rendered(push="A record is waiting")) == "https://shop.example"


def test_a_push_leads_where_its_text_does() -> None:
    assert (
        led_to(rendered(push="See https://shop.example/sale and https://shop.example/")) == "https://shop.example/sale"
    )


def test_a_link_of_its_own_goes_first_and_may_be_the_products() -> None:
    push = rendered(push="See https://shop.example/sale", push_link=" {{ cart.items.first.url }}\n")
    assert led_to(push) == example(SHOP, {})["cart"]["items"][0]["url"]
    assert push.urls["click"] not in push.text


def test_the_way_out_is_not_where_a_press_leads() -> None:
    assert led_to(rendered(push="Stop: {{ links.unsubscribe }}")) == "https://shop.example"


def test_a_link_that_leads_astray_is_refused() -> None:
    with pytest.raises(TemplateFault, match="which is not the shop's"):
        rendered(push="Hello", push_link="https://{{ person.first_name }}.example/")


def test_a_link_with_a_name_that_cannot_be_is_found_before_activation() -> None:
    assert [fault.part for fault in check("marketing", {"push": "x", "push_link": "{{ cart.itms }}"})] == ["push_link"]
