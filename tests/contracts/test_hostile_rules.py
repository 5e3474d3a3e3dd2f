"""Every hostile event that ingest accepts goes through all four services, with rules that look at it and letters that print it:
nothing stalls, and whoever stands before and behind it gets their letters."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from scripts.kafka import Kafka
from shared.events import EVENTS, HISTORY, MESSAGES, PROFILE_EVENTS
from shared.settings import SERVICE_NAMES
from tests.contracts.test_hostile_input import BASES, FIELDS, PROOF, with_value
from tests.support.hostile import STRANGE_VALUES
from tests.support.ingesting import Running, serving
from tests.support.wait import until

READERS = (("profile", EVENTS), ("profile", HISTORY), ("triggers", PROFILE_EVENTS), ("dispatch", MESSAGES))
_prefixes = itertools.count(1)

PRODUCT = {"product_id": "p-1", "name": "Tea", "price": 1500, "quantity": 1, "category": "tea", "url": "/p-1"}
ADDED = {"type": "track", "event": "Product Added", "userId": "u", "properties": PRODUCT}
REFUNDED = {
    "type": "track",
    "event": "Order Refunded",
    "userId": "u",
    "properties": {"order_id": "A", "total": 1, "products": [PRODUCT]},
}
# What the letter of each rule prints of the event that began it, and of the person.
PRINTED = " ".join(
    [
        *(
            f"{{{{ event.{name} | default: '-' }}}}"
            for name in (
                "x",
                "order_id",
                "total",
                "email",
                "phone",
                "card",
                "receipt_id",
                "url",
                "name",
                "form",
                "page",
            )
        ),
        "{% if event.products %}{% for product in event.products %}{{ product }}{% endfor %}{% endif %}",
        "{{ event.address | default: '-' }} {{ event.topics | default: '-' }}",
        "{{ person.x | default: '-' }} {{ person.city | default: '-' }} {{ person.timezone | default: '-' }}",
        "{% for item in cart.items %}{{ item.name | default: '-' }}: {{ item.price | default: '-' }}{% endfor %}",
        "{{ orders.total | default: 0 }} {{ run.event }}",
    ]
)
TEMPLATES = [
    {
        "name": "at-once",
        "purpose": "transactional",
        "subject": "{{ run.event }} {{ event.x | default: '-' }}",
        "text": PRINTED,
    },
    {
        "name": "by-and-by",
        "purpose": "marketing",
        "subject": "For you: {{ event.x | default: run.event }}",
        "text": PRINTED + " {{ links.unsubscribe }}",
    },
]
NAMES = ["Order Completed", "Order Refunded", "Product Added", "Identify", "Page Viewed", "Group", "Alias",
         "Subscription Requested", "Consent Granted", "Good Bought", "7", "1.5", "x", "🦊 ёЖ 🦊",
         "<script>alert(1)</script>'; DROP TABLE x; --"]  # fmt: skip
WHERE: list[dict[str, Any]] = [
    {"x": {"eq": 7}},
    {"x": {"in": ["x", 1.5, True]}},
    {"x": {"ne": "nothing like it"}, "order_id": {"exists": True}},
    {"x": {"contains": "ёж"}},
    {"x": {"prefix": "<script"}},
    {"x": {"between": [1, 2]}},
    {"x.y": {"gte": 1}},
    {"total": {"gt": 0}},
    {"order_id": {"prefix": "<"}},
    {"price": {"between": [1, 2]}},
]
FACTS: dict[str, Any] = {
    "any": [
        {"did": {"event": "Order Completed", "at_least": 1, "within": "90d", "where": {"total": {"gt": 1}}}},
        {"did": {"event": "Product Added", "at_least": 1, "same": "product_id", "within": "7d"}},
        {"trait": {"x": {"contains": "x"}}},
        {"trait": {"city": {"ne": "Perm"}}},
        {"bought": {"category": {"eq": "tea"}, "within": "60d"}},
        {"orders": {"total": {"gt": 1}}},
        {"cart": {"has": {"category": {"eq": "tea"}}}},
        {"local_time": {"between": ["00:00", "23:59"]}},
    ]
}
GOOD = "Good Bought"


def rule(name: str, template: str, kind: str = "marketing", **enter: Any) -> dict[str, Any]:
    entered = {"on": NAMES, **enter}
    always = {"again": "always"} | ({"holdout": "0%", "value": 900} if kind == "marketing" else {})
    return {"name": name, "kind": kind, "enter": entered, **always, "steps": [{"send": template}]}


RULES = [
    rule("at-once", "at-once", kind="transactional"),
    *(rule(f"where-{number}", "by-and-by", where=where) for number, where in enumerate(WHERE)),
    rule("facts", "by-and-by", on=["Order Refunded", "Product Added"], **{"if": FACTS}),
    rule("idle", "by-and-by", on=["Product Added"], idle="1s", **{"if": {"cart": {"not_empty": True}}}),
    rule("good", "by-and-by", on=[GOOD]),
]


def hostile_items(value: bytes) -> list[bytes]:
    bases = {**BASES, "added": ADDED, "refunded": REFUNDED}
    fields = {
        **FIELDS,
        "added": [f"properties.{name}" for name in (*PRODUCT, "x", "image_url")],
        "refunded": [f"properties.{name}" for name in ("order_id", "total", "products", "x")],
    }
    items = [with_value(bases[kind], field, value) for kind, names in fields.items() for field in names]
    return [item for item in items if len(item) < 30_000]


def hello(user: str) -> list[dict[str, Any]]:
    """Who it is, and that they agreed."""
    address = f"{user}@example.com"
    return [
        {"type": "identify", "userId": user, "traits": {"email": address}},
        {
            "type": "track",
            "event": "Consent Granted",
            "userId": user,
            "properties": {**PROOF, "address": address, "topics": ["marketing"]},
        },
    ]


@pytest.fixture(params=["log table", "kafka"])
def bus_url(request: pytest.FixtureRequest) -> str | None:
    """None: the log table in the database."""
    if request.param == "log table":
        return None
    kafka: Kafka = request.getfixturevalue("kafka")
    return f"{kafka.url}/hostile{next(_prefixes)}"


async def set_up(dripline: Running, people: list[str]) -> None:
    policy = (await dripline.http.get("/v1/caps", headers=dripline.owner)).json()
    uncapped = await dripline.http.put("/v1/caps", json={**policy, "caps": []}, headers=dripline.owner)
    assert uncapped.is_success, uncapped.text
    for template in TEMPLATES:
        made = await dripline.http.post("/v1/templates", json=template, headers=dripline.owner)
        assert made.status_code == 201, made.text
    documents = "\n---\n".join(json.dumps(one, ensure_ascii=False) for one in RULES)  # as YAML
    applied = await dripline.http.post("/v1/rules/apply?activate=true", content=documents, headers=dripline.owner)
    assert applied.is_success, applied.text
    answer = await dripline.post("/v1/batch", {"batch": [event for user in people for event in hello(user)]})
    assert answer.json() == {"success": True}


def good(user: str, number: int) -> bytes:
    return json.dumps({"type": "track", "event": GOOD, "userId": user, "messageId": f"{user}/{number}"}).encode()


async def post_hostile_events(dripline: Running) -> None:
    """Each value in every field, between events of somebody good. (What is broken in every field never gets past ingest:
    test_hostile_input.py.)"""
    for number, (name, value) in enumerate(STRANGE_VALUES.items()):
        user, items = f"good-{number}", hostile_items(value)
        half = len(items) // 2
        for batch in ([good(user, 1), *items[:half], good(user, 2)], [*items[half:], good(user, 3)]):
            answer = await dripline.post("/v1/batch", b'{"batch":[' + b",".join(batch) + b"]}")
            assert answer.status_code == 200, (name, answer.text)


async def left(dripline: Running) -> dict[str, Any]:
    """What is not handled yet, by where it waits; empty if nothing is."""
    context = dripline.server.context
    waiting: dict[str, Any] = {}
    async with context.database.connection() as connection:
        for service, topic in READERS:
            rows = await connection.fetch(
                f"SELECT partition, next FROM {service}.position WHERE topic = $1 AND epoch = $2",
                topic,
                context.bus.epoch(topic),
            )
            handled, first = dict(rows), await context.bus.beginnings(topic)
            ends = await context.bus.ends(topic)
            waiting[f"{service}: {topic}"] = sum(end - handled.get(p, first[p]) for p, end in ends.items())
        for what, count in {
            "items": "SELECT count(*) FROM triggers.item",
            "outbox": "SELECT (SELECT count(*) FROM profile.outbox) + (SELECT count(*) FROM triggers.outbox)",
            "messages": "SELECT count(*) FROM dispatch.message WHERE state IN ('queued', 'claimed', 'calling')",
        }.items():
            waiting[what] = await connection.fetchval(count)
    return {name: count for name, count in waiting.items() if count}


async def appended(dripline: Running, topic: str) -> int:
    bus = dripline.server.context.bus
    return sum((await bus.ends(topic)).values()) - sum((await bus.beginnings(topic)).values())


def loop_failures() -> float:
    return sum(s.value for m in REGISTRY.collect() for s in m.samples if s.name == "dripline_loop_failures_total")


@pytest.mark.timeout(300)
async def test_what_ingest_accepts_stalls_no_service_and_no_neighbour(
    database_url: str, bus_url: str | None, tmp_path: Path
) -> None:
    good_people = [f"good-{number}" for number in range(len(STRANGE_VALUES))]
    failed_before = loop_failures()
    settings = {"services": ",".join(SERVICE_NAMES), "linger_ms": 0, "bus_url": bus_url, "data_dir": tmp_path}
    async with serving(database_url, **settings) as dripline:
        await set_up(dripline, ["u", "a", *good_people])
        await post_hostile_events(dripline)

        async def nothing_left() -> bool:
            waiting.update(now=await left(dripline))
            return not waiting["now"]

        waiting: dict[str, Any] = {}
        try:
            await until(nothing_left, limit=200, what="all services have handled everything", every=0.5)
        except AssertionError as problem:
            raise AssertionError(f"{problem}: {waiting['now']}") from None
        async with dripline.server.context.database.connection() as connection:
            rows = await connection.fetch(
                """
                SELECT n.value, m.rule_name, m.state, m.reason_code, m.subject || m.body AS text FROM dispatch.message m
                JOIN profile.node n ON n.id = m.origin AND n.kind = 'user_id'
                """
            )
            dead = await connection.fetch("SELECT service, reason FROM platform.dead_letter WHERE topic IS NOT NULL")
            counted = await connection.fetchrow(
                "SELECT sum(read) AS read, sum(applied + repeated + conflicting) AS kept, sum(dead) AS dead FROM profile.position"
            )
        accepted = await appended(dripline, EVENTS) + await appended(dripline, HISTORY)
    assert loop_failures() == failed_before, "no loop ended with an error"
    assert tuple(counted) == (accepted, accepted - len(dead), len(dead)), (
        "each was applied, or put aside with its reason"
    )
    assert {row["service"] for row in dead} == {"profile"} and all(row["reason"] for row in dead)
    sent = Counter((row["value"], row["rule_name"]) for row in rows if row["state"] == "sent")
    # At once: for who they are, for what they agreed to, and for what they did before, between and behind the hostile events.
    letters = {user: (sent[user, "at-once"], sent[user, "good"]) for user in good_people}
    assert letters == dict.fromkeys(good_people, (5, 3))
    of_the_hostile = [row for row in rows if row["value"] == "u"]
    entered = {row["rule_name"] for row in of_the_hostile}
    assert entered >= {one["name"] for one in RULES} - {"good"}, "every condition let something hostile in"
    printed = " ".join(row["text"] for row in of_the_hostile if row["state"] == "sent")
    assert "🦊 ёЖ 🦊" in printed and "DROP TABLE" in printed
    odd = Counter((row["state"], row["reason_code"]) for row in of_the_hostile if row["state"] != "sent")
    assert {state for state, _ in odd} <= {"withheld"}, odd
