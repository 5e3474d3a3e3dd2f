"""Conditions over one person's facts: what each kind says, and what it says when something is absent."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest

from shared.conditions import Moment, evaluate, explain, needs, parse
from shared.facts.model import Address, Cart, CartItem, Consent, EventFact, Facts, Order, OrderLine, Refund

T = datetime(2024, 6, 15, 12, 0, tzinfo=UTC)
SHOP = ZoneInfo("Europe/Moscow")
NODE = UUID(int=7)
_ids = itertools.count(1)


def moment(**changes: Any) -> Moment:
    return Moment(**{"at": T, "entered_at": None, "zone": SHOP, **changes})


def facts(**known: Any) -> Facts:
    return Facts(profile=UUID(int=1), nodes=[NODE], **known)


def ago(**duration: float) -> datetime:
    return T - timedelta(**duration)


def event(name: str, occurred_at: datetime, learned_at: datetime | None = None, **more: Any) -> EventFact:
    return EventFact(
        id=more.pop("id", UUID(int=next(_ids))),
        node=NODE,
        name=name,
        occurred_at=occurred_at,
        learned_at=learned_at or occurred_at,
        trust="secret",
        **more,
    )


def order(at: datetime, total: str | None = "1000", **more: Any) -> Order:
    return Order(
        key=more.pop("key", f"o-{next(_ids)}"),
        node=NODE,
        at=at,
        learned_at=more.pop("learned_at", at),
        total=None if total is None else Decimal(total),
        **more,
    )


def holds(document: Any, known: Facts, **changes: Any) -> bool:
    condition, when = parse(document), moment(**changes)
    verdict = explain(condition, known, when)
    json.dumps(verdict.seen)  # what was seen goes into a jsonb column
    assert verdict.holds is evaluate(condition, known, when), "explain and evaluate must agree"
    return verdict.holds


@pytest.mark.parametrize(
    ("comparison", "value", "expected"),
    [
        ({"eq": "Kazan"}, "KAZAN", True),
        ({"eq": "Straße"}, "STRASSE", True),
        ({"eq": "Kazan"}, "Moscow", False),
        ({"eq": 1985}, "1985", True),
        ({"eq": "1985"}, 1985, True),
        ({"eq": 0.1}, 0.1, True),
        ({"eq": True}, True, True),
        ({"eq": 1}, True, False),
        ({"ne": "Kazan"}, "Moscow", True),
        ({"ne": "Kazan"}, "kazan", False),
        ({"ne": "Kazan"}, None, False),
        ({"in": ["Kazan", 5]}, "5", True),
        ({"in": ["Kazan", 5]}, "6", False),
        ({"contains": "аза"}, "КАЗАНЬ", True),
        ({"contains": "vinyl"}, ["CD", "Vinyl"], True),
        ({"contains": "vin"}, ["CD", "Vinyl"], False),
        ({"prefix": "ka"}, "Kazan", True),
        ({"prefix": "az"}, "Kazan", False),
        ({"gt": 3000}, "3000.01", True),
        ({"gt": 3000}, 3000, False),
        ({"gte": 3000}, 3000, True),
        ({"lt": 0.3}, 0.30000000000000004, False),
        ({"lte": 5}, "five", False),
        ({"between": [1980, 1990]}, 1990, True),
        ({"between": [1980, 1990]}, 1991, False),
        ({"gt": "2024-01-01"}, "2024-01-01T10:00:00Z", False),
        ({"gt": "2024-01-01T09:00:00Z"}, "2024-01-01T13:00:00+03:00", True),
        ({"gte": "2024-01-01"}, "20240102", False),
        ({"between": ["2024-01-01", "2024-01-31"]}, "2024-01-31T23:59:59Z", True),
        ({"exists": True}, "x", True),
        ({"exists": True}, None, False),
        ({"exists": False}, None, True),
        ({"gt": 1, "lt": 3}, 2, True),
        ({"gt": 1, "lt": 3}, 3, False),
    ],
)
def test_a_trait_is_compared_as_the_language_says(comparison: dict[str, Any], value: Any, expected: bool) -> None:
    known = facts(traits={} if value is None else {"x": value})
    assert holds({"trait": {"x": comparison}}, known) is expected


@pytest.mark.parametrize("operator", ["eq", "ne", "contains", "prefix", "gt", "gte", "lt", "lte"])
def test_an_absent_value_makes_every_comparison_false_and_its_negation_true(operator: str) -> None:
    document = {"trait": {"x": {operator: "2024-01-01"}}}
    for nothing in ({}, {"x": None}):
        assert not holds(document, facts(traits=nothing))
        assert holds({"not": document}, facts(traits=nothing))


def test_a_dotted_trait_goes_into_mappings_and_lists() -> None:
    known = facts(traits={"address": {"city": "Kazan"}, "children": [{"age": 3}, {"age": 9}], "a.b": "flat"})
    assert holds({"trait": {"address.city": {"eq": "kazan"}}}, known)
    assert holds({"trait": {"children.age": {"gte": 9}}}, known)
    assert holds({"trait": {"a.b": {"eq": "flat"}}}, known)
    assert not holds({"trait": {"address.street": {"exists": True}}}, known)


def test_several_keys_in_one_mapping_mean_all() -> None:
    document = {"trait": {"city": {"eq": "Kazan"}}, "orders": {"count": {"gte": 1}}}
    assert not holds(document, facts(traits={"city": "Kazan"}))
    assert holds(document, facts(traits={"city": "Kazan"}, orders=[order(ago(days=1))]))


def test_all_any_and_not_join_conditions() -> None:
    kazan, buyer = {"trait": {"city": {"eq": "Kazan"}}}, {"orders": {"count": {"gte": 1}}}
    known = facts(traits={"city": "Kazan"})
    assert holds({"any": [buyer, kazan]}, known)
    assert not holds({"all": [buyer, kazan]}, known)
    assert holds({"all": [{"not": buyer}, kazan]}, known)


def test_explain_looks_at_every_leaf_and_says_where_it_stands() -> None:
    condition = parse({"any": [{"orders": {"count": {"gte": 1}}}, {"not": {"holiday": True}}]}, "/enter/if")
    verdict = explain(condition, facts(orders=[order(ago(days=1), "12.50")]), moment())
    assert verdict.holds
    first, second = verdict.seen
    assert first == {
        "pointer": "/enter/if/any/0/orders",
        "condition": {"orders": {"count": {"gte": 1}}},
        "looked_at": {"count": 1, "total": "12.5", "last": "2024-06-14T12:00:00Z"},
        "holds": True,
    }
    assert (second["pointer"], second["holds"]) == ("/enter/if/any/1/not/holiday", False)


# --- cart ------------------------------------------------------------------------------------------------------------


def cart(*items: tuple[str, str | None, dict[str, Any]], changed_at: datetime = T) -> Cart:
    lines = [
        CartItem(
            product_id=product,
            quantity=Decimal(1),
            price=None if price is None else Decimal(price),
            added_at=changed_at,
            product=more,
        )
        for product, price, more in items
    ]
    total = sum((line.price for line in lines if line.price is not None), Decimal(0))
    return Cart(items=lines, total=total, changed_at=changed_at)


def test_the_cart_is_asked_for_its_items_its_total_and_one_item_that_meets_all() -> None:
    known = facts(cart=cart(("p1", "2900", {"category": "Vinyl"}), ("p2", "100", {"category": "CD"})))
    assert holds({"cart": {"not_empty": True, "total": {"gte": 3000}}}, known)
    assert not holds({"cart": {"total": {"gt": 3000}}}, known)
    assert holds({"cart": {"has": {"category": {"eq": "vinyl"}, "price": {"gt": 2000}}}}, known)
    assert not holds({"cart": {"has": {"category": {"eq": "cd"}, "price": {"gt": 2000}}}}, known)
    assert not holds({"cart": {"not_empty": False}}, known)


def test_an_empty_cart_has_a_total_of_zero_and_no_items() -> None:
    assert holds({"cart": {"not_empty": False, "total": {"eq": 0}}}, facts())
    assert not holds({"cart": {"has": {"category": {"exists": False}}}}, facts())


def test_a_cart_that_nobody_touched_for_thirty_days_is_empty() -> None:
    one = ("p1", "100", {})
    assert holds({"cart": {"not_empty": True}}, facts(cart=cart(one, changed_at=ago(days=29, hours=23))))
    assert not holds({"cart": {"not_empty": True}}, facts(cart=cart(one, changed_at=ago(days=30))))


# --- orders ----------------------------------------------------------------------------------------------------------


def test_order_figures_take_refunds_off_and_leave_out_cancelled_and_unpriced_orders() -> None:
    known = facts(
        orders=[
            order(ago(days=9), "1000", refunded=Decimal("400")),
            order(ago(days=3), "500.50"),
            order(ago(days=2), "9999", cancelled=True),
            order(ago(days=1), None),
        ]
    )
    assert holds({"orders": {"count": {"eq": 2}, "total": {"eq": 1100.5}, "average": {"eq": 550.25}}}, known)
    assert holds({"days_since_order": {"eq": 3}}, known)


def test_a_refund_of_an_order_that_nobody_reported_lowers_the_total_but_not_the_average() -> None:
    refund = Refund(
        key="r1", order_key="o9", node=NODE, at=ago(days=1), learned_at=ago(days=1), amount=Decimal("300.10")
    )
    known = facts(orders=[order(ago(days=9), "1000")], refunds=[refund])
    assert holds({"orders": {"total": {"eq": 699.9}, "average": {"eq": 1000}, "count": {"eq": 1}}}, known)


def test_an_order_dated_in_the_future_changes_nothing() -> None:
    known = facts(orders=[order(T + timedelta(seconds=1)), order(ago(days=1), learned_at=T + timedelta(seconds=1))])
    assert holds({"orders": {"count": {"eq": 0}}}, known)


def test_without_an_order_the_sums_are_zero_and_average_last_and_days_are_absent() -> None:
    assert holds({"orders": {"count": {"eq": 0}, "total": {"lte": 0}}}, facts())
    for document in (
        {"orders": {"average": {"gte": 0}}},
        {"orders": {"last": {"before": "1d"}}},
        {"orders": {"last": {"within": "1d"}}},
        {"days_since_order": {"gte": 0}},
        {"days_since_order": {"ne": 5}},
    ):
        assert not holds(document, facts())


def test_an_average_is_compared_without_rounding() -> None:
    known = facts(orders=[order(ago(days=1), "10"), order(ago(days=2), "10"), order(ago(days=3), "10.01")])
    assert holds({"orders": {"average": {"gt": 10.0033}}}, known)
    assert not holds({"orders": {"average": {"gte": 10.0034}}}, known)


def test_last_looks_at_the_half_open_window_that_ends_now() -> None:
    on_edge = facts(orders=[order(ago(days=30))])
    assert holds({"orders": {"last": {"before": "30d"}}}, on_edge)
    assert not holds({"orders": {"last": {"within": "30d"}}}, on_edge)
    assert holds({"orders": {"last": {"within": "30d"}}}, facts(orders=[order(T)]))


def test_days_since_the_order_are_whole_days() -> None:
    known = facts(orders=[order(ago(days=179, hours=23))])
    assert not holds({"days_since_order": {"gte": 180}}, known)
    assert holds({"days_since_order": {"eq": 179}}, known)


@pytest.mark.parametrize(
    ("days_ago", "late"),
    [
        # gaps of 10 days: late after 17 (10 + 7), which is more than 15 (1.5 × 10)
        ((37, 27, 17), False),
        ((38, 28, 18), True),
        # gaps of 20 days: late after 30 (1.5 × 20), which is more than 27 (20 + 7)
        ((70, 50, 30), False),
        ((71, 51, 31), True),
        # gaps 2 and 20: median 11, late after 18
        ((41, 39, 19), True),
        ((40, 38, 18), False),
        ((300, 200), False),
        ((), False),
    ],
)
def test_somebody_is_late_by_their_own_rhythm(days_ago: tuple[int, ...], late: bool) -> None:
    known = facts(orders=[order(ago(days=days)) for days in days_ago])
    assert holds({"later_than_own_rhythm": True}, known) is late
    assert holds({"later_than_own_rhythm": False}, known) is not late


# --- events ----------------------------------------------------------------------------------------------------------


def viewed(days: float, product: str = "p1", **more: Any) -> EventFact:
    return event("Product Viewed", ago(days=days), properties={"product_id": product}, **more)


def test_did_counts_within_a_window_whose_far_end_is_open() -> None:
    known = facts(events=[viewed(0), viewed(9.99), viewed(10)])
    document = {"event": "Product Viewed", "within": "10d"}
    assert holds({"did": {**document, "at_least": 2, "at_most": 2}}, known)
    assert not holds({"did": {**document, "at_least": 3}}, known)
    assert holds({"did": {"event": "Product Viewed", "at_least": 3}}, known)


def test_did_means_once_and_at_most_alone_means_none_is_fine() -> None:
    assert not holds({"did": {"event": "Product Viewed"}}, facts())
    assert holds({"did": {"event": "Product Viewed", "at_most": 1}}, facts())
    assert not holds({"did": {"event": "Product Viewed", "at_most": 1}}, facts(events=[viewed(1), viewed(2)]))


def test_an_event_that_occurred_or_was_learned_after_the_moment_is_not_counted() -> None:
    micro = timedelta(microseconds=1)
    late = [event("Product Viewed", T + micro, T), event("Product Viewed", ago(days=1), T + micro)]
    assert holds({"did_not": {"event": "Product Viewed"}}, facts(events=late))


def test_where_looks_at_the_properties() -> None:
    known = facts(events=[event("Signed Up", ago(days=1), properties={"plan": "PRO", "tags": [{"name": "a"}]})])
    assert holds({"did": {"event": "Signed Up", "where": {"plan": {"eq": "pro"}, "tags.name": {"eq": "A"}}}}, known)
    assert holds({"did_not": {"event": "Signed Up", "where": {"plan": {"eq": "free"}}}}, known)


def test_same_counts_the_product_that_was_viewed_most() -> None:
    known = facts(events=[viewed(1, "P1"), viewed(2, "p1"), viewed(3, "p2"), event("Product Viewed", ago(days=4))])
    assert holds({"did": {"event": "Product Viewed", "same": "product_id", "at_least": 2, "at_most": 2}}, known)
    assert not holds({"did": {"event": "Product Viewed", "same": "product_id", "at_least": 3}}, known)


def test_since_entry_counts_what_was_learned_after_the_run_began() -> None:
    entered_at = ago(days=5)
    before = event("Order Completed", ago(days=6), entered_at)
    # It occurred before the entry, but was heard of later: a backlog.
    heard_later = event("Order Completed", ago(days=6), entered_at + timedelta(microseconds=1))
    document = {"did_not": {"event": "Order Completed", "since": "entry"}}
    assert holds(document, facts(events=[before]), entered_at=entered_at)
    assert not holds(document, facts(events=[before, heard_later]), entered_at=entered_at)


def test_the_entry_event_itself_did_not_happen_since_the_entry() -> None:
    entry = event("Product Viewed", ago(days=1))
    document = {"did": {"event": "Product Viewed", "since": "entry"}}
    assert holds(document, facts(events=[entry]), entered_at=ago(days=2))
    assert not holds(document, facts(events=[entry]), entered_at=ago(days=2), entry_id=entry.id)


def test_before_any_run_nothing_happened_since_the_entry() -> None:
    known = facts(events=[viewed(1)])
    assert not holds({"did": {"event": "Product Viewed", "since": "entry"}}, known)
    assert holds({"did_not": {"event": "Product Viewed", "since": "entry"}}, known)


def test_several_reports_of_one_order_are_one_order() -> None:
    reports = [event("Order Completed", ago(days=2, minutes=m), order_key="o1") for m in range(3)]
    other = event("Order Completed", ago(days=1), order_key="o2")
    assert holds({"did": {"event": "Order Completed", "at_least": 1, "at_most": 1}}, facts(events=reports))
    assert holds({"did": {"event": "Order Completed", "at_least": 2, "at_most": 2}}, facts(events=[*reports, other]))


def test_a_nightly_file_that_repeats_yesterdays_order_is_no_order_since_the_entry() -> None:
    known = facts(
        orders=[order(ago(days=2), key="o1")],
        events=[event("Order Completed", ago(days=2), ago(hours=1), order_key="o1")],
    )
    assert holds({"did_not": {"event": "Order Completed", "since": "entry"}}, known, entered_at=ago(days=1))
    assert not holds({"did_not": {"event": "Order Completed", "within": "3d"}}, known, entered_at=ago(days=1))


def test_imported_events_count_in_conditions() -> None:
    assert holds({"did": {"event": "Product Viewed"}}, facts(events=[viewed(1, history=True)]))


def test_names_of_the_first_ecommerce_spec_mean_those_of_the_second() -> None:
    known = facts(events=[viewed(1)])
    assert holds({"did": {"event": "Viewed Product"}}, known)
    assert needs(parse({"did": {"event": "Viewed Product"}})).names == {"Product Viewed"}


def test_engagement_counts_what_people_opened_and_not_what_bots_did() -> None:
    def opened(days: float, **properties: Any) -> EventFact:
        return event("Email Opened", ago(days=days), properties=properties)

    document = {"engagement": {"email": {"opened": {"within": "60d"}}}}
    assert holds(document, facts(events=[opened(59)]))
    assert not holds(document, facts(events=[opened(60)]))
    assert not holds(document, facts(events=[opened(1, bot=True)]))
    assert not holds({"engagement": {"email": {"opened": {"at_least": 2}}}}, facts(events=[opened(1)]))


def test_bought_takes_returns_off() -> None:
    def bought(returned: str, category: str = "Vinyl", **more: Any) -> Facts:
        line = OrderLine(
            product_id="p1", quantity=Decimal(2), returned=Decimal(returned), product={"category": category}
        )
        return facts(orders=[order(ago(days=10), lines=[line], **more)])

    document = {"bought": {"category": {"eq": "vinyl"}, "within": "60d"}}
    assert holds(document, bought("1"))
    assert not holds(document, bought("2"))
    assert not holds(document, bought("0", "CD"))
    assert not holds(document, bought("0", cancelled=True))
    assert not holds({"bought": {"category": {"eq": "vinyl"}, "within": "10d"}}, bought("0"))
    assert not holds({"bought": {"product_id": {"eq": "p1"}, "at_least": 2}}, bought("1"))
    assert holds({"bought": {"product_id": {"eq": "p1"}, "at_least": 2}}, bought("0"))


# --- consent and addresses -------------------------------------------------------------------------------------------


def consent(
    state: str, topic: str = "marketing", at: datetime = T, may_write: bool | None = None, **more: Any
) -> Consent:
    allowed = state in ("granted", "confirmed") if may_write is None else may_write
    return Consent(
        channel=more.get("channel", "email"),
        node=more.get("node", NODE),
        address="a@example.org",
        topic=topic,
        state=state,
        at=at,
        may_write=allowed,
    )


def test_consent_is_asked_for_the_rules_topic_unless_another_is_named() -> None:
    known = facts(consents=[consent("confirmed", "news")])
    assert not holds({"consent": {"email": "confirmed"}}, known)
    assert holds({"consent": {"email": "confirmed"}}, known, topic="news")
    assert holds({"consent": {"email": {"topic": "news", "is": "confirmed"}}}, known)


def test_consent_granted_with_proof_counts_as_confirmed_unless_an_opt_out_came_before() -> None:
    assert holds({"consent": {"email": "confirmed"}}, facts(consents=[consent("granted")]))
    assert not holds({"consent": {"email": "confirmed"}}, facts(consents=[consent("granted", may_write=False)]))
    assert not holds({"consent": {"email": "confirmed"}}, facts(consents=[consent("requested")]))


def test_what_was_said_of_all_topics_holds_where_a_topic_was_never_named() -> None:
    document = {"consent": {"email": "confirmed"}}
    assert holds(document, facts(consents=[consent("confirmed", "*"), consent("withdrawn", "news")]))
    assert not holds(document, facts(consents=[consent("withdrawn"), consent("confirmed", "*")]))
    assert not holds(document, facts(consents=[consent("confirmed", "*"), consent("withdrawn")]))


def address(status: str = "confirmed", **more: Any) -> Address:
    return Address(kind=more.get("kind", "email"), node=more.get("node", NODE), value="a@example.org", status=status)


def test_reachable_wants_an_address_consent_and_no_suppression() -> None:
    document = {"reachable": {"any": ["email", "push"]}}
    known = facts(addresses=[address()], consents=[consent("confirmed")])
    assert holds(document, known)
    for channel in ("email", "*"):
        assert not holds(document, msgspec.structs.replace(known, suppressed=[(NODE, channel)]))
    assert holds(document, msgspec.structs.replace(known, suppressed=[(NODE, "sms"), (UUID(int=9), "*")]))
    assert not holds(document, known, topic="news")
    assert not holds(document, facts(addresses=[address("claimed")], consents=[consent("confirmed")]))
    assert not holds(document, facts(addresses=[address()]))
    assert not holds(document, facts(addresses=[address()], consents=[consent("confirmed", channel="sms")]))
    assert not holds({"reachable": {"all": ["email", "push"]}}, known)


# --- time ------------------------------------------------------------------------------------------------------------


def test_age_in_base_counts_from_the_first_event() -> None:
    document = {"age_in_base": {"gte": "30d"}}
    assert holds(document, facts(first_seen=ago(days=30)))
    assert not holds(document, facts(first_seen=ago(days=29)))
    assert not holds(document, facts())


@pytest.mark.parametrize(
    ("zone", "between", "expected"),
    [
        (None, ["14:59", "15:01"], True),  # 12:00 UTC is 15:00 in the shop's Moscow
        ("Asia/Vladivostok", ["21:59", "22:01"], True),
        ("Asia/Vladivostok", ["09:00", "21:00"], False),
        ("Asia/Vladivostok", ["21:00", "09:00"], True),
        ("No/Such_Zone", ["14:59", "15:01"], True),
        (None, ["15:00", "16:00"], True),
        (None, ["14:00", "15:00"], False),
        (None, ["14:00", "24:00"], True),
    ],
)
def test_local_time_is_the_persons(zone: str | None, between: list[str], expected: bool) -> None:
    assert holds({"local_time": {"between": between}}, facts(zone=zone)) is expected


def test_a_holiday_is_one_on_the_persons_calendar() -> None:
    sunday = frozenset({date(2024, 6, 16)})
    assert holds({"holiday": True}, facts(zone="Pacific/Kiritimati"), holidays=sunday)
    assert not holds({"holiday": True}, facts(), holidays=sunday)
    assert holds({"holiday": False}, facts(), holidays=sunday)


def test_needs_name_the_events_and_how_far_back_they_must_reach() -> None:
    condition = parse(
        {
            "did": {"event": "Product Viewed", "within": "3d"},
            "not": {"engagement": {"email": {"clicked": {"within": "60d"}}}},
            "cart": {"not_empty": True},
        }
    )
    assert needs(condition).names == {"Product Viewed", "Email Clicked"}
    assert needs(condition).look_back == timedelta(days=60)
    assert not needs(condition).entry
    assert needs(parse({"bought": {"category": {"eq": "vinyl"}}})).lines
    forever = needs(parse({"any": [{"did": {"event": "A"}}, {"did_not": {"event": "B", "since": "entry"}}]}))
    assert forever.look_back is None
    assert forever.entry
