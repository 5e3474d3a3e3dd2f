"""The simulated shop: the same seed lives the same life, and everything it says is a valid event."""

import ast
import sys
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

import demo
from demo.catalogue import COUPONS, Catalogue, coupon_in
from demo.customers import Run
from demo.people import make_people
from demo.shop import Message, Post, Shop, Touch

START = datetime(2026, 11, 2, tzinfo=timezone(timedelta(hours=3)))
QUARTER = timedelta(minutes=15)


def run_of(**changes) -> Run:
    return Run(
        **(
            {
                "start": START,
                "end": START + timedelta(days=7),
                "slice": QUARTER,
                "seed": 5,
                "customers": 120,
                "shop_url": "http://shop.example",
            }
            | changes
        )
    )


def life(run: Run) -> list[Post | Touch]:
    """Everything that happens if nobody ever gets a message."""
    return list(Shop(run).take(run.end))


@pytest.fixture(scope="module")
def things() -> list[Post | Touch]:
    return life(run_of(end=START + timedelta(days=21)))


@pytest.fixture(scope="module")
def events(things) -> list[tuple[str, dict]]:
    return [(post.source, event) for post in things for event in post.events]


def test_the_same_seed_lives_the_same_life():
    assert life(run_of()) == life(run_of())


def test_another_seed_lives_another():
    assert life(run_of()) != life(run_of(seed=6))


def test_a_person_does_not_depend_on_how_many_there_are():
    def people(count):
        return make_people(count, 5, START, ["vin-01"], ["vinyl", "care"])

    assert people(50)[:10] == people(10)


def test_a_later_run_shares_no_id_with_an_earlier_one():
    def ids(run):
        found = set()
        for post in life(run):
            for event in post.events:
                found.add(event["messageId"])
                if "dripline" not in event.get("context", {}):
                    found |= {event.get("properties", {}).get(name) for name in ("order_id", "receipt_id", "cart_id")}
        return found - {None}

    assert not ids(run_of()) & ids(run_of(start=START + timedelta(days=1), end=START + timedelta(days=8)))


def test_message_ids_are_never_used_twice(events):
    ids = Counter(event["messageId"] for _, event in events)
    assert set(ids.values()) == {1}
    assert all(len(text) <= 100 for text in ids)


