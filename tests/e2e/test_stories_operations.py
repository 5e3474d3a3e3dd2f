"""Stories of those who run it: what could not be taken is seen, mended and taken after all; pages that a person looks at."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.shop import Person, Shop, identify, track
from tests.support.wait import until

pytestmark = pytest.mark.timeout(180)


async def test_one_bad_event_among_good_ones_is_kept_seen_and_taken_when_it_is_mended(shop: Shop) -> None:
    leonid = Person("Leonid")
    good, bad, other = (
        {**identify(leonid), "messageId": "leonid-1"},
        {**track(leonid, "Product Added", product_id="p-9"), "messageId": "leonid-2", "timestamp": "yesterday"},
        {**track(leonid, "Product Viewed", product_id="p-1"), "messageId": "leonid-3"},
    )
    answer = await shop.post_batch([good, bad, other])
    assert (answer.status_code, answer.json()["refused"]) == (200, 1)
    assert answer.json()["errors"][0]["pointer"] == "#/batch/1/timestamp"
    profile = (await shop.known(user_id=leonid.user_id))["id"]
    await shop.heard(profile, "Product Viewed")
    assert await shop.timeline_names(profile) == {"Identify", "Product Viewed"}

    letter = await dead_letter(shop, "leonid-2")
    assert (letter["service"], letter["pointer"]) == ("ingest", "/timestamp")
    assert letter["reason"] == "is no ISO 8601 time between the years 1970 and 9999"
    assert letter["body"] == json.dumps(bad, separators=(",", ":")), "the original bytes"

    mended = {name: value for name, value in bad.items() if name != "timestamp"}
    replayed = await shop.post(f"/v1/dead-letters/{letter['id']}/replay", {"body": mended})
    assert (replayed["state"], replayed["accepted"]) == ("replayed", 1)
    await shop.heard(profile, "Product Added")


async def test_an_order_in_another_currency_is_kept_and_counts_when_it_is_mended(shop: Shop) -> None:
    maria = Person("Maria")
    order = {"order_id": "o-maria", "total": 2400, "currency": "USD"}
    await shop.tell(identify(maria), track(maria, "Order Completed", **order), track(maria, "Product Viewed"))
    profile = (await shop.known(user_id=maria.user_id))["id"]
    await shop.heard(profile, "Product Viewed")
    assert (await shop.known(user_id=maria.user_id))["figures"]["orders"] == 0

    letter = await dead_letter(shop, "o-maria")
    assert (letter["service"], letter["pointer"]) == ("profile", "/properties/currency")
    assert letter["reason"] == "the amounts are in 'USD', this deployment's currency is RUB"
    record = json.loads(letter["body"])
    assert record["properties"] == order

    record["properties"]["currency"] = "RUB"
    await shop.post(f"/v1/dead-letters/{letter['id']}/replay", {"body": record})
    await shop.heard(profile, "Order Completed")
    figures = (await shop.known(user_id=maria.user_id))["figures"]
    assert (figures["orders"], figures["total"]) == (1, 2400)
    again = await shop.call("POST", f"/v1/dead-letters/{letter['id']}/replay", headers=shop.bearer)
    assert again.status_code == 409, "a letter is taken once"


async def dead_letter(shop: Shop, words: str) -> dict[str, Any]:
    """Waits for the open dead letter in whose bytes these words stand, and reads it whole."""

    async def there() -> list[dict[str, Any]]:
        return [one for one in await shop.all("/v1/dead-letters", state="open") if words in (one["body"] or "")]

    [letter] = await until(there, 30, f"a dead letter has {words}", every=0.1)
    found: dict[str, Any] = await shop.get(f"/v1/dead-letters/{letter['id']}")
    return found


async def test_a_bad_event_alone_is_refused_with_a_pointer_to_the_field(shop: Shop) -> None:
    answer = await shop.post_batch([{"type": "track", "userId": "u-leonid"}])
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    [error] = answer.json()["errors"]
    assert (error["pointer"], error["detail"]) == ("#/batch/0/event", "a track event needs its name")


async def test_every_service_says_that_it_is_alive_ready_and_of_one_version(shop: Shop) -> None:
    versions = set()
    for service in shop.urls:
        assert (await shop.call("GET", f"/{service}/livez")).json() == {"live": True}
        ready = (await shop.call("GET", f"/{service}/readyz")).json()
        assert (ready["ready"], ready["failing"]) == (True, {})
        for warning in ready.get("warnings", []):  # one broker keeps one copy, and readyz says so
            assert "replica" in warning
        assert "dripline_" in (await shop.call("GET", f"/{service}/metrics")).text
        versions.add((await shop.call("GET", f"/{service}/version")).json()["version"])
    assert len(versions) == 1


async def test_the_inbox_shows_the_letter_and_why_it_was_sent_to_who_has_a_key(shop: Shop) -> None:
    nina = Person("Nina")
    await shop.tell(identify(nina), track(nina, "Order Ready", order_id="o-nina"))
    await shop.letters(nina)
    profile = (await shop.known(user_id=nina.user_id))["id"]
    [message] = await shop.settled("order-ready", profile)

    closed = await shop.call("GET", "/inbox")
    assert closed.status_code == 401, "letters leave the machine here: not everybody on it may read them"
    listed = await shop.call("GET", "/inbox", headers=shop.bearer)
    assert f"/inbox/{message['id']}" in listed.text
    shown = (await shop.call("GET", f"/inbox/{message['id']}", headers=shop.bearer)).text
    assert "Your order o-nina is ready" in shown
    assert "order-ready" in shown, "the rule that wanted it"
    letter = await shop.call("GET", f"/inbox/{message['id']}/letter", headers=shop.bearer)
    assert "Order o-nina waits for you." in letter.text
    assert "<script" not in letter.text
