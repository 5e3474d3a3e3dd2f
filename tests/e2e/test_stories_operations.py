"""Stories of those who run it: what could not be taken is seen, mended and taken after all; pages that a person looks at."""

from __future__ import annotations

import json

import pytest

from tests.support.shop import Person, Shop, identify, track

pytestmark = pytest.mark.timeout(180)


async def test_one_bad_event_among_good_ones_is_kept_seen_and_taken_when_it_is_mended(shop: Shop):
    leonid = Person("Leonid")
    good, bad, other = (
        {**identify(leonid), "messageId": "leonid-1"},
        {**track(leonid, "Order Completed", order_id="o-leonid", total="a lot"), "messageId": "leonid-2"},
        {**track(leonid, "Product Viewed", product_id="p-1"), "messageId": "leonid-3"},
    )
    answer = await shop.post_batch([good, bad, other])
    assert answer.status_code == 200, answer.text
    profile = (await shop.known(user_id=leonid.user_id))["id"]
    await shop.heard(profile, "Product Viewed")
    assert await shop.timeline_names(profile) == {"identify", "Product Viewed"}

    [letter] = [one for one in await shop.all("/v1/dead-letters", state="open") if "leonid-2" in (one["body"] or "")]
    whole = await shop.get(f"/v1/dead-letters/{letter['id']}")
    assert json.loads(whole["body"]) == bad, "the original bytes"
    assert whole["pointer"] == "/properties/total"
    assert whole["reason"]

    mended = {**bad, "properties": {**bad["properties"], "total": 2400}}
    replayed = await shop.post(f"/v1/dead-letters/{letter['id']}/replay", {"body": mended})
    assert (replayed["state"], replayed["accepted"]) == ("replayed", 1)
    await shop.heard(profile, "Order Completed")
    figures = (await shop.known(user_id=leonid.user_id))["figures"]
    assert (figures["orders"], figures["total"]) == (1, 2400)
    assert (await shop.get(f"/v1/dead-letters/{letter['id']}"))["state"] == "replayed"


async def test_a_bad_event_alone_is_refused_with_a_pointer_to_the_field(shop: Shop):
    answer = await shop.post_batch([track(Person("Leonid"), "Order Completed", order_id="o-1", total="a lot")])
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    [error] = answer.json()["errors"]
    assert error["pointer"].endswith("/properties/total")


async def test_every_service_says_that_it_is_alive_ready_and_of_one_version(shop: Shop):
    versions = set()
    for service in shop.urls:
        assert (await shop.call("GET", f"/{service}/livez")).json() == {"live": True}
        assert (await shop.call("GET", f"/{service}/readyz")).json() == {"ready": True, "failing": {}}
        assert "dripline_" in (await shop.call("GET", f"/{service}/metrics")).text
        versions.add((await shop.call("GET", f"/{service}/version")).json()["version"])
    assert len(versions) == 1
