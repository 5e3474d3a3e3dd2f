"""What an item of a body means: bodies as real clients write them, trust, time, ids, names, consent."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from services.ingest.parse import Arrival, Shop, Source, parse
from services.ingest.reading import Envelope, read_body
from services.ingest.refusal import Refused
from shared.events import Event, decode_event, encode
from shared.ids import event_id, node_id

NAMESPACE = UUID("11111111-1111-4111-8111-111111111111")
SHOP = Shop(NAMESPACE, "RU", frozenset({"shop.example", "www.shop.example"}))
SITE = Source(UUID("22222222-2222-4222-8222-222222222222"), "site", "public", ("s3cret",))
SERVER = Source(UUID("33333333-3333-4333-8333-333333333333"), "server", "secret")
NOW = datetime(2026, 11, 23, 10, 0, 0, 500_000, tzinfo=UTC)
PROOF = {
    "channel": "email",
    "address": "Anna@Example.com",
    "topics": ["news"],
    "form": "footer",
    "text_version": "2026-01",
    "page": "https://shop.example/",
    "at": "2026-11-23T09:00:00Z",
    "ip": "192.0.2.7",
}


def read(call: dict[str, Any], source: Source = SERVER, kind: str | None = None, **arrival: Any) -> Event | Refused:
    kind = kind or call.pop("type", "track")
    come = Arrival(source, NOW, **arrival)
    return parse(json.dumps(call).encode(), kind, come, SHOP, random.Random(7).getrandbits)


def taken(call: dict[str, Any], source: Source = SERVER, **more: Any) -> Event:
    event = read(call, source, **more)
    assert isinstance(event, Event), event
    assert decode_event(encode(event)) == event  # what the bus gives back is what was put in
    return event


def refused(call: dict[str, Any], source: Source = SERVER, **more: Any) -> Refused:
    refusal = read(call, source, **more)
    assert isinstance(refusal, Refused), refusal
    return refusal


def ids(event: Event) -> list[tuple[str, str, bool]]:
    return [(one.kind, one.value, one.strong) for one in event.ids]


# ── bodies as clients write them ───────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_of_segments_python_library() -> None:
    body = {
        "batch": [
            {
                "integrations": {},
                "anonymousId": None,
                "properties": {"order_id": "A-1", "total": 1500.5},
                "timestamp": "2026-11-23T10:00:00.123456+00:00",
                "context": {"library": {"name": "analytics-python", "version": "2.3.2"}},
                "userId": "u-9",
                "type": "track",
                "event": "Order Completed",
                "messageId": "8b1c3d1c-0c2e-4a8f-9f43-0f1c2ddc3f57",
            }
        ],
        "sentAt": "2026-11-23T10:00:00.400000+00:00",
        "writeKey": "c" + "a" * 24,
    }
    reading = read_body(json.dumps(body).encode(), "batch")
    assert reading.write_key == "c" + "a" * 24
    [item] = reading.items
    event = parse(item.raw, item.type, Arrival(SERVER, NOW, reading.envelope), SHOP, random.getrandbits)
    assert isinstance(event, Event)
    assert (event.name, event.type, event.trust) == ("Order Completed", "track", "secret")
    assert ids(event) == [("user_id", "u-9", True)]
    assert event.origin == node_id(NAMESPACE, "user_id", "u-9")
    assert event.id == event_id(SERVER.id, "8b1c3d1c-0c2e-4a8f-9f43-0f1c2ddc3f57")
    assert event.occurred_at == datetime(2026, 11, 23, 10, 0, 0, 123456, tzinfo=UTC)
    assert event.properties == {"order_id": "A-1", "total": 1500.5}
    assert "integrations" not in event.context


def test_an_event_of_segments_browser_library() -> None:
    event = taken(
        {
            "timestamp": "2026-11-23T09:59:58.000Z",
            "integrations": {"Segment.io": True},
            "event": "Product Added",
            "type": "track",
            "properties": {"product_id": "p-1", "price": 1500, "quantity": 1},
            "context": {"page": {"url": "https://shop.example/p-1", "referrer": "https://search.example/"}},
            "messageId": "ajs-next-1763892000000-3f1c2ddc",
            "userId": None,
            "anonymousId": "a-77",
            "sentAt": "2026-11-23T09:59:58.010Z",
            "writeKey": "c" + "a" * 24,
            "_metadata": {"bundled": ["Segment.io"], "unbundled": [], "bundledIds": []},
        },
        SITE,
        address="198.51.100.4",
    )
    assert (event.trust, ids(event)) == ("public", [("anonymous_id", "a-77", True)])
    assert event.occurred_at == NOW - timedelta(milliseconds=10)
    assert event.context["integrations"] == {"Segment.io": True}
    assert event.context["page"]["referrer"] == "https://search.example/"
    assert event.context["ip"] == "198.51.100.4"
    assert "_metadata" not in event.context


def test_an_event_of_segments_node_library() -> None:
    event = taken(
        {
            "messageId": "node-next-1763892000000-8b1c3d1c-0c2e-4a8f-9f43-0f1c2ddc3f57",
            "timestamp": "2026-11-23T09:59:58.000Z",
            "type": "track",
            "userId": "u-9",
            "event": "Order Completed",
            "properties": {"order_id": "A-1"},
            "context": {"library": {"name": "@segment/analytics-node", "version": "3.1.0"}},
            "_metadata": {"nodeVersion": "22.1.0", "jsRuntime": "node"},
        }
    )
    assert (event.name, ids(event)) == ("Order Completed", [("user_id", "u-9", True)])
    assert event.message_id == "node-next-1763892000000-8b1c3d1c-0c2e-4a8f-9f43-0f1c2ddc3f57"


def test_an_identify_of_rudderstack_has_its_traits_in_the_context() -> None:
    event = taken(
        {
            "type": "identify",
            "userId": "u-9",
            "anonymousId": "",
            "context": {"traits": {"email": "Anna@Example.COM", "city": "Kazan"}, "library": {"name": "rudder"}},
            "traits": {"city": "Moscow"},
            "originalTimestamp": "2026-11-23T09:00:00.000Z",
            "sentAt": "2026-11-23T09:59:00.000Z",
            "messageId": "m-1",
        }
    )
    assert event.name == "Identify"
    assert event.traits == {"email": "Anna@Example.COM", "city": "Moscow"}
    assert ids(event) == [("user_id", "u-9", True), ("email", "anna@example.com", True)]
    assert event.occurred_at == datetime(2026, 11, 23, 9, tzinfo=UTC)
    assert "traits" not in event.context


def test_a_page_of_jitsu() -> None:
    event = taken(
        {
            "type": "page",
            "name": "Vinyl",
            "category": "Catalogue",
            "properties": {"url": "https://shop.example/vinyl", "referrer": "https://other.example/"},
            "anonymousId": "a-1",
            "messageId": "m",
        },
        SITE,
    )
    assert event.name == "Page Viewed"
    assert event.properties == {
        "url": "https://shop.example/vinyl",
        "referrer": "https://other.example/",
        "name": "Vinyl",
        "category": "Catalogue",
    }


def test_what_a_batch_says_for_all_is_merged_into_each_and_the_item_wins() -> None:
    envelope = Envelope({"locale": "ru-RU", "device": {"type": "ios", "token": "t-1"}}, {"All": True}, None)
    event = taken(
        {"userId": "u", "event": "X", "context": {"device": {"type": "android"}, "locale": None}},
        envelope=envelope,
    )
    assert event.context == {
        "locale": "ru-RU",
        "device": {"type": "android", "token": "t-1"},
        "integrations": {"All": True},
    }
    assert envelope.context == {"locale": "ru-RU", "device": {"type": "ios", "token": "t-1"}}
    assert ("device_token", "t-1", True) in ids(event)


def test_a_till_names_a_card_and_a_receipt() -> None:
    event = taken(
        {
            "event": "Completed Order",
            "properties": {"channel": "pos", "store_id": "s-1", "receipt_id": "881", "card": "c-5", "total": 1500},
            "anonymousId": "till-2",
        }
    )
    assert event.name == "Order Completed"
    assert ids(event) == [("card", "c-5", True), ("anonymous_id", "till-2", True)]


def test_a_group_describes_a_company_and_not_the_person() -> None:
    event = taken(
        {"type": "group", "userId": "u", "groupId": 7, "traits": {"email": "office@firm.example", "name": "Firm"}}
    )
    assert ids(event) == [("user_id", "u", True)]
    assert event.traits == {}
    assert event.properties == {"email": "office@firm.example", "name": "Firm", "group_id": "7"}


def test_an_alias_names_the_id_before() -> None:
    event = taken({"type": "alias", "userId": "u-2", "previousId": "u-1"})
    assert ids(event) == [("user_id", "u-2", True), ("user_id", "u-1", True), ("anonymous_id", "u-1", True)]
    public = taken({"type": "alias", "userId": "u-2", "previousId": "a-1", "anonymousId": "a-1"}, SITE)
    assert ids(public) == [("anonymous_id", "a-1", True), ("user_id", "u-2", False)]


def test_external_ids_are_told_apart_by_their_type() -> None:
    event = taken(
        {
            "event": "X",
            "context": {
                "externalIds": [
                    {"id": "123", "type": "telegram", "collection": "users", "encoding": "none"},
                    {"id": "8 916 123-45-67", "type": "phone"},
                    {"id": "c-5", "type": "loyalty_card"},
                    {"id": None, "type": "broken"},
                    "nonsense",
                ]
            },
        }
    )
    assert ids(event) == [("card", "c-5", True), ("external_id", "telegram:123", True), ("phone", "+79161234567", True)]


# ── trust, and whose event it is ───────────────────────────────────────────────────────────────────────────────────────


def test_a_public_source_vouches_for_its_own_anonymous_id_alone() -> None:
    event = taken(
        {"type": "identify", "userId": "u-9", "anonymousId": "a-77", "traits": {"email": "a@b.example"}}, SITE
    )
    assert event.trust == "public"
    assert ids(event) == [("anonymous_id", "a-77", True), ("user_id", "u-9", False), ("email", "a@b.example", False)]
    assert event.origin == event.ids[0].node


def test_without_an_anonymous_id_a_public_event_belongs_to_a_claimed_node_of_its_source() -> None:
    first = taken({"type": "identify", "userId": "u-9", "traits": {"city": "Kazan"}}, SITE)
    again = taken({"event": "Product Viewed", "userId": "u-9"}, SITE)
    elsewhere = taken({"event": "Product Viewed", "userId": "u-9"}, Source(UUID(int=9), "other", "public"))
    assert [one.kind for one in first.ids] == ["claimed", "user_id"]
    assert first.origin == again.origin != elsewhere.origin
    assert first.origin != node_id(NAMESPACE, "user_id", "u-9")
    assert not first.ids[1].strong


def sign(user: str, secret: str = "s3cret") -> dict[str, Any]:
    return {"dripline": {"signature": hmac.new(secret.encode(), user.encode(), hashlib.sha256).hexdigest()}}


def test_a_signature_vouches_for_the_user_id_and_nothing_else() -> None:
    call = {"type": "identify", "userId": "u-9", "anonymousId": "a-77", "traits": {"email": "a@b.example"}}
    event = taken({**call, "context": sign("u-9")}, SITE)
    assert event.trust == "signed"
    assert ids(event) == [("user_id", "u-9", True), ("email", "a@b.example", False), ("anonymous_id", "a-77", True)]
    assert event.origin == node_id(NAMESPACE, "user_id", "u-9")
    assert event.context == {}


@pytest.mark.parametrize("context", [sign("u-8"), sign("u-9", "guess"), {"dripline": {"signature": 7}}])
def test_a_wrong_signature_makes_an_unsigned_event(context: dict[str, Any]) -> None:
    event = taken({"event": "X", "userId": "u-9", "anonymousId": "a-77", "context": context}, SITE)
    assert (event.trust, event.ids[0].kind) == ("public", "anonymous_id")


def test_a_secret_source_vouches_for_the_strongest_id() -> None:
    event = taken({"event": "X", "anonymousId": "a", "properties": {"phone": 79161234567, "email": "A@B.example"}})
    assert ids(event) == [("email", "a@b.example", True), ("phone", "+79161234567", True), ("anonymous_id", "a", True)]
    assert event.origin == event.ids[0].node


def test_who_something_is_shared_with_is_somebody_else() -> None:
    event = taken({"event": "Product Shared", "userId": "u", "properties": {"email": "friend@b.example"}})
    assert ids(event) == [("user_id", "u", True)]


def test_a_mistyped_address_among_traits_loses_nothing_else() -> None:
    event = taken({"type": "identify", "userId": "u", "traits": {"email": "anna(at)home", "city": "Kazan"}})
    assert ids(event) == [("user_id", "u", True)]
    assert event.traits["email"] == "anna(at)home"


def test_an_event_that_names_nobody_is_refused() -> None:
    assert refused({"event": "X", "userId": None, "anonymousId": ""}).kind == "nobody"


@pytest.mark.parametrize(
    ("field", "value"),
    [("userId", True), ("userId", {"a": 1}), ("anonymousId", ["x"]), ("userId", "x" * 321), ("userId", "a\u0001b")],
)
def test_a_bad_id_at_the_top_is_refused_where_it_stands(field: str, value: Any) -> None:
    refusal = refused({"event": "X", field: value})
    assert (refusal.kind, refusal.pointer) == ("identifier", f"/{field}")


def test_a_number_as_user_id_is_text() -> None:
    assert ids(taken({"event": "X", "userId": 17850})) == [("user_id", "17850", True)]


# ── time ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_clock_of_a_browser_is_corrected_and_a_tills_own_time_is_not() -> None:
    # The clock is two days ahead; the event happened ten minutes before it was sent.
    call = {"event": "X", "anonymousId": "a", "timestamp": "2026-11-25T09:50:00Z", "sentAt": "2026-11-25T10:00:00Z"}
    assert taken(dict(call), SITE).occurred_at == NOW - timedelta(minutes=10)
    offline = {"event": "X", "userId": "u", "timestamp": "2026-11-22T09:50:00+03:00", "sentAt": "2026-11-25T10:00:00Z"}
    assert taken(offline).occurred_at == datetime(2026, 11, 22, 6, 50, tzinfo=UTC)


@pytest.mark.parametrize("source", [SITE, SERVER])
def test_nothing_occurs_after_it_was_received(source: Source) -> None:
    call = {"event": "X", "anonymousId": "a", "timestamp": "2027-01-01T00:00:00Z", "sentAt": "2026-12-01T00:00:00Z"}
    assert taken(call, source).occurred_at == NOW


def test_without_a_time_an_event_occurs_when_it_is_received() -> None:
    assert taken({"event": "X", "userId": "u", "timestamp": None, "sentAt": "2020-01-01T00:00:00Z"}).occurred_at == NOW


def test_the_sent_at_of_a_batch_counts_for_its_items() -> None:
    call = {"event": "X", "anonymousId": "a", "timestamp": "2026-11-25T09:59:00Z"}
    assert taken(call, SITE, envelope=Envelope(sent_at="2026-11-25T10:00:00Z")).occurred_at == NOW - timedelta(
        minutes=1
    )


@pytest.mark.parametrize(
    "time",
    [
        *(0, False, "yesterday", "2026-11-23", "2026-11-23T10:00:00", 1763892000, "9" * 9_600, "1969-12-31T23:59:59Z"),
        *(
            "294277-01-01T00:00:00Z",
            "+294277-01-01T00:00:00Z",
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
        ),
    ],
)
@pytest.mark.parametrize(("field", "source"), [("timestamp", SITE), ("timestamp", SERVER), ("sentAt", SITE)])
def test_an_impossible_time_is_refused_where_it_stands(field: str, source: Source, time: Any) -> None:
    refusal = refused({"event": "X", "anonymousId": "a", "timestamp": "2026-11-23T09:00:00Z", field: time}, source)
    assert (refusal.kind, refusal.pointer) == ("time", f"/{field}")


def test_what_is_older_than_thirteen_months_comes_as_history_only() -> None:
    old = {"event": "Order Completed", "userId": "u", "timestamp": "2010-12-01T08:26:00Z"}
    assert refused(dict(old)).pointer == "/timestamp"
    event = taken({**old, "context": {"dripline": {"history": True}}})
    assert event.history
    assert event.occurred_at == datetime(2010, 12, 1, 8, 26, tzinfo=UTC)


def test_history_is_for_secret_sources_and_says_true() -> None:
    call = {"event": "X", "anonymousId": "a"}
    assert refused({**call, "context": {"dripline": {"history": True}}}, SITE).kind == "history"
    assert refused({**call, "context": {"dripline": {"history": "yes"}}}).kind == "history"
    assert refused({**call, "context": {"dripline": [1]}}).pointer == "/context/dripline"
    assert not taken({**call, "context": {"dripline": {"history": False}}}, SITE).history


# ── ids of events ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_id_counts_within_its_source_only() -> None:
    call = {"event": "X", "anonymousId": "a", "messageId": "m-1"}
    assert taken(dict(call), SITE).id == event_id(SITE.id, "m-1") != taken(dict(call), SERVER).id


@pytest.mark.parametrize("message", ["m" * 101, ["m"], 1.5, True])
def test_a_bad_message_id_is_refused(message: Any) -> None:
    assert refused({"event": "X", "userId": "u", "messageId": message}).pointer == "/messageId"
    assert taken({"event": "X", "userId": "u", "messageId": "m" * 100}).message_id == "m" * 100


def test_without_a_message_id_a_dated_event_is_known_by_its_body() -> None:
    call = {"event": "X", "userId": "u", "timestamp": "2026-11-23T09:00:00Z", "properties": {"a": 1}}
    one, two = taken(dict(call)), taken({**call, "sentAt": "2026-11-23T09:59:00Z", "context": {"ip": "192.0.2.1"}})
    other = taken({**call, "properties": {"a": 2}})
    assert one.id == two.id != other.id
    undated = {"event": "X", "userId": "u"}
    bits = random.Random(1).getrandbits
    first = parse(json.dumps(undated).encode(), "track", Arrival(SERVER, NOW), SHOP, bits)
    second = parse(json.dumps(undated).encode(), "track", Arrival(SERVER, NOW), SHOP, bits)
    assert isinstance(first, Event) and isinstance(second, Event) and first.id != second.id


def test_a_retry_has_the_same_hash_and_another_body_another() -> None:
    call = {"event": "X", "anonymousId": "a", "messageId": "m", "timestamp": "2026-11-23T09:00:00Z"}
    first = taken({**call, "sentAt": "2026-11-23T09:00:01Z", "context": {"locale": "ru"}}, SITE)
    retry = taken({**call, "sentAt": "2026-11-23T09:30:00Z"}, SITE)
    assert (first.id, first.hash) == (retry.id, retry.hash)
    assert first.occurred_at != retry.occurred_at
    for change in (
        {"properties": {"x": 1}},
        {"userId": "u"},
        {"event": "Y"},
        {"timestamp": "2026-11-23T09:00:00.001Z"},
    ):
        other = taken({**call, **change}, SITE)
        assert (other.id, other.hash != first.hash) == (first.id, True), change


# ── names ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["Email Sent", "email sent", " Subscription Confirmed ", "Traits Set", "Link Clicked"])
@pytest.mark.parametrize("source", [SITE, SERVER])
def test_the_products_own_names_are_refused(name: str, source: Source) -> None:
    refusal = refused({"event": name, "anonymousId": "a"}, source)
    assert (refusal.kind, refusal.pointer) == ("name", "/event")


@pytest.mark.parametrize("name", ["Consent Granted", "Unsubscribed"])
def test_only_a_secret_source_grants_and_withdraws_consent(name: str) -> None:
    assert refused({"event": name, "anonymousId": "a", "properties": PROOF}, SITE).kind == "name"
    event = taken({"event": name.upper(), "properties": PROOF})
    assert event.name == name
    assert ids(event) == [("email", "anna@example.com", True)]


@pytest.mark.parametrize("name", [None, "", "  ", 7, "x" * 201, "a\nb"])
def test_a_track_needs_a_name(name: Any) -> None:
    assert refused({"event": name, "userId": "u"}).pointer == "/event"


def test_in_a_batch_each_item_says_its_type() -> None:
    refusal = parse(b'{"type":"tracks","userId":"u"}', None, Arrival(SERVER, NOW), SHOP, random.getrandbits)
    assert isinstance(refusal, Refused) and refusal.pointer == "/type"


# ── consent ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("field", ["channel", "address", "form", "text_version", "page", "at", "ip"])
@pytest.mark.parametrize("value", [None, "", 7, ["x"], "y" * 3_000])
def test_consent_without_whole_proof_is_refused_where_it_lacks(field: str, value: Any) -> None:
    refusal = refused({"event": "Consent Granted", "userId": "u", "properties": {**PROOF, field: value}})
    assert refusal.pointer == f"/properties/{field}"


def test_consent_is_not_granted_in_the_future() -> None:
    late = {**PROOF, "at": "2026-11-23T10:30:00Z"}
    assert refused({"event": "Consent Granted", "userId": "u", "properties": late}).pointer == "/properties/at"


@pytest.mark.parametrize("topics", ["news", [], [""], [7], ["x" * 101]])
def test_topics_are_a_list_of_names(topics: Any) -> None:
    refusal = refused(
        {"event": "Subscription Requested", "anonymousId": "a", "properties": {**PROOF, "topics": topics}}, SITE
    )
    assert refusal.pointer.startswith("/properties/topics")


def test_a_misspelt_channel_is_told_and_a_new_one_is_taken() -> None:
    call = {"event": "Subscription Requested", "anonymousId": "a"}
    assert "did you mean 'email'" in refused({**call, "properties": {**PROOF, "channel": "e-mail"}}).reason
    pigeon = taken({**call, "properties": {**PROOF, "channel": "pigeon", "address": "loft 7"}}, SITE)
    assert ("external_id", "loft 7", False) in ids(pigeon)


def test_a_subscription_names_its_address() -> None:
    event = taken({"event": "Subscription Requested", "anonymousId": "a", "properties": PROOF}, SITE)
    assert ids(event) == [("anonymous_id", "a", True), ("email", "anna@example.com", False)]
    bad = {**PROOF, "address": "nowhere"}
    assert refused({"event": "Subscription Requested", "anonymousId": "a", "properties": bad}, SITE).pointer == (
        "/properties/address"
    )


# ── limits ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_has_at_most_32_kib_from_the_public_and_256_kib_from_a_server() -> None:
    def of(size: int) -> dict[str, Any]:
        empty = len(json.dumps({"event": "X", "anonymousId": "a", "properties": {"x": ""}}))
        return {"event": "X", "anonymousId": "a", "properties": {"x": "y" * (size - empty)}}

    assert refused(of(32 * 1024 + 1), SITE).kind == "size"
    taken(of(32 * 1024), SITE)
    taken(of(256 * 1024), SERVER)
    assert refused(of(256 * 1024 + 1), SERVER).kind == "size"


@pytest.mark.parametrize("field", ["order_id", "receipt_id", "store_id", "product_id"])
def test_what_becomes_a_key_is_short(field: str) -> None:
    assert refused({"event": "X", "userId": "u", "properties": {field: "x" * 9_600}}).pointer == f"/properties/{field}"
    lines = {"products": [{"product_id": "ok"}, {field: "x" * 201}]}
    assert refused({"event": "X", "userId": "u", "properties": lines}).pointer == f"/properties/products/1/{field}"


def test_a_traits_name_is_short() -> None:
    assert refused({"type": "identify", "userId": "u", "traits": {"x" * 201: 1}}).pointer == "/traits"


@pytest.mark.parametrize("field", ["properties", "traits", "context"])
def test_objects_are_objects(field: str) -> None:
    kind = "identify" if field == "traits" else "track"
    for value in ([], "text", 7, True):
        assert refused({"type": kind, "event": "X", "userId": "u", field: value}).pointer == f"/{field}"


def test_links_of_public_events_lead_to_the_shop() -> None:
    call = {
        "event": "Product Added",
        "anonymousId": "a",
        "messageId": "m",
        "properties": {
            "url": "https://evil.example/p",
            "image_url": "https://shop.example/i.png",
            "name": "N" * 300,
            "products": [{"product_id": "p", "url": "javascript:alert(1)"}, {"url": "//evil.example"}],
        },
    }
    event = taken(dict(call), SITE)
    assert event.properties == {
        "image_url": "https://shop.example/i.png",
        "name": "N" * 200,
        "products": [{"product_id": "p"}, {}],
    }
    assert [sentence.partition(":")[0] for sentence in event.context["dripline"]["removed"]] == [
        "/properties/url",
        "/properties/name",
        "/properties/products/0/url",
        "/properties/products/1/url",
    ]
    # The shop's own server may say anything, and what was taken out changes no identity.
    assert taken(dict(call), SERVER).properties == call["properties"]
    assert event.hash == taken(dict(call), SERVER).hash
