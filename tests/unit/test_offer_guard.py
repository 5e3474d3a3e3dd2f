"""No discount on what was bought already."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pydantic
import pytest

from services.dispatch.decision import decide
from services.dispatch.documents import OfferDocument
from services.dispatch.inputs import Bought, Inputs, OfferGuard
from services.dispatch.offer_guard import bought_of, offer_reason
from shared.facts.model import Order, OrderLine
from tests.unit.test_policy import CONSENTED, email, inputs

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
NODE = UUID(int=1)


def line(product: str, category: str | None = None, returned: int = 0) -> OrderLine:
    product_fields = {"category": category} if category else {}
    return OrderLine(product_id=product, quantity=Decimal(1), returned=Decimal(returned), product=product_fields)


def order(*lines: OrderLine, days_ago: int = 3, **more: Any) -> Order:
    at = NOON - timedelta(days=days_ago)
    return Order(key=f"o-{days_ago}", node=NODE, at=at, learned_at=at, lines=list(lines), **more)


def reason(guard: OfferGuard, *orders: Order) -> str | None:
    found = offer_reason(msgspec.structs.replace(guard, bought=bought_of(guard, orders)), NOON)
    return found.text if found else None


PLAYERS = OfferGuard("players", ["p-1"], ["Vinyl"], timedelta(days=30))


@pytest.mark.parametrize(
    "bought",
    [
        [order(line("p-1"))],
        [order(line("p-9", "VINYL"))],
        [order(line("p-2"), line("p-1"))],
        [order(line("p-1", returned=1)), order(line("p-1"), days_ago=5)],
        [order(line("p-1"), days_ago=40), order(line("p-1"), days_ago=29)],
    ],
)
def test_an_offer_is_not_made_for_what_was_bought_lately(bought: list[Order]) -> None:
    assert reason(PLAYERS, *bought) is not None


@pytest.mark.parametrize(
    "bought",
    [
        [],
        [order(line("p-2", "books"))],
        [order(line("p-2"))],
        [order(line("p-1", returned=1))],
        [order(line("p-1"), cancelled=True)],
        [order(line("p-1"), days_ago=30)],
    ],
)
def test_an_offer_is_made_for_everything_else(bought: list[Order]) -> None:
    assert reason(PLAYERS, *bought) is None


def test_without_a_limit_a_purchase_counts_for_ever() -> None:
    assert reason(OfferGuard("players", ["p-1"]), order(line("p-1"), days_ago=2_000)) is not None


def test_an_offer_without_a_guard_is_made_to_everybody() -> None:
    assert offer_reason(None, NOON) is None


def test_the_reason_says_what_was_bought_and_when() -> None:
    text = reason(PLAYERS, order(line("p-9", "vinyl")))
    assert text is not None and "vinyl" in text and "2026-03-07 12:00" in text and "P30D" in text


def test_a_message_with_such_an_offer_is_withheld_and_comes_out_the_same_from_what_is_stored() -> None:
    guard = msgspec.structs.replace(PLAYERS, bought=[Bought("p-1", NOON - timedelta(days=1))])
    original = inputs(email(CONSENTED), offer_guard=guard)
    assert decide(inputs(email(CONSENTED))).act == "send"
    decision = decide(original)
    assert decision.act == "withhold" and decision.reason is not None and decision.reason.code == "bought-already"
    stored = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(original)))
    assert decide(msgspec.convert(stored, Inputs)) == decision


@pytest.mark.parametrize("wrong", [{}, {"within": "30d"}, {"products": ["p"], "within": "soon"}, {"items": ["p"]}])
def test_a_guard_of_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        OfferDocument(name="o", code="C", unless_bought=wrong)  # type: ignore[arg-type]
