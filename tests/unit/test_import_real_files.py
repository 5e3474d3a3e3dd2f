"""The shipped mappings on the real files, against figures worked out here with csv and Decimal alone."""

import csv
import json
import lzma
from collections import Counter, defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from services.importing.mapping import load_mapping
from services.importing.runner import read_records
from services.importing.sending import MAX_EVENT_BYTES, encode_event

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
RETAIL, OTTO = DATA / "online_retail_sample.csv.xz", DATA / "otto_sample.jsonl"

pytestmark = pytest.mark.skipif(not RETAIL.exists(), reason=f"LOUD: {DATA} is not there; real files are not checked")


@pytest.fixture(scope="module")
def lines() -> list[dict[str, str]]:
    with lzma.open(RETAIL, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def retail():
    return list(read_records(RETAIL, load_mapping("online-retail")))


@pytest.fixture(scope="module")
def sent(retail) -> list[dict]:
    """The events as they go over the wire: numbers are read back as the very digits that were written."""
    return [json.loads(encode_event(event), parse_float=Decimal) for record in retail for event in record.events]


def of(sent, name):
    return [event for event in sent if event["event"] == name]


def is_sold(line) -> bool:
    return not line["InvoiceNo"].startswith("C") and int(line["Quantity"]) > 0 and Decimal(line["UnitPrice"]) > 0


def is_taken_back(line) -> bool:
    return line["InvoiceNo"].startswith("C") and int(line["Quantity"]) < 0 and Decimal(line["UnitPrice"]) > 0


def money(lines) -> dict[str, Decimal]:
    totals: dict[str, Decimal] = defaultdict(Decimal)
    for line in lines:
        totals[line["InvoiceNo"]] += int(line["Quantity"]) * Decimal(line["UnitPrice"])
    return dict(totals)


def test_every_invoice_is_one_order_right_to_the_penny(lines, sent):
    expected = money(line for line in lines if is_sold(line))
    orders = of(sent, "Order Completed")
    found = {event["properties"]["order_id"]: Decimal(event["properties"]["total"]) for event in orders}
    assert len(orders) == len(found) == 1850
    assert found == expected
    assert sum(found.values()) == Decimal("993443.37")


def test_every_cancellation_is_a_refund_of_its_own_right_to_the_penny(lines, sent):
    expected = {number: -total for number, total in money(line for line in lines if is_taken_back(line)).items()}
    refunds = of(sent, "Order Refunded")
    found = {event["properties"]["refund_id"]: Decimal(event["properties"]["total"]) for event in refunds}
    assert len(refunds) == len(found) == 318
    assert found == expected
    assert sum(found.values()) == Decimal("46722.84")
    assert all("order_id" not in event["properties"] for event in refunds)


def test_people_are_the_customers_and_one_guest_for_each_invoice_without_one(lines, sent):
    kept = [line for line in lines if is_sold(line) or is_taken_back(line)]
    customers = {line["CustomerID"].removesuffix(".0") for line in kept if line["CustomerID"]}
    guests = {f"guest:{line['InvoiceNo']}" for line in kept if not line["CustomerID"]}
    assert {event["userId"] for event in sent if "userId" in event} == customers
    assert {event["anonymousId"] for event in sent if "anonymousId" in event} == guests
    assert (len(customers), len(guests)) == (445, 158)
    assert all(("userId" in event) != ("anonymousId" in event) for event in sent)


def test_a_customer_has_the_orders_of_that_customer_and_nobody_elses(lines, sent):
    expected = Counter()
    for number, customer in {(line["InvoiceNo"], line["CustomerID"]) for line in lines if is_sold(line)}:
        expected[customer.removesuffix(".0") or f"guest:{number}"] += 1
    assert Counter(event.get("userId") or event["anonymousId"] for event in of(sent, "Order Completed")) == expected


def test_times_are_london_times_and_the_first_of_an_invoice_counts(lines, sent):
    first = {}
    for line in lines:
        if is_sold(line) or is_taken_back(line):
            first.setdefault(line["InvoiceNo"], line["InvoiceDate"])
    several = defaultdict(set)
    for line in lines:
        several[line["InvoiceNo"]].add(line["InvoiceDate"])
    assert sum(len(times) > 1 for times in several.values()) == 6
    for event in sent:
        number = event["properties"].get("order_id") or event["properties"]["refund_id"]
        moment = datetime.fromisoformat(event["timestamp"])
        assert moment.replace(tzinfo=None) == datetime.fromisoformat(first[number])
        # summer time in 2011 from 27 March to 30 October; nothing in the file falls into the nights between
        summer = datetime(2011, 3, 27, 1, tzinfo=UTC) <= moment < datetime(2011, 10, 30, 1, tzinfo=UTC)
        assert event["timestamp"].endswith("+01:00" if summer else "+00:00")


def test_lines_of_an_order_add_up_to_its_total(sent):
    for event in sent:
        products = event["properties"]["products"]
        assert all(product["quantity"] > 0 for product in products)
        assert (
            sum(product["quantity"] * Decimal(product["price"]) for product in products) == event["properties"]["total"]
        )


def test_every_line_is_sent_or_left_out_with_a_reason(lines, retail, sent):
    left_out = [item for record in retail for item in record.left_out]
    others = [line for line in lines if not is_sold(line) and not is_taken_back(line)]
    assert len(left_out) == len(others) == 297
    assert all(item.reason for item in left_out)
    assert [item.fields["StockCode"] for item in left_out] == [line["StockCode"] for line in others]
    assert sum(record.rows for record in retail) == len(lines) == 47808
    assert sum(len(event["properties"]["products"]) for event in sent) + len(left_out) == len(lines)


def test_message_ids_are_distinct_and_the_same_on_every_reading(sent):
    ids = [event["messageId"] for event in sent]
    again = [
        event["messageId"] for record in read_records(RETAIL, load_mapping("online-retail")) for event in record.events
    ]
    assert len(set(ids)) == len(ids)
    assert again == ids


def test_no_event_is_larger_than_the_api_takes(retail):
    assert max(len(encode_event(event)) for record in retail for event in record.events) <= MAX_EVENT_BYTES


def test_every_click_and_cart_event_of_the_sessions_is_one_event_and_orders_of_a_moment_are_one_order():
    expected: Counter = Counter()
    orders = defaultdict(set)
    for line in OTTO.read_text().splitlines():
        session = json.loads(line)
        for event in session["events"]:
            if event["type"] == "orders":
                orders[session["session"], event["ts"]].add(str(event["aid"]))
            else:
                expected[session["session"], event["ts"], event["type"], str(event["aid"])] += 1
    found: Counter = Counter()
    bought = {}
    for record in read_records(OTTO, load_mapping("otto"), live=True):
        for event in record.events:
            session, moment = int(event["userId"].removeprefix("otto-")), datetime.fromisoformat(event["timestamp"])
            ts = round(moment.timestamp() * 1000)
            if event["event"] == "Order Completed":
                bought[session, ts] = {product["product_id"] for product in event["properties"]["products"]}
            else:
                kind = {"Product Viewed": "clicks", "Product Added": "carts"}[event["event"]]
                found[session, ts, kind, event["properties"]["product_id"]] += 1
            assert "context" not in event, "live events are not history"
    assert found == expected
    assert (
        sum(n for key, n in found.items() if key[2] == "clicks"),
        sum(n for key, n in found.items() if key[2] == "carts"),
    ) == (800, 52)
    assert bought == orders
