"""The installed, unmodified clients: what they send takes effect once and whole, however the line behaves."""

from __future__ import annotations

import re

import pytest

from tests.clients.effects import WHOLE, Told, said, viewed
from tests.clients.line import Line
from tests.clients.programs import ALL, CHROMIUM, JITSU, JSDOM, SERVERS, Call, Client, started
from tests.support.shop import Shop
from tests.support.wait import until

PATIENCE = 60.0  # seconds; the browser's library doubles its pauses, and takes its time between them


def name_of(*parts: object) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(map(str, parts)).lower())


async def tell(client: Client, line: Line, key: str, calls: list[Call], **more: str) -> str:
    """Starts the client and waits until it is through: until its end or, of a page, until everything was accepted."""
    async with started(client, line.url, key, calls, **more) as running:
        if not client.stays:
            return await running.ended()
        await until(lambda: len(line.accepted()) >= len(calls), PATIENCE, f"{client} has sent everything", every=0.05)
        return ""


@pytest.mark.parametrize("client", ALL, ids=str)
async def test_what_a_client_says_arrives_once_and_whole(client: Client, shop: Shop, line: Line) -> None:
    told = Told(shop, client, name_of(client, "whole"))
    user = told.who.get("userId", f"u-{name_of(client)}")
    calls: list[Call] = [
        {"call": "identify", "userId": user, **told.who, "traits": {"city": "Пермь", "visits": 3}},
        viewed(1, told.who),
        {"call": "page", "name": "Catalogue", **told.who, "properties": {"number": 2, "section": "чай"}},
        {"call": "screen", "name": "Basket", **told.who, "properties": {"number": 3}},
        {"call": "group", "groupId": "g-1", **told.who, "traits": {"plan": "wholesale"}},
        {"call": "alias", "userId": user, "previousId": f"old-{name_of(client)}"},
    ]
    calls = [call for call in calls if call["call"] in client.calls]
    line.begin()
    await tell(client, line, told.key, calls)

    posts = line.requests("POST")
    assert {post.answered for post in posts} == {200}
    assert {post.headers.get("content-encoding") for post in posts} == {"gzip" if client.gzip else None}
    events = await told.events()
    assert sorted(event["type"] for event in events) == sorted(call["call"] for call in calls)
    [properties] = said(events)
    assert properties == {**properties, **WHOLE}
    [identified] = [event for event in events if event["type"] == "identify"]
    assert identified["traits"] == {**identified["traits"], "city": "Пермь", "visits": 3}
    [page] = said(events, "page")
    assert page == {**page, "name": "Catalogue", "section": "чай"}
    [group] = said(events, "group")
    assert group == {**group, "group_id": "g-1", "plan": "wholesale"}


@pytest.mark.parametrize("client", ALL, ids=str)
async def test_an_event_takes_effect_once_after_503_and_429_and_a_cut_connection(
    client: Client, shop: Shop, line: Line
) -> None:
    told = Told(shop, client, name_of(client, "faults"))
    line.begin("503", "429:1", "cut")
    await tell(client, line, told.key, [viewed(1, told.who)])

    posts = line.requests("POST")
    assert [post.answered for post in posts] == [503, 429, None, 200]
    assert [post.upstream for post in posts] == [None, None, 200, 200], "after the cut the event was written twice"
    assert len({tuple(post.message_ids) for post in posts}) == 1, "a repeat is known by its id"
    if client.heeds:
        assert posts[2].at - posts[1].at > 0.9, "the client waits as long as Retry-After says"
    [properties] = said(await told.events())
    assert properties == {**properties, **WHOLE, "number": 1}


@pytest.mark.parametrize("client", SERVERS, ids=str)
async def test_events_come_in_batches_and_a_bad_one_harms_no_neighbour(client: Client, shop: Shop, line: Line) -> None:
    told = Told(shop, client, name_of(client, "many"))
    bad = {"call": "track", "event": "Email Sent", **told.who, "properties": {"number": 99}}
    count = 45
    line.begin()
    await tell(client, line, told.key, [*(viewed(number, told.who) for number in range(count)), bad])

    posts = line.requests("POST")
    assert {post.path for post in posts} == {"/v1/batch"}
    sizes = [len(post.message_ids) for post in posts]
    assert sum(sizes) == count + 1
    assert max(sizes) >= 10, "events go together"
    assert [properties["number"] for properties in said(await told.events())] == list(range(count))
    letters = [letter for letter in await shop.all("/v1/dead-letters") if told.who["userId"] in (letter["body"] or "")]
    assert ["'Email Sent' is a name of the product's own" in letter["reason"] for letter in letters] == [True]


@pytest.mark.parametrize("client", SERVERS, ids=str)
async def test_what_is_refused_is_not_sent_again(client: Client, shop: Shop, line: Line) -> None:
    """400: trying again could not help. RudderStack's library for Python knows it only by the answer's members."""
    told = Told(shop, client, name_of(client, "refused"))
    bad = {"call": "track", "event": "Email Sent", **told.who, "properties": {}}
    line.begin()
    async with started(client, line.url, told.key, [bad]) as running:
        await running.gone()
    assert [post.answered for post in line.requests("POST")] == [400]


@pytest.mark.parametrize("client", [JSDOM, CHROMIUM], ids=str)
async def test_a_browser_asks_first_and_is_let_in(client: Client, shop: Shop, line: Line) -> None:
    """The page is of another origin, and the library sends Authorization: a preflight comes before the event."""
    told = Told(shop, client, name_of(client, "preflight"))
    line.begin()
    await tell(client, line, told.key, [viewed(1, told.who)])

    [settings] = [request for request in line.requests() if request.path.startswith("/v1/projects/")]
    assert (settings.method, settings.answered) == ("GET", 200)
    [preflight] = line.requests("OPTIONS")
    assert "authorization" in preflight.headers["access-control-request-headers"].lower()
    assert (preflight.path, preflight.answered) == ("/v1/t", 204)
    [event] = line.requests("POST")
    assert (event.path, event.answered) == ("/v1/t", 200)
    assert event.headers["content-type"].startswith("text/plain")


async def test_a_website_may_send_batches(shop: Shop, line: Line) -> None:
    told = Told(shop, JSDOM, "website-batches")
    calls = [viewed(number, told.who) for number in range(12)]
    line.begin()
    async with started(JSDOM, line.url, told.key, calls, {"batching": True}):
        await until(lambda: len(line.accepted()) >= len(calls), PATIENCE, "the page has sent everything", every=0.05)
    assert {post.path for post in line.requests("POST")} == {"/v1/b"}
    assert [properties["number"] for properties in said(await told.events())] == list(range(12))


async def test_jitsu_alone_gives_an_event_up(shop: Shop, line: Line) -> None:
    """Why its page in the docs gives it a fetch that tries again."""
    told = Told(shop, JITSU, "jitsu-bare")
    line.begin("503")
    errors = await tell(JITSU, line, told.key, [viewed(1, told.who), viewed(2, told.who)], BARE="1")
    assert [post.answered for post in line.requests("POST")] == [503, 200]
    assert "503" in errors
    assert [properties["number"] for properties in said(await told.events())] == [2]
