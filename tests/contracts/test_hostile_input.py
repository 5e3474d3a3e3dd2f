"""Every hostile value in every field of an event: never a 5xx, never a lost neighbour, nothing that PostgreSQL refuses. What
ingest accepts goes on through all services in test_hostile_rules.py."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest

from services.ingest.bootstrap import Credentials, first_sources
from services.ingest.service import build
from shared.events import EVENTS, Event, decode_event
from tests.support.contexts import context_for
from tests.support.hostile import BROKEN_VALUES, STRANGE_VALUES

VALUES = BROKEN_VALUES | STRANGE_VALUES
HOLE = "@hole@"
SUBSCRIPTION = {
    "channel": "email",
    "address": "a@b.example",
    "form": "f",
    "text_version": "1",
    "page": "/",
    "topics": ["x"],
}
PROOF = {**SUBSCRIPTION, "at": "2026-01-01T00:00:00Z", "ip": "192.0.2.1"}
BASES: dict[str, dict[str, Any]] = {
    "track": {"type": "track", "event": "Order Completed", "userId": "u", "properties": {"order_id": "A"}},
    "identify": {"type": "identify", "userId": "u", "anonymousId": "a", "traits": {"city": "Kazan"}},
    "page": {"type": "page", "anonymousId": "a"},
    "group": {"type": "group", "userId": "u", "groupId": "g"},
    "alias": {"type": "alias", "userId": "u", "previousId": "p"},
    "subscription": {
        "type": "track",
        "event": "Subscription Requested",
        "anonymousId": "a",
        "properties": SUBSCRIPTION,
    },
    "consent": {"type": "track", "event": "Consent Granted", "properties": PROOF},
}
FIELDS: dict[str, list[str]] = {
    "track": [
        "type", "event", "userId", "anonymousId", "messageId", "timestamp", "originalTimestamp", "sentAt", "integrations",
        "context", "context.x", "context.traits", "context.traits.email", "context.device", "context.device.token",
        "context.externalIds", "context.dripline", "context.dripline.history", "context.dripline.signature", "context.ip",
        "properties", "properties.x", "properties.order_id", "properties.total", "properties.email", "properties.phone",
        "properties.card", "properties.products", "properties.receipt_id", "properties.url", "properties.x.y.z", "unknown",
    ],
    "identify": ["traits", "traits.x", "traits.email", "traits.phone", "traits.card", "traits.timezone", "traits.x.y"],
    "page": ["name", "category", "properties", "properties.name"],
    "group": ["groupId", "traits", "traits.name"],
    "alias": ["previousId", "userId"],
    "subscription": [f"properties.{name}" for name in SUBSCRIPTION],
    "consent": [f"properties.{name}" for name in PROOF],
}  # fmt: skip
GOOD = b'{"type":"track","event":"Product Added","userId":"good","messageId":"%d-%d"}'


def with_value(base: dict[str, Any], field: str, value: bytes) -> bytes:
    """The event as JSON with `value` in `field` (a path with dots)."""
    event = json.loads(json.dumps(base))
    *parents, last = field.split(".")
    inner = event
    for name in parents:
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            raise AssertionError(field)
    inner[last] = HOLE
    return json.dumps(event).encode().replace(json.dumps(HOLE).encode(), value)


def hostile_items(value: bytes) -> list[bytes]:
    return [with_value(BASES[kind], field, value) for kind, fields in FIELDS.items() for field in fields]


class Api:
    def __init__(self, http: httpx.AsyncClient, keys: Credentials, context: Any, url: str) -> None:
        self.http, self.keys, self.context, self.url = http, keys, context, url

    async def post(self, path: str, body: bytes, key: str) -> httpx.Response:
        return await self.http.post(path, content=body, auth=(key, ""))

    async def events(self) -> list[Event]:
        bus = self.context.bus
        found = await bus.fetch(EVENTS, await bus.beginnings(EVENTS), limit=100_000, wait=0)
        return [decode_event(record.value) for batch in found.values() for record in batch]


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with context_for(database_url, leases=False) as context:
        keys = await first_sources(context.database, context.clock, context.bits)
        assert keys is not None
        service = await build(context)
        transport = httpx.ASGITransport(service.asgi["/v1/batch"])
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.example", timeout=60) as http:
            yield Api(http, keys, context, database_url)


async def stored(url: str, events: list[Event]) -> int:
    """Puts what the events say into columns of every type that services store and index it in."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            """
            CREATE TEMPORARY TABLE taken (name text, message text, occurred timestamptz, body jsonb);
            CREATE TEMPORARY TABLE id (value text, primary key (value));
            CREATE INDEX ON taken (name); CREATE INDEX ON taken (message)
            """
        )
        await connection.executemany(
            "INSERT INTO taken VALUES ($1, $2, $3, $4)",
            [
                (e.name, e.message_id, e.occurred_at, json.dumps([e.properties, e.traits, e.context], allow_nan=False))
                for e in events
            ],
        )
        await connection.executemany(
            "INSERT INTO id VALUES ($1) ON CONFLICT DO NOTHING", [(one.value,) for e in events for one in e.ids]
        )
        return await connection.fetchval("SELECT count(*) FROM taken")
    finally:
        await connection.close()


@pytest.mark.parametrize("secret", [False, True], ids=["public", "secret"])
async def test_hostile_values_in_every_field_cost_nothing_but_their_own_event(api: Api, secret: bool) -> None:
    key = api.keys.server_write_key if secret else api.keys.site_write_key
    expected = 0
    for number, (name, value) in enumerate(VALUES.items()):
        items = hostile_items(value)
        size = len(value) * 4
        # Values that are too large for one batch go in several.
        step = max(1, 300_000 // (size + 300))
        for part in range(0, len(items), step):
            batch = [GOOD % (number, 2 * part), *items[part : part + step], GOOD % (number, 2 * part + 1)]
            answer = await api.post("/v1/batch", b'{"batch":[' + b",".join(batch) + b"]}", key)
            assert answer.status_code == 200, (name, answer.text)
            expected += 2
            if name in BROKEN_VALUES:
                assert answer.json()["refused"] == len(batch) - 2, name
    events = await api.events()
    good = [event for event in events if event.ids[-1].value == "good" or event.ids[0].value == "good"]
    assert len(good) == expected
    assert len(events) > len(good)  # some fields take some strange values
    assert await stored(api.url, events) == len(events)


async def test_each_hostile_event_alone_is_taken_or_refused_with_its_place(api: Api) -> None:
    for name, value in VALUES.items():
        for field in ("event", "userId", "properties.x", "properties.order_id", "timestamp", "context.x"):
            answer = await api.post("/v1/track", with_value(BASES["track"], field, value), api.keys.server_write_key)
            assert answer.status_code in (200, 400), (name, field, answer.text)
            if answer.status_code == 400:
                [error] = answer.json()["errors"]
                assert error["pointer"].startswith("#") and error["detail"], (name, field)
                place = "#/" + field.replace(".", "/")
                assert error["pointer"] in ("#", place) or error["pointer"].startswith(place + "/"), (
                    name,
                    field,
                    error,
                )
            else:
                assert name in STRANGE_VALUES, (name, field)


async def test_hostile_values_around_a_batch_are_refused_or_said_nothing(api: Api) -> None:
    for name, value in VALUES.items():
        for field in ("context", "sentAt", "integrations", "writeKey", "unknown", "batch"):
            good = GOOD % (0, 0)
            members = {b"batch": b"[" + good + b"]", field.encode(): value}
            body = b"{" + b",".join(b'"' + member + b'":' + text for member, text in members.items()) + b"}"
            answer = await api.post("/v1/batch", body, api.keys.site_write_key)
            assert answer.status_code in (200, 400), (name, field, answer.text)


@pytest.mark.parametrize("where", ["name of a property", "name of a trait", "name of a context"])
async def test_hostile_names_of_fields_are_refused_or_stored(api: Api, where: str) -> None:
    names = [value for value in VALUES.values() if value.startswith(b'"')]
    events = {
        "name of a property": b'{"type":"track","event":"X","userId":"u","properties":{%s:1}}',
        "name of a trait": b'{"type":"identify","userId":"u","traits":{%s:1}}',
        "name of a context": b'{"type":"track","event":"X","userId":"u","context":{%s:1}}',
    }
    for name in names:
        body = b'{"batch":[' + GOOD % (1, 1) + b"," + events[where] % name + b"]}"
        answer = await api.post("/v1/batch", body, api.keys.server_write_key)
        assert answer.status_code == 200, (name[:40], answer.text)
    taken = await api.events()
    assert sum(event.ids[0].value == "good" for event in taken) == len(names)
    assert await stored(api.url, taken) == len(taken)
