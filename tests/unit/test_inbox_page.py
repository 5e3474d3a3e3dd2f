"""The pages of `/inbox`: every channel there is can be picked out, and every message says why."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from services.dispatch.inbox_page import list_page, message_page

NOW = datetime(2026, 3, 10, 9, tzinfo=UTC)
MESSAGE = dict.fromkeys(
    ("html", "body", "subject", "template_version", "cost", "sent_at", "address", "profile", "run", "channel")
) | {
    "id": "m-1", "rule_name": "abandoned-cart", "step": "send", "template": "cart-reminder", "kind": "marketing",
    "state": "withheld", "ghost": False, "reason": "Order Completed 1001", "decided_at": NOW,
}  # fmt: skip


def alternative(channel: str, **fields: Any) -> dict[str, Any]:
    names = ("effect", "value", "cost", "erosion", "net", "units", "reason")
    return {"channel": channel} | dict.fromkeys(names) | fields


def page_of(message: dict[str, Any], *alternatives: dict[str, Any]) -> str:
    return message_page("The shop", message, alternatives, [], [])  # type: ignore[arg-type]


def test_every_channel_that_there_is_can_be_picked_out() -> None:
    page = list_page("The shop", [], ["email", "pager"], "pager", None, None)
    assert '<a class="on" href="/inbox?channel=pager">pager</a>' in page and "channel=email" in page
    assert "channel=sms" not in page


def test_a_message_that_was_withheld_says_what_each_channel_would_have_brought_and_of_which_price_that_speaks() -> None:
    weighed = alternative(
        "email", effect=Decimal("0.011"), value=Decimal(450), cost=Decimal("0.01"), erosion=Decimal("0.4"),
        net=Decimal("4.54"), reason="Order Completed 1001",
    )  # fmt: skip
    page = page_of(MESSAGE, weighed, alternative("sms", reason="no address"))
    assert "What each channel would have brought" in page and "No text was made" in page
    assert "<td>4.54</td><td>Order Completed 1001</td>" in page and "<td>no address</td>" in page


def test_a_message_that_was_sent_says_why_by_this_channel() -> None:
    page = page_of(
        MESSAGE | {"state": "sent", "channel": "email", "reason": None}, alternative("email", cost=Decimal(1), units=1)
    )
    assert "Why this channel" in page and "No text was made" not in page and "<td>chosen</td>" in page