def test_posts_come_in_the_order_of_time_and_only_tell_what_has_happened(things):
    moments = [post.at for post in things]
    assert moments == sorted(moments)
    for post in things:
        times = [datetime.fromisoformat(event["timestamp"]) for event in post.events]
        assert max(times) <= post.at
        live = [at for at, event in zip(times, post.events, strict=True) if "dripline" not in event.get("context", {})]
        assert all((at - START) // QUARTER == (post.at - START) // QUARTER for at in live), "one post lies in one slice"


def test_three_weeks_are_a_few_thousand_events(events):
    assert 3_000 < len(events) < 12_000


# What the e-commerce spec (v2) and the tracking API ask of each event that the shop sends.
PRODUCT = {
    "product_id": str,
    "sku": str,
    "name": str,
    "category": str,
    "brand": str,
    "price": int,
    "url": str,
    "image_url": str,
}
IN_CART = PRODUCT | {"quantity": int, "cart_id": str}
MONEY = {"total": int, "currency": str, "products": list}
SPEC = {
    "Products Searched": {"query": str},
    "Product List Viewed": {"list_id": str, "category": str},
    "Product Viewed": PRODUCT,
    "Product Added": IN_CART,
    "Product Removed": IN_CART,
    "Cart Viewed": {"cart_id": str, "products": list},
    "Checkout Started": {"order_id": str, "value": int, "currency": str, "products": list},
    "Order Completed": MONEY,
    "Order Refunded": MONEY,
    "Subscription Requested": dict.fromkeys(("channel", "address", "form", "text_version", "page"), str)
    | {"topics": list},
    "Consent Granted": dict.fromkeys(("channel", "address", "form", "text_version", "page", "at", "ip"), str)
    | {"topics": list},
}


def test_every_event_is_one_of_the_spec_with_what_it_asks_for(events):
    seen = Counter()
    for _, event in events:
        assert event["type"] in ("track", "identify", "page")
        assert datetime.fromisoformat(event["timestamp"]).tzinfo is not None
        if event["type"] != "track":
            continue
        seen[event["event"]] += 1
        properties = event["properties"]
        for field, kind in SPEC[event["event"]].items():
            assert type(properties.get(field)) is kind, (event["event"], field)
        for product in properties.get("products", []):
            assert {name: type(product.get(name)) for name in PRODUCT} == PRODUCT
            assert product["quantity"] >= 1
    assert set(seen) == set(SPEC), "the run shows every kind of event"


def test_an_event_always_says_whose_it_is(events):
    for source, event in events:
        if source == "site":
            assert event["anonymousId"]
        else:
            known = event.get("traits", {}) | event.get("context", {}).get("traits", {}) | event.get("properties", {})
            assert event.get("userId") or event.get("anonymousId") or known.get("card") or known.get("email")


def test_only_the_server_says_what_a_website_must_not(events):
    said_by_site = {event.get("event", event["type"]) for source, event in events if source == "site"}
    assert not said_by_site & {"Consent Granted", "Order Refunded"}
    assert all("dripline" not in event.get("context", {}) for source, event in events if source == "site")
    assert all(not event["traits"] for source, event in events if source == "site" and event["type"] == "identify")


def test_every_order_on_the_site_is_reported_by_script_and_server_with_one_id_and_one_total(events):
    reports = defaultdict(list)
    for source, event in events:
        order_id = event.get("properties", {}).get("order_id")
        if event.get("event") == "Order Completed" and order_id and "dripline" not in event.get("context", {}):
            reports[order_id].append((source, event["properties"]["total"]))
    assert len(reports) > 20
    for order_id, both in reports.items():
        assert sorted(source for source, _ in both) == ["server", "site"], order_id
        assert both[0][1] == both[1][1] > 0


def test_totals_are_what_the_lines_cost(events):
    for _, event in events:
        properties = event.get("properties", {})
        if "total" in properties:
            cost = sum(line["price"] * line["quantity"] for line in properties["products"])
            assert properties["total"] == cost - properties.get("discount", 0)


def test_a_cart_holds_what_was_put_in_and_neither_taken_out_nor_bought(events):
    carts: dict[str, Counter] = defaultdict(Counter)
    looked = 0
    for source, event in events:
        properties, name = event.get("properties", {}), event.get("event")
        if source != "site" or event["type"] != "track":
            continue
        cart = carts[event["anonymousId"].rpartition("-")[0]]
        if name == "Product Added":
            cart[properties["product_id"]] += properties["quantity"]
        elif name == "Product Removed":
            cart.subtract({properties["product_id"]: properties["quantity"]})
        elif name in ("Cart Viewed", "Checkout Started", "Order Completed"):
            looked += 1
            shown = {line["product_id"]: line["quantity"] for line in properties["products"]}
            assert shown == dict(+cart), name
            if name == "Order Completed":
                cart.clear()
    assert looked > 100


def test_receipts_of_the_till_are_distinct_and_name_store_terminal_and_card(events):
    receipts = [
        e["properties"]
        for _, e in events
        if e.get("event") == "Order Completed" and e["properties"].get("channel") == "pos"
    ]
    assert len(receipts) > 20
    assert all(r["store_id"] and r["terminal_id"] and r["card"] for r in receipts)
    assert len({(r["store_id"], r["terminal_id"], r["receipt_id"]) for r in receipts}) == len(receipts)


def test_a_refund_names_an_order_that_was_reported_before(events):
    known, refunds = set(), 0
    for _, event in events:
        properties = event.get("properties", {})
        reference = properties.get("order_id") or properties.get("receipt_id")
        if event.get("event") == "Order Completed":
            known.add(reference)
        elif event.get("event") == "Order Refunded":
            refunds += 1
            assert reference in known
    assert refunds > 0


def test_what_happened_before_the_run_is_history_and_nothing_else_is(events):
    for _, event in events:
        is_history = event.get("context", {}).get("dripline", {}).get("history", False)
        assert is_history == (datetime.fromisoformat(event["timestamp"]) < START)


def test_no_telephone_of_the_simulation_can_ring():
    phones = [person.phone for person in make_people(1_500, 1, START, ["vin-01"], ["vinyl"]) if person.phone]
    assert len(phones) == len(set(phones)) > 300
    assert all(phone.startswith("+447700900") and len(phone) == 13 for phone in phones)


def test_every_product_belongs_to_the_shops_own_address(events):
    for _, event in events:
        for link in (event.get("properties", {}).get("url"), event.get("properties", {}).get("image_url")):
            assert link is None or link.startswith("http://shop.example/")


def test_prices_are_whole_roubles_and_ids_distinct():
    products = Catalogue().products
    assert len({product.product_id for product in products}) == len(products)
    assert all(isinstance(product.price, int) and product.price > 0 for product in products)


# -- messages


def shop_at_noon() -> tuple[Shop, datetime]:
    shop = Shop(run_of())
    noon = START + timedelta(days=1, hours=12)
    list(shop.take(noon))
    return shop, noon


def message(shop: Shop, who: int, noon: datetime, **changes) -> Message:
    links = {
        what: [f"http://server.example/{letter}/{who}"]
        for what, letter in (("open", "o"), ("click", "c"), ("unsubscribe", "u"))
    }
    fields = {
        "id": f"m-{who}",
        "rule": "abandoned-cart",
        "channel": "email",
        "address": shop.customers[who].person.email,
        "sent_at": noon.astimezone(UTC),
        "links": links,
    }
    return Message(**(fields | changes))


@pytest.mark.parametrize("known_after", [timedelta(0), timedelta(hours=5)])
def test_people_read_click_and_ignore_and_nobody_reacts_before_the_message_is_there(known_after):
    shop, noon = shop_at_noon()
    now = noon + known_after
    list(shop.take(now))
    for who in range(len(shop.customers)):
        shop.receive(message(shop, who, noon), now)
    touched = [thing for thing in shop.take(shop.run.end) if isinstance(thing, Touch)]
    assert all(touch.at >= now and touch.at > noon for touch in touched)
    assert max(touch.at for touch in touched) > noon + timedelta(hours=6), "some take their time"
    done = Counter(touch.what for touch in touched)
    assert 0 < done["click"] < done["open"] < len(shop.customers)
    assert shop.tally.reactions.total() == len(shop.customers)
    assert shop.tally.visits["message"] == done["click"]


def test_whoever_asked_to_subscribe_mostly_presses_the_button():
    shop, noon = shop_at_noon()
    for who in range(len(shop.customers)):
        shop.receive(
            message(shop, who, noon, rule="double-opt-in", links={"confirm": [f"http://server.example/confirm/{who}"]}),
            noon,
        )
    pressed = [thing for thing in shop.take(shop.run.end) if isinstance(thing, Touch)]
    assert {touch.what for touch in pressed} == {"confirm"}
    assert 0.4 * len(shop.customers) < len(pressed) < len(shop.customers)


def test_a_flood_of_messages_drives_people_to_unsubscribe():
    def unsubscribed(messages: int) -> int:
        shop, noon = shop_at_noon()
        for number in range(messages):
            for who in range(len(shop.customers)):
                shop.receive(message(shop, who, noon + timedelta(hours=number), id=f"m-{who}-{number}"), noon)
        return shop.tally.reactions["email unsubscribed"]

    assert unsubscribed(20) > 20 * unsubscribed(1) or unsubscribed(1) == 0 < unsubscribed(20)


def test_the_order_in_which_others_get_their_messages_changes_nobodys_reaction():
    def reactions(order):
        shop, noon = shop_at_noon()
        for who in order:
            shop.receive(message(shop, who, noon), noon)
        return sorted((touch.url, touch.what) for touch in shop.take(shop.run.end) if isinstance(touch, Touch))

    assert reactions(range(120)) == reactions(reversed(range(120)))


def test_a_coupon_in_a_message_is_used_with_the_order_that_follows():
    shop, noon = shop_at_noon()
    for who in range(len(shop.customers)):
        shop.receive(message(shop, who, noon, coupon="POPUP10"), noon)
    orders = [
        event["properties"]
        for thing in shop.take(shop.run.end)
        if isinstance(thing, Post)
        for event in thing.events
        if event.get("event") == "Order Completed" and event["properties"].get("coupon")
    ]
    assert orders
    assert all(order["coupon"] == "POPUP10" and order["discount"] == order["subtotal"] // 10 for order in orders)


def test_the_codes_that_the_shop_takes_are_those_of_its_offers():
    import yaml

    offers = yaml.safe_load((Path(demo.__file__).parents[1] / "rules" / "offers.yml").read_text())["offers"]
    codes = {each["code"] for offer in offers for each in (offer, *offer.get("forms", {}).values())}
    assert codes == set(COUPONS)


@pytest.mark.parametrize(
    ("text", "code"),
    [("Your code:\n\n    CART5  (until 3 May)", "CART5"), ("cart5", None), ("XCART5", None), ("", None)],
)
def test_a_code_is_found_as_a_word_of_its_own(text, code):
    assert coupon_in(text) == code


def test_a_message_to_an_unknown_address_is_counted_and_moves_nobody():
    shop, noon = shop_at_noon()
    shop.receive(message(shop, 0, noon, address="stranger@example.com"), noon)
    assert shop.tally.for_nobody == 1
    assert not shop.tally.reactions


def test_the_demo_imports_httpx_and_the_standard_library_alone():
    allowed = set(sys.stdlib_module_names) | {"httpx", "demo"}
    for path in Path(demo.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module or ""]
            assert {name.partition(".")[0] for name in names} <= allowed, path.name
