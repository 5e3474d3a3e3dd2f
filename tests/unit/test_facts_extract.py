"""What an event says."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal as D
from typing import Any

import pytest

from shared.errors import Permanent
from shared.facts.extract import Extracted, extract, order_key_of
from tests.support.profile_feed import START, event, node


def said(name: str, properties: dict[str, Any] | None = None, trust: str = "secret", **more: Any) -> Extracted:
    one = event(name, "m-1", ids={"user_id": "u-1", "anonymous_id": "a-1"}, trust=trust, properties=properties, **more)
    return extract(one, one.received_at, "RUB")


def test_a_look_says_nothing() -> None:
    found = said("Product Viewed", {"product_id": "p"})
    assert (found.cart, found.report, found.refund, found.consents, found.traits) == (None, None, None, [], [])


def test_product_added_is_one_piece_unless_it_says_more() -> None:
    cart = said("Product Added", {"product_id": 17, "price": "19.90", "name": "Record", "position": 3}).cart
    assert cart is not None
    (item,) = cart.items
    assert (item.product_id, item.quantity, item.price, item.product) == ("17", None, D("19.90"), {"name": "Record"})


def test_an_operation_older_than_a_cart_lasts_is_none() -> None:
    assert said("Product Added", {"product_id": "p"}, at=0, received=30 * 86_400).cart is None
    assert said("Product Added", {"product_id": "p"}, at=1, received=30 * 86_400).cart is not None


def test_cart_viewed_without_products_says_nothing_about_the_cart() -> None:
    assert said("Cart Viewed", {"currency": "RUB"}).cart is None
    emptied = said("Cart Viewed", {"products": []}).cart
    assert emptied is not None
    assert emptied.items == []


@pytest.mark.parametrize(
    ("properties", "total"),
    [
        ({"total": 12.5, "revenue": 9}, "12.5"),
        ({"revenue": "9.00", "value": 1}, "9.00"),
        ({"value": 3}, "3"),
        ({"products": [{"product_id": "p", "quantity": 2, "price": 1.1}, {"product_id": "q", "price": 0.1}]}, "2.3"),
        ({"products": [{"product_id": "p", "quantity": 2}]}, None),
        ({"total": 0}, "0"),
    ],
)
def test_the_total_of_an_order(properties: dict[str, Any], total: str | None) -> None:
    report = said("Order Completed", {"order_id": "o", **properties}).report
    assert report is not None
    assert report.total == (None if total is None else D(total))


def test_a_public_order_states_no_money_but_takes_its_goods_out_of_the_cart() -> None:
    found = said("Order Completed", {"order_id": "o", "total": 5, "products": [{"product_id": "p"}]}, trust="public")
    assert found.report is not None
    assert found.report.total is None
    assert found.cart is not None
    assert (found.cart.kind, found.cart.order_key) == ("order", "o")


def test_a_signed_order_states_no_money_either() -> None:
    report = said("Order Completed", {"order_id": "o", "total": 5}, trust="signed").report
    assert report is not None
    assert report.total is None


@pytest.mark.parametrize(
    ("properties", "key"),
    [
        ({"order_id": " 1042 "}, "1042"),
        ({"order_id": 1042}, "1042"),
        ({"order_id": 1042.0}, "1042"),
        ({"order_id": "A\u030a"}, "\u00c5"),
        ({"store_id": "shop-1", "terminal_id": 2, "receipt_id": 881}, "shop-1/2/881"),
        ({"store_id": "shop-1", "receipt_id": "881"}, "shop-1//881"),
    ],
)
def test_the_key_of_an_order(properties: dict[str, Any], key: str) -> None:
    assert order_key_of(event("Order Completed", "m", ids={"user_id": "u"}, properties=properties)) == key


def test_an_order_in_another_currency_is_refused_with_its_field() -> None:
    with pytest.raises(Permanent) as problem:
        said("Order Completed", {"order_id": "o", "total": 5, "currency": "usd"})
    assert problem.value.pointer == "/properties/currency"
    assert said("Order Completed", {"order_id": "o", "total": 5, "currency": "rub"}).report is not None


@pytest.mark.parametrize(
    ("name", "properties", "pointer"),
    [
        ("Product Added", {"product_id": "p", "price": "a lot"}, "/properties/price"),
        ("Product Added", {"product_id": "p", "price": True}, "/properties/price"),
        ("Product Added", {"product_id": "p", "price": -1}, "/properties/price"),
        ("Product Added", {"product_id": "p", "quantity": -1}, "/properties/quantity"),
        ("Product Added", {"product_id": "p", "quantity": 10**40}, "/properties/quantity"),
        ("Product Added", {"product_id": "p", "quantity": "1e999999"}, "/properties/quantity"),
        ("Product Added", {"product_id": "p", "quantity": "NaN"}, "/properties/quantity"),
        ("Product Added", {"product_id": "p", "quantity": "Infinity"}, "/properties/quantity"),
        ("Product Added", {"product_id": "p", "quantity": [1]}, "/properties/quantity"),
        ("Product Added", {"product_id": "p", "quantity": "9" * 100}, "/properties/quantity"),
        ("Order Completed", {"order_id": "o", "total": {}}, "/properties/total"),
        ("Order Completed", {"order_id": "o", "total": 1e300}, "/properties/total"),
        ("Order Completed", {"order_id": {"a": 1}}, "/properties/order_id"),
        ("Order Completed", {"order_id": "x" * 300}, "/properties/order_id"),
        ("Order Completed", {"order_id": "  "}, "/properties/order_id"),
        ("Order Completed", {"order_id": "o", "products": {"a": 1}}, "/properties/products"),
        (
            "Order Completed",
            {"order_id": "o", "products": [{"product_id": "p", "price": "x"}]},
            "/properties/products/0/price",
        ),
    ],
)
def test_what_can_never_be_stored_is_refused_with_its_field(
    name: str, properties: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(Permanent) as problem:
        said(name, properties)
    assert problem.value.pointer == pointer


def test_binary_fractions_leave_no_tail() -> None:
    cart = said("Product Added", {"product_id": "p", "price": 0.1 + 0.2}).cart
    assert cart is not None
    assert cart.items[0].price == D("0.3")


def test_consent_is_of_the_address_and_of_each_topic() -> None:
    one = event(
        "Consent Granted",
        "m",
        ids=[("user_id", "u"), ("email", "a@example.com"), ("email", "b@example.com")],
        properties={
            "channel": "email",
            "address": "B@example.com",
            "topics": ["news", "offers"],
            "ip": "10.0.0.1",
            "form": "f",
        },
    )
    found = extract(one, one.received_at, "RUB")
    assert {(row.node, row.topic, row.state) for row in found.consents} == {
        (node("email", "b@example.com"), "news", "granted"),
        (node("email", "b@example.com"), "offers", "granted"),
    }
    assert found.consents[0].proof == {"ip": "10.0.0.1", "form": "f"}
    assert found.consents[0].origin == node("user_id", "u")


def test_topics_that_nobody_named() -> None:
    def topics(name: str, trust: str) -> list[str]:
        properties = {"channel": "email", "address": "a@example.com"}
        one = event(name, "m", ids={"email": "a@example.com"}, trust=trust, properties=properties)
        return [row.topic for row in extract(one, one.received_at, "RUB").consents]

    assert topics("Subscription Requested", "public") == ["marketing"]
    assert topics("Consent Granted", "secret") == ["marketing"]
    assert topics("Unsubscribed", "secret") == ["*"]
    assert topics("Email Complained", "internal") == ["*"]


@pytest.mark.parametrize(
    ("name", "trust"),
    [
        ("Consent Granted", "public"),
        ("Consent Granted", "signed"),
        ("Subscription Confirmed", "secret"),
        ("Email Complained", "secret"),
    ],
)
def test_who_may_not_say_it_says_nothing_about_consent(name: str, trust: str) -> None:
    one = event(
        name,
        "m",
        ids={"anonymous_id": "a", "email": "a@example.com"},
        trust=trust,
        properties={"channel": "email", "address": "a@example.com"},
    )
    assert extract(one, one.received_at, "RUB").consents == []


def test_an_event_of_our_own_speaks_of_its_origin_node() -> None:
    origin = node("email", "a@example.com")
    one = event("Email Complained", "m", ids=[], origin=origin, trust="internal", properties={"channel": "email"})
    assert [row.node for row in extract(one, one.received_at, "RUB").consents] == [origin]


def test_traits_carry_the_trust_and_time_of_their_event() -> None:
    found = said("Identify", traits={"city": "Kazan", "age": None}, trust="signed", at=60)
    assert [(row.name, row.value, row.trust, row.at) for row in found.traits] == [
        ("city", "Kazan", 1, START + timedelta(seconds=60)),
        ("age", None, 1, START + timedelta(seconds=60)),
    ]
