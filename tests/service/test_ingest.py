"""The collecting endpoints under a real HTTP server, with the log table in a real PostgreSQL as the bus."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from prometheus_client import REGISTRY

from demo.api import Access, Api, ApiProblem
from demo.shop import Post
from services.ingest.bootstrap import first_sources
from services.ingest.origin import signature_of
from shared.auth import create_key
from shared.clock import SystemClock
from shared.events import EVENTS, HISTORY, decode_event, encode
from tests.support.ingesting import Running, another_server, serving
from tests.support.wait import until


@pytest.fixture
async def dripline(database_url: str) -> AsyncIterator[Running]:
    async with serving(database_url) as running:
        yield running


def added(**more: Any) -> dict[str, Any]:
    return {
        "type": "track",
        "event": "Product Added",
        "anonymousId": "a-77",
        "properties": {"product_id": "p-1"},
        **more,
    }


# ── taking events ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_event_is_durable_when_it_is_answered(dripline: Running) -> None:
    answer = await dripline.post("/v1/track", added(messageId="m-1"), dripline.keys.site_write_key)
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    [event] = await dripline.events()
    assert (event.name, event.trust, event.ids[0].value) == ("Product Added", "public", "a-77")
    assert event.context["ip"] == "127.0.0.1"
    assert datetime.now(UTC) - event.received_at < timedelta(seconds=10)


async def test_every_path_takes_its_kind_of_event(dripline: Running) -> None:
    names = {
        "identify": "Identify",
        "track": "Product Added",
        "page": "Page Viewed",
        "screen": "Screen Viewed",
        "group": "Group",
        "alias": "Alias",
    }
    body = {"event": "Product Added", "userId": "u-1", "previousId": "a-1", "groupId": "g"}
    for call, name in names.items():
        for path in (f"/v1/{call}", f"/v1/{call[0]}", f"/api/s/{call}"):
            assert (await dripline.post(path, {**body, "messageId": path})).status_code == 200
            assert {event.message_id: event.name for event in await dripline.events()}[path] == name


async def test_a_batch_arrives_whole_under_both_paths(dripline: Running) -> None:
    for path in ("/v1/batch", "/v1/b"):
        answer = await dripline.post(path, {"batch": [added(messageId=f"{path}{n}") for n in range(50)]})
        assert answer.json() == {"success": True}
    assert len(await dripline.events()) == 100


async def test_the_key_is_found_wherever_clients_put_it(dripline: Running) -> None:
    key, http = dripline.keys.site_write_key, dripline.http
    body = json.dumps(added()).encode()
    with_key = json.dumps(added(writeKey=key)).encode()
    in_batch = json.dumps({"batch": [added()], "writeKey": key}).encode()
    answers = [
        await http.post("/v1/track", content=body, auth=(key, "")),
        await http.post("/v1/track", content=with_key),
        await http.post("/v1/track", content=with_key, headers={"Authorization": "Bearer nonsense"}),
        await http.post("/v1/batch", content=in_batch),
        await http.post("/api/s/track", content=body, headers={"X-Write-Key": key}),
        # Basic goes before the body, the body before the header.
        await http.post("/v1/track", content=json.dumps(added(writeKey="x")).encode(), auth=(key, "")),
        await http.post("/v1/track", content=with_key, headers={"X-Write-Key": "x"}),
        # Jitsu's client masks the key in the body.
        await http.post(
            "/api/s/track", content=json.dumps(added(writeKey="***")).encode(), headers={"X-Write-Key": key}
        ),
        await http.post("/v1/track", content=with_key, auth=("somebody", "")),
    ]
    assert [answer.status_code for answer in answers] == [200] * 9
    refused = [
        await http.post("/v1/track", content=body),
        await http.post("/v1/track", content=body, auth=("c" + "0" * 24, "")),
        await http.post("/v1/track", content=with_key, auth=("c" + "0" * 24, "")),
        await http.post("/v1/batch", content=json.dumps({"batch": [added()], "writeKey": "nonsense"}).encode()),
    ]
    assert [answer.status_code for answer in refused] == [401] * 4
    assert refused[0].headers["content-type"] == "application/problem+json"
    assert len(await dripline.events()) == 9
    assert await dripline.letters() == []  # what nobody's key sent is only counted


async def test_json_is_read_whatever_it_is_called_and_gzip_is_inflated(dripline: Running) -> None:
    body = json.dumps({"batch": [added()]}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8", "image/png"):
        for content, headers in (
            (body, {}),
            (gzip.compress(body), {"Content-Encoding": "gzip"}),
            (gzip.compress(body), {}),
        ):
            answer = await dripline.post("/v1/batch", content, headers={"Content-Type": kind, **headers})
            assert answer.status_code == 200, answer.text
    assert len(await dripline.events()) == 12
    bad = await dripline.post("/v1/batch", body, headers={"Content-Encoding": "br"})
    assert (bad.status_code, bad.json()["title"]) == (400, "Unknown content encoding")


async def test_browsers_may_ask_before_they_post(dripline: Running) -> None:
    asked = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    for path in ("/v1/t", "/v1/batch", "/api/s/track", "/v1/projects/x/settings"):
        answer = await dripline.http.options(path, headers=asked)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "*"
        allowed = answer.headers["access-control-allow-headers"].split(", ")
        assert set(allowed) >= {"authorization", "content-type", "x-retry-count", "anonymousid", "x-write-key"}
    for answer in (
        await dripline.post("/v1/t", added()),
        await dripline.post("/v1/t", b"x"),
        await dripline.http.post("/v1/t"),
    ):
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_the_settings_give_the_browser_library_its_key_back(dripline: Running) -> None:
    key = dripline.keys.site_write_key
    answer = await dripline.http.get(f"/v1/projects/{key}/settings")
    host = dripline.server.origin.removeprefix("http://")
    integration = answer.json()["integrations"]["Segment.io"]
    assert integration == {"apiKey": key, "apiHost": f"{host}/v1", "protocol": "http"}
    assert answer.headers["access-control-allow-origin"] == "*"
    for wrong in ("c" + "0" * 24, "nonsense", dripline.keys.server_write_key):
        assert (await dripline.http.get(f"/v1/projects/{wrong}/settings")).status_code == 401
    assert (await dripline.http.get("/v1/projects/x/other")).status_code == 404


async def test_other_paths_and_methods_are_not_swallowed(dripline: Running) -> None:
    assert (await dripline.http.get("/v1/track")).status_code == 405
    assert (await dripline.http.get("/v1/sources")).status_code == 401  # the management API answers, not /v1/s
    assert (await dripline.http.post("/v1/tracks")).status_code == 404


async def test_history_has_a_bus_topic_of_its_own(dripline: Running) -> None:
    old = added(timestamp="2011-12-09T12:50:00Z", userId="u", context={"dripline": {"history": True}})
    assert (await dripline.post("/v1/batch", {"batch": [old, added()]})).status_code == 200
    [past], [present] = await dripline.events(HISTORY), await dripline.events()
    assert (past.history, past.occurred_at.year, present.history) == (True, 2011, False)


async def test_a_repeat_has_the_same_id_and_the_bus_keeps_both(dripline: Running) -> None:
    for _ in range(2):
        assert (await dripline.post("/v1/track", added(messageId="m"))).status_code == 200
    one, two = await dripline.events()
    assert (one.id, one.hash) == (two.id, two.hash)


# ── limits and refusals ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_too_large_is_answered_413(dripline: Running) -> None:
    site = dripline.keys.site_write_key
    large = added(properties={"x": "y" * 33 * 1024})
    assert (await dripline.post("/v1/track", large, site)).status_code == 413
    assert (await dripline.post("/v1/batch", {"batch": [large]}, site)).status_code == 413
    assert (await dripline.post("/v1/track", large)).status_code == 200
    assert (await dripline.post("/v1/track", added(properties={"x": "y" * 257 * 1024}))).status_code == 413
    half = added(properties={"x": "y" * 200 * 1024})
    assert (await dripline.post("/v1/batch", {"batch": [half, half]})).status_code == 200
    too_much = json.dumps({"batch": [half, half, half]}).encode()
    for body, headers in ((too_much, {}), (gzip.compress(too_much), {"Content-Encoding": "gzip"})):
        assert (await dripline.post("/v1/batch", body, headers=headers)).status_code == 413
    assert (await dripline.post("/v1/batch", {"batch": [{}] * 2_501})).status_code == 413
    assert (await dripline.post("/v1/batch", {"batch": [added()] * 2_500})).status_code == 200
    assert len(await dripline.events()) == 1 + 2 + 2_500


async def test_a_body_in_pieces_is_stopped_when_it_grows_too_large(dripline: Running) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield b"x" * 10_240

    async def fine() -> AsyncIterator[bytes]:
        for byte in json.dumps(added()):
            yield byte.encode()

    auth = (dripline.keys.server_write_key, "")
    assert (await dripline.http.post("/v1/track", content=fine(), auth=auth)).status_code == 200
    try:
        assert (await dripline.http.post("/v1/track", content=endless(), auth=auth)).status_code == 413
    except httpx.WriteError:
        pass  # the server closed the connection on a client that went on writing


async def test_one_bad_event_does_not_lose_its_neighbours(dripline: Running) -> None:
    bad = added(userId={"not": "an id"}, messageId="bad")
    answer = await dripline.post("/v1/batch", {"batch": [added(messageId="1"), bad, added(messageId="2")]})
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True,
        "refused": 1,
        "errors": [{"pointer": "#/batch/1/userId", "detail": "must be text"}],
    }
    assert [event.message_id for event in await dripline.events()] == ["1", "2"]
    [letter] = await dripline.letters(service="ingest", state="open")
    assert (letter["reason"], letter["pointer"], json.loads(letter["body"])) == ("must be text", "/userId", bad)


async def test_one_bad_event_alone_is_answered_400_and_kept(dripline: Running) -> None:
    for path, body in (("/v1/track", added(event="Email Sent")), ("/v1/batch", {"batch": [added(timestamp="never")]})):
        answer = await dripline.post(path, body)
        assert answer.status_code == 400
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["errors"][0]["pointer"] in ("#/event", "#/batch/0/timestamp")
    not_json = await dripline.post("/v1/track", b'{"event": "X", "userId": \xff}')
    assert not_json.status_code == 400
    letters = await dripline.letters()
    assert [letter["pointer"] for letter in letters] == ["", "/timestamp", "/event"]
    assert letters[0]["body"] is None and letters[0]["body_base64"]
    assert (await dripline.post("/v1/batch", {"batch": []})).status_code == 400
    assert await dripline.events() == []


async def test_too_many_bytes_at_once_are_answered_429(database_url: str) -> None:
    async with serving(database_url, max_bytes_in_flight=1 << 20) as dripline:
        go_on = asyncio.Event()

        async def slow(body: bytes) -> AsyncIterator[bytes]:
            yield body[:-10]
            await go_on.wait()
            yield body[-10:]

        auth = (dripline.keys.server_write_key, "")
        large = json.dumps({"batch": [added(properties={"x": "y" * 240_000})] * 2}).encode()
        waiting = [
            asyncio.create_task(dripline.http.post("/v1/batch", content=slow(large), auth=auth)) for _ in range(2)
        ]
        await until(
            lambda: REGISTRY.get_sample_value("dripline_ingest_bytes_in_flight") == 2 * (len(large) - 10),
            what="the server has read two large bodies but for their ends",
        )
        answer = await dripline.post("/v1/batch", large)
        assert (answer.status_code, answer.headers.get("retry-after")) == (429, "1")
        go_on.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert (await dripline.post("/v1/batch", large)).status_code == 200


def behind(address: str) -> dict[str, str]:
    """As the reverse proxy says whom it speaks for."""
    return {"X-Forwarded-For": address}


async def test_stalled_bodies_without_a_key_stop_their_own_network_only(database_url: str) -> None:
    limits = {"max_bytes_in_flight": 64 << 20, "network_bytes_in_flight": 1 << 20}
    async with serving(database_url, **limits) as dripline:
        go_on = asyncio.Event()

        async def stalled() -> AsyncIterator[bytes]:
            yield b" " * 400 * 1024
            await go_on.wait()

        def stall(number: int) -> asyncio.Task[httpx.Response]:
            address = behind(f"203.0.113.{number}")
            return asyncio.create_task(dripline.http.post("/v1/batch", content=stalled(), headers=address))

        waiting = [stall(number) for number in range(2)]
        await until(
            lambda: REGISTRY.get_sample_value("dripline_ingest_bytes_in_flight") == 800 * 1024,
            what="the server has read what is there of both",
        )
        site = (dripline.keys.site_write_key, "")
        large = json.dumps({"batch": [added(properties={"x": "y" * 30_000})] * 10}).encode()
        answers = {
            "same": await dripline.http.post("/v1/batch", content=large, auth=site, headers=behind("203.0.113.99")),
            "other": await dripline.http.post("/v1/batch", content=large, auth=site, headers=behind("198.51.100.1")),
            "secret": await dripline.post("/v1/batch", large, headers=behind("203.0.113.99")),
        }
        assert {who: answer.status_code for who, answer in answers.items()} == {
            "same": 429,
            "other": 200,
            "secret": 200,
        }
        assert answers["same"].headers["retry-after"] == "1"
        assert "of your network" in answers["same"].json()["detail"]
        go_on.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [400, 400]
        assert REGISTRY.get_sample_value("dripline_ingest_bytes_in_flight") == 0


async def test_a_public_key_is_good_for_so_many_events_of_one_network_and_a_secret_one_for_more(
    database_url: str,
) -> None:
    async with serving(database_url, network_events_per_second=1) as dripline:
        site, batch = (dripline.keys.site_write_key, ""), {"batch": [added()] * 1_250}

        async def post(address: str) -> httpx.Response:
            return await dripline.http.post("/v1/batch", json=batch, auth=site, headers=behind(address))

        answers = [await post("203.0.113.7") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 1_200 < int(answers[2].headers["retry-after"]) <= 1_250
        assert answers[2].json()["detail"].startswith("This network posts more events")
        assert (await post("203.0.113.8")).status_code == 429, "a neighbour of the same network"
        assert (await post("198.51.100.1")).status_code == 200
        for _ in range(3):
            assert (await dripline.post("/v1/batch", batch, headers=behind("203.0.113.7"))).status_code == 200
        assert len(await dripline.events()) == 6 * 1_250


async def test_a_flood_of_refused_public_events_is_slowed_down(dripline: Running) -> None:
    rubbish = {"batch": [{"type": "track", "event": "Email Sent", "anonymousId": "a", "x": "y" * 31_000}] * 15}
    statuses = set()
    for _ in range(80):
        answer = await dripline.post("/v1/batch", rubbish, dripline.keys.site_write_key)
        statuses.add(answer.status_code)
        if answer.status_code == 429:
            break
    assert statuses == {400, 429}
    assert answer.headers["retry-after"] == "30"
    # A good event of the same source is not concerned.
    assert (await dripline.post("/v1/track", added(), dripline.keys.site_write_key)).status_code == 200
    async with dripline.server.context.database.connection() as connection:
        # The same bytes again and again are one letter.
        assert await connection.fetchval("SELECT count(*) FROM platform.dead_letter") == 1


# ── sources and keys ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_sources_are_made_listed_rotated_and_revoked(dripline: Running) -> None:
    http, owner = dripline.http, dripline.owner
    made = await http.post("/v1/sources", json={"name": "till-1", "kind": "secret"}, headers=owner)
    assert made.status_code == 201
    source = made.json()
    assert (source["kind"], source["signing_secret"], source["keys"][0]["key"]) == ("secret", None, None)
    first = source["write_key"]
    assert len(first) == 25 and first[0] == "c"
    assert (await dripline.post("/v1/track", added(), first)).status_code == 200

    taken = await http.post("/v1/sources", json={"name": "till-1", "kind": "public"}, headers=owner)
    assert taken.status_code == 409
    listed = (await http.get("/v1/sources", headers=owner, params={"limit": 2})).json()
    assert [item["name"] for item in listed["items"]] == ["server", "site"]
    rest = (await http.get("/v1/sources", headers=owner, params={"limit": 2, "cursor": listed["next"]})).json()
    assert ([item["name"] for item in rest["items"]], rest["next"]) == (["till-1"], None)

    rotated = await http.post("/v1/sources/till-1/keys", json={"overlap": "1h"}, headers=owner)
    second = rotated.json()["write_key"]
    assert [(await dripline.post("/v1/track", added(), key)).status_code for key in (first, second)] == [200, 200]
    third = (await http.post(f"/v1/sources/{source['id']}/keys", json={"overlap": "0s"}, headers=owner)).json()[
        "write_key"
    ]
    assert [(await dripline.post("/v1/track", added(), key)).status_code for key in (first, second, third)] == [
        401,
        401,
        200,
    ]

    keys = (await http.get("/v1/sources/till-1", headers=owner)).json()["keys"]
    assert (await http.post(f"/v1/sources/till-1/keys/{keys[-1]['id']}/revoke", headers=owner)).status_code == 200
    assert (await dripline.post("/v1/track", added(), third)).status_code == 401
    assert (await http.post("/v1/sources/site/revoke", headers=owner)).json()["revoked_at"]
    assert (await dripline.post("/v1/track", added(), dripline.keys.site_write_key)).status_code == 401
    assert (await http.post("/v1/sources/site/keys", headers=owner)).status_code == 409
    assert (await http.get("/v1/sources/nobody", headers=owner)).status_code == 404
    async with dripline.server.context.database.connection() as connection:
        actions = await connection.fetch(
            "SELECT action FROM platform.change_log WHERE principal <> 'first start' ORDER BY at, id"
        )
    assert [row["action"] for row in actions] == [
        "source.create", "source.rotate", "source.rotate", "source.revoke_key", "source.revoke",
    ]  # fmt: skip


async def test_managing_sources_needs_the_scope_admin(dripline: Running) -> None:
    async with dripline.server.context.database.transaction() as tx:
        _, reader = await create_key(tx, "reader", "marketing", SystemClock().now())
    headers = {"Authorization": f"Bearer {reader}"}
    assert (await dripline.http.get("/v1/sources", headers=headers)).status_code == 403
    assert (await dripline.http.get("/v1/dead-letters", headers=headers)).status_code == 200


async def test_a_signature_counts_with_the_present_and_for_a_while_with_the_former_secret(dripline: Running) -> None:
    http, owner = dripline.http, dripline.owner
    made = (await http.post("/v1/sources", json={"name": "shop", "kind": "signed"}, headers=owner)).json()
    key, first = made["write_key"], made["signing_secret"]
    assert made["kind"] == "signed"

    async def trust_with(secret: str) -> str:
        context = {"dripline": {"signature": signature_of("u-9", secret)}}
        assert (
            await dripline.post("/v1/identify", {"userId": "u-9", "anonymousId": "a", "context": context}, key)
        ).status_code == 200
        return (await dripline.events())[-1].trust

    assert await trust_with(first) == "signed"
    second = (await http.post("/v1/sources/shop/signing-secret", json={"overlap": "1h"}, headers=owner)).json()[
        "signing_secret"
    ]
    assert [await trust_with(secret) for secret in (first, second, "other")] == ["signed", "signed", "public"]
    third = (await http.post("/v1/sources/shop/signing-secret", json={"overlap": "0s"}, headers=owner)).json()[
        "signing_secret"
    ]
    assert [await trust_with(secret) for secret in (second, third)] == ["public", "signed"]
    refused = await http.post("/v1/sources/server/signing-secret", headers=owner)
    assert refused.status_code == 409


async def test_a_key_made_or_revoked_in_one_process_counts_in_the_other_at_once(database_url: str) -> None:
    async with serving(database_url) as one, another_server(database_url, one) as other:
        made = (await one.http.post("/v1/sources", json={"name": "till", "kind": "secret"}, headers=one.owner)).json()
        assert (await other.post("/v1/track", added(), made["write_key"])).status_code == 200
        await one.http.post("/v1/sources/till/revoke", headers=one.owner)

        async def refused() -> bool:
            return (await other.post("/v1/track", added(), made["write_key"])).status_code == 401

        await until(refused, limit=2, what="the other process knows of the revocation")


async def test_only_the_first_start_makes_sources(dripline: Running) -> None:
    context = dripline.server.context
    assert await first_sources(context.database, context.clock, context.bits) is None


async def test_two_first_starts_at_once_make_one_pair_of_sources(dripline: Running) -> None:
    context = dripline.server.context
    async with context.database.connection() as connection:
        await connection.execute("DELETE FROM ingest.write_key; DELETE FROM ingest.source")
    made = await asyncio.gather(*(first_sources(context.database, context.clock, context.bits) for _ in range(3)))
    assert sorted(credentials is None for credentials in made) == [False, True, True]


# ── dead letters ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_refused_event_is_mended_and_taken_again(dripline: Running) -> None:
    bad = added(messageId="m-1", timestamp="2026-11-2310:00", userId="u-1")
    batch = {"batch": [bad, added()], "context": {"device": {"token": "t-1"}}, "sentAt": "2020-01-01T00:00:00Z"}
    assert (await dripline.post("/v1/batch", batch)).status_code == 200
    [letter] = await dripline.letters()
    still = await dripline.replay(letter)
    assert (still.status_code, still.json()["errors"][0]["pointer"]) == (422, "#/timestamp")
    assert (await dripline.letters())[0]["state"] == "open"

    moment = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    mended = await dripline.replay(letter, {**bad, "timestamp": moment})
    assert (mended.status_code, mended.json()["accepted"]) == (200, 1), mended.text
    event = next(event for event in await dripline.events() if event.message_id == "m-1")
    assert event.occurred_at == datetime.fromisoformat(moment)
    assert event.received_at == datetime.fromisoformat(letter["at"])
    assert [one.kind for one in event.ids] == [
        "user_id",
        "device_token",
        "anonymous_id",
    ]  # the batch's context is there
    [after] = await dripline.letters(state="replayed")
    assert after["replayed_at"]
    assert (await dripline.replay(letter)).status_code == 409


async def test_a_whole_body_that_was_refused_is_mended_and_taken_again(dripline: Running) -> None:
    whole = b'{"batch": [{"type":"track","event":"X","userId":"u"}], "context": {"x": "\\u0000"}}'
    assert (await dripline.post("/v1/batch", whole)).status_code == 400
    [letter] = await dripline.letters()
    assert (letter["pointer"], letter["body"].encode()) == ("/context/x", whole)
    good = {"type": "track", "event": "X", "userId": "u"}
    answer = await dripline.replay(letter, {"batch": [good, {**good, "event": None}]})
    assert answer.json() | {"id": None} == {"id": None, "state": "replayed", "accepted": 1, "refused": 1}
    assert [event.name for event in await dripline.events()] == ["X"]
    [again] = await dripline.letters(state="open")
    assert again["pointer"] == "/event"


class LeavesLettersOpen:
    """As after a crash between the append and the closing of the letter: it is open again, the events are durable."""

    def __init__(self, dripline: Running) -> None:
        self._dripline = dripline

    async def replay(self, letter: dict[str, Any], **how: Any) -> None:
        at = f"/v1/dead-letters/{letter['id']}/replay"
        answer = await self._dripline.http.post(at, json=how, headers=self._dripline.owner)
        assert answer.status_code == 200, answer.text
        async with self._dripline.server.context.database.connection() as connection:
            await connection.execute("UPDATE platform.dead_letter SET state = 'open' WHERE id = $1", UUID(letter["id"]))


async def test_a_letter_that_says_neither_id_nor_time_is_one_event_however_often_it_is_replayed(
    dripline: Running,
) -> None:
    good = {"type": "track", "event": "X", "userId": "u"}
    crashing = LeavesLettersOpen(dripline)

    assert (await dripline.post("/v1/track", {**good, "event": "", "n": 1})).status_code == 400
    [alone] = await dripline.letters()
    await crashing.replay(alone, patch=[{"op": "replace", "path": "/event", "value": "X"}])
    await crashing.replay(alone, patch={"event": "Another patch"})
    assert len({event.id for event in await dripline.events()}) == 1
    await crashing.replay(alone, body={**good, "messageId": "m"})
    assert len({event.id for event in await dripline.events()}) == 2, "an id of its own is what counts"

    whole = b'{"batch": [{"type":"track","event":"X","userId":"u"}], "context": {"x": "\\u0000"}}'
    assert (await dripline.post("/v1/batch", whole)).status_code == 400
    [batch] = [letter for letter in await dripline.letters() if letter["pointer"] == "/context/x"]
    for _ in range(2):
        await crashing.replay(batch, body={"batch": [good, good]})
    assert len({event.id for event in await dripline.events()}) == 4, "two alike in a batch are two events"


async def test_the_same_bytes_refused_anew_after_a_replay_are_an_event_of_their_own(dripline: Running) -> None:
    bad = {"type": "track", "event": "", "userId": "u"}
    for _ in range(2):
        assert (await dripline.post("/v1/track", bad)).status_code == 400
        [letter] = await dripline.letters(state="open")
        assert (await dripline.replay(letter, {**bad, "event": "X"})).status_code == 200
    assert len({event.id for event in await dripline.events()}) == 2


async def test_a_letter_is_discarded_and_pages_go_back_in_time(dripline: Running) -> None:
    for number in range(5):
        await dripline.post("/v1/track", added(event="", n=number))
    first = (await dripline.http.get("/v1/dead-letters", headers=dripline.owner, params={"limit": 3})).json()
    rest = await dripline.http.get(
        "/v1/dead-letters", headers=dripline.owner, params={"limit": 3, "cursor": first["next"]}
    )
    seen = [json.loads(item["body"])["n"] for item in [*first["items"], *rest.json()["items"]]]
    assert (seen, rest.json()["next"]) == ([4, 3, 2, 1, 0], None)
    letter = first["items"][0]
    discarded = await dripline.http.post(f"/v1/dead-letters/{letter['id']}/discard", headers=dripline.owner)
    assert discarded.json()["state"] == "discarded"
    assert (await dripline.replay(letter)).status_code == 409
    assert len(await dripline.letters(state="open")) == 4
    bad_cursor = await dripline.http.get("/v1/dead-letters", headers=dripline.owner, params={"cursor": "x"})
    assert bad_cursor.status_code == 400


async def test_a_consumers_dead_letter_goes_to_its_bus_topic_again(dripline: Running) -> None:
    await dripline.post("/v1/track", added(messageId="m"))
    [event] = await dripline.events()
    value = json.dumps({"broken": True}).encode()
    async with dripline.server.context.database.connection() as connection:
        await connection.execute(
            """
            INSERT INTO platform.dead_letter (id, service, topic, partition, number, epoch, reason, key, bytes, headers, at)
            VALUES ($1, 'profile', 'events', 1, 7, 'e', 'broken', $2, $3, $4, now())
            """,
            event.id,
            str(event.origin).encode(),
            value,
            {"ce_id": str(event.id), "outbox": "free/3,7,0"},
        )
    [letter] = await dripline.letters(service="profile")
    mended = json.loads(encode(event))
    assert (await dripline.replay(letter, mended)).json()["accepted"] == 1
    bus = dripline.server.context.bus
    records = [
        r for batch in (await bus.fetch(EVENTS, await bus.beginnings(EVENTS), limit=10, wait=0)).values() for r in batch
    ]
    again = [record for record in records if record.headers.get("ce_id") == str(event.id).encode()]
    assert [decode_event(record.value) for record in again] == [event, event]
    assert set(again[1].headers) == {"ce_id"}  # without the header by which a reader would drop it as seen


# ── without the database ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_without_the_database_events_are_answered_503_and_afterwards_200(own_postgres: Any) -> None:
    from services.migrate import migrate

    await migrate(own_postgres.url)
    async with serving(own_postgres.url) as dripline:
        assert (await dripline.post("/v1/track", added(messageId="1"))).status_code == 200
        own_postgres.stop()
        for body in (added(messageId="2"), added(event="Email Sent")):
            answer = await dripline.post("/v1/track", body)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
        unknown = await dripline.post("/v1/track", added(), "c" + "0" * 24)
        assert (
            unknown.status_code == 503
        )  # it may have been made a moment ago: a 401 would make the client drop its events
        own_postgres.start()

        async def works() -> bool:
            try:
                return (await dripline.post("/v1/track", added(messageId="2"))).status_code == 200
            except httpx.TransportError:
                return False  # this process started the server itself and let an idle connection time out meanwhile

        await until(works, limit=60, what="events are taken again")
        assert {event.message_id for event in await dripline.events()} == {"1", "2"}


# ── a real client ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("zipped", [False, True])
async def test_segments_python_library_delivers_by_changing_the_host(dripline: Running, zipped: bool) -> None:
    from segment.analytics.client import Client

    problems: list[Exception] = []

    def deliver() -> None:
        client = Client(
            dripline.keys.server_write_key,
            host=dripline.server.origin,
            gzip=zipped,
            on_error=lambda problem, batch: problems.append(problem),
            upload_interval=0.05,
        )
        client.identify("u-9", {"email": "anna@example.com", "card": "c-5"})
        client.track("u-9", "Product Added", {"product_id": "p-1", "price": 1500.5})
        client.track(None, "Order Completed", {"order_id": "A-1"}, anonymous_id="a-1", timestamp=datetime.now(UTC))
        client.page("u-9", "Catalogue", "Vinyl", {"url": "https://shop.example/"})
        client.screen("u-9", "App", "Home")
        client.group("u-9", "g-1", {"name": "Firm"})
        client.alias("a-1", "u-9")
        client.shutdown()

    await asyncio.to_thread(deliver)
    assert problems == []
    events = await dripline.events()
    assert sorted(event.name for event in events) == sorted(
        ["Identify", "Product Added", "Order Completed", "Page Viewed", "Screen Viewed", "Group", "Alias"]
    )
    by_name = {event.name: event for event in events}
    assert [one.kind for one in by_name["Identify"].ids] == ["user_id", "card", "email"]
    assert by_name["Product Added"].properties == {"product_id": "p-1", "price": 1500.5}


async def test_what_stands_in_the_table_of_keys_opens_nothing(dripline: Running, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch(
        "SELECT k.hint, k.key, s.name FROM ingest.write_key k JOIN ingest.source s ON s.id = k.source"
    )
    await connection.close()
    stored = {row["name"]: (row["hint"], row["key"]) for row in rows}
    secret = dripline.keys.server_write_key
    assert stored["server"] == (f"{secret[:4]}…{secret[-3:]}", None)
    assert stored["site"][1] == dripline.keys.site_write_key


async def test_the_demonstration_stops_when_one_of_its_events_is_refused(dripline: Running) -> None:
    """Among good ones it comes with a 200, and the shop's life would go on without it."""
    keys = dripline.keys
    api = Api(Access(dripline.server.origin, keys.site_write_key, keys.server_write_key, "unused"))
    post = Post(datetime.now(UTC), "server", [added(), added(timestamp="yesterday"), added()])
    try:
        await asyncio.to_thread(api.post, post._replace(events=[added()]))
        with pytest.raises(ApiProblem, match=r"1 of 3 events were refused, the first at #/batch/1/timestamp: "):
            await asyncio.to_thread(api.post, post)
    finally:
        api.close()
