"""What really comes to a shop: a till that was offline, a nightly file, an app, a website whose visitors are vouched for."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.clients.effects import Told, said, viewed
from tests.clients.line import ROOT, Line
from tests.clients.programs import JSDOM, RUDDER_NODE, SEGMENT_NODE, SEGMENT_PYTHON, Call, started
from tests.faults.deployment import Deployment
from tests.support.shop import Shop
from tests.support.wait import until

YESTERDAY = (datetime.now(UTC) - timedelta(hours=26)).replace(microsecond=0)
THANKS = """\
name: thanks-for-the-order
title: A word of thanks to whoever ordered
kind: marketing
enter: {on: [Order Completed]}
again: always
steps:
  - wait: 1s
"""


async def run(shop: Shop, line: Line, client: Any, key: str, calls: list[Call], *orders: str) -> None:
    line.begin(*orders)
    async with started(client, line.url, key, calls) as running:
        await running.ended()


def receipt(number: int, user: str) -> Call:
    """An order at the till, as the till wrote it down at its own time."""
    return {
        "call": "track",
        "event": "Order Completed",
        "userId": user,
        "messageId": f"shop7-till2-{number}",
        "timestamp": (YESTERDAY + timedelta(minutes=7 * number)).isoformat(),
        "properties": {
            "channel": "pos",
            "store_id": "shop7",
            "terminal_id": "till2",
            "receipt_id": str(number),
            "total": 100 + number,
            "products": [{"product_id": f"p-{number}", "quantity": 1, "price": 100 + number}],
        },
    }


async def test_a_till_that_was_offline_for_a_day_reports_its_receipts_as_of_then(shop: Shop, line: Line) -> None:
    """It sends a day late, and twice, since the line broke behind the first answer."""
    await run(shop, line, SEGMENT_PYTHON, shop.server_key, [receipt(n, "u-offline") for n in range(6)], "cut")
    assert [post.upstream for post in line.requests("POST")][:2] == [200, 200]

    profile = (await shop.known(user_id="u-offline"))["id"]
    orders = await shop.heard(profile, "Order Completed", 6)
    assert len(orders) == 6
    for order in orders:
        number = int(order["properties"]["receipt_id"])
        occurred = datetime.fromisoformat(order["occurred_at"])
        assert occurred == YESTERDAY + timedelta(minutes=7 * number), "the till's own time is not shifted"
    figures = (await shop.get(f"/v1/profiles/{profile}"))["figures"]
    assert (figures["orders"], figures["total"]) == (6, sum(100 + n for n in range(6)))
    assert datetime.fromisoformat(figures["first_order_at"]) == YESTERDAY


async def test_a_nightly_file_of_reported_orders_counts_once_and_starts_nothing(
    shop: Shop, line: Line, deployment: Deployment, tmp_path: Path
) -> None:
    await shop.activate(THANKS)
    reported: Call = {"call": "track", "event": "Order Completed", "userId": "u-nightly"}
    reported |= {"properties": {"order_id": "N-1", "total": 300}}
    await run(shop, line, RUDDER_NODE, shop.server_key, [reported])
    profile = (await shop.known(user_id="u-nightly"))["id"]
    await until(lambda: ended_runs(shop, profile, 1), 30, "the order starts a run")

    report = await asyncio.to_thread(import_file, deployment, tmp_path)
    await shop.heard(profile, "Order Completed", 3)
    person = await until(lambda: with_orders(shop, profile, 2), 30, "the second order is known")
    assert {order["key"]: order["total"] for order in person["orders"]} == {"N-1": 300, "N-2": 90}
    assert person["figures"]["total"] == 390

    # Whatever the file could have started would have been decided before this later order.
    later: Call = {**reported, "properties": {"order_id": "N-3", "total": 10}}
    await run(shop, line, RUDDER_NODE, shop.server_key, [later])
    runs = await until(lambda: ended_runs(shop, profile, 2), 30, "the later order starts a run")
    assert len(runs) == 2, f"the file started nothing:\n{report}"


def import_file(deployment: Deployment, folder: Path) -> str:
    """The order that was reported already, and one that was not."""
    at = YESTERDAY.strftime("%Y-%m-%d %H:%M:%S")
    with open(folder / "orders.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["order", "customer", "at", "product", "quantity", "price"])
        writer.writerow(["N-1", "u-nightly", at, "tea", 2, 150])
        writer.writerow(["N-2", "u-nightly", at, "cup", 1, 60])
        writer.writerow(["N-2", "u-nightly", at, "saucer", 1, 30])
    page = (ROOT / "docs" / "clients" / "nightly-file.md").read_text()
    (folder / "nightly.yml").write_text(page.split("```yaml\n")[1].split("```")[0])
    where = ("--url", deployment.of("ingest")[0].url, "--key", deployment.write_key)
    return deployment.command("import", str(folder / "orders.csv"), "--mapping", str(folder / "nightly.yml"), *where)


async def with_orders(shop: Shop, profile: str, count: int) -> dict[str, Any] | None:
    person: dict[str, Any] = await shop.get(f"/v1/profiles/{profile}")
    return person if len(person["orders"]) == count else None


async def ended_runs(shop: Shop, profile: str, count: int) -> list[dict[str, Any]]:
    """The person's runs, once so many have ended."""
    found = await shop.all("/v1/runs", rule="thanks-for-the-order", profile=profile)
    return found if sum(run["ended_as"] is not None for run in found) >= count else []


async def test_an_apps_screen_brings_its_push_address(shop: Shop, line: Line) -> None:
    """The app reports through the shop's server, which vouches for it."""
    device = {"type": "android", "id": "d-1", "token": "fcm-token-of-the-phone"}
    screen: Call = {"call": "screen", "userId": "u-app", "name": "Basket", "properties": {"items": 2}}
    await run(shop, line, SEGMENT_NODE, shop.server_key, [{**screen, "context": {"device": device}}])

    person = await shop.known(device_token="fcm-token-of-the-phone")
    [event] = await shop.heard(person["id"], "Screen Viewed")
    assert event["properties"] == {"name": "Basket", "items": 2}
    assert {"kind": "user_id", "value": "u-app"}.items() <= one_of(person["identifiers"], "user_id").items()
    push = one_of(person["addresses"], "device_token")
    assert (push["value"], push["status"]) == (device["token"], "asserted")


def one_of(listed: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [one for one in listed if one["kind"] == kind]
    return found


async def test_a_signature_vouches_for_its_user_id_and_for_nothing_else(shop: Shop, line: Line) -> None:
    """The shop's server signs the user id of whoever is logged in; the page passes the signature on."""
    source = await shop.post("/v1/sources", {"name": "signed-site", "kind": "signed"})
    key, secret = source["write_key"], source["signing_secret"]
    victim = {"type": "identify", "userId": "u-victim", "traits": {"email": "victim@example.com"}}
    await shop.tell(victim)
    signature = hmac.new(secret.encode(), b"u-signed", hashlib.sha256).hexdigest()

    await visit(shop, line, key, "a-signed", "u-signed", signature)
    person = await shop.known(user_id="u-signed")
    events = [event for event in await shop.timeline(person["id"]) if event["source"] == source["id"]]
    trusts = {event["type"]: event["trust"] for event in events}
    assert trusts == {"identify": "signed", "track": "public"}
    assert one_of(person["identifiers"], "anonymous_id")["value"] == "a-signed", "the visit belongs to the user"
    assert one_of(person["addresses"], "email")["status"] == "claimed", "the address is what the page says, no more"

    # The same signature beside another user id is worth nothing: the same browser stays with whom it belongs to.
    await visit(shop, line, key, "a-signed", "u-victim", signature)
    browser = await shop.known(anonymous_id="a-signed")
    owner = await shop.known(user_id="u-victim")
    assert browser["id"] == person["id"] != owner["id"]
    events = [event for event in await shop.timeline(person["id"]) if event["type"] == "identify"]
    assert sorted(event["trust"] for event in events) == ["public", "signed"]
    assert [event["trust"] for event in await shop.timeline(owner["id"])] == ["secret"]
    assert one_of(owner["addresses"], "email")["status"] == "asserted"
    assert "city" not in owner["traits"], "a stranger's page does not write what is known of somebody"


async def visit(shop: Shop, line: Line, key: str, anonymous: str, user: str, signature: str) -> None:
    """Somebody opens the page, logs in, and looks at something."""
    calls: list[Call] = [
        {
            "call": "identify",
            "userId": user,
            "anonymousId": anonymous,
            "traits": {"email": f"{user}@x.example", "city": "Y"},
        },
        {**viewed(1, {"anonymousId": anonymous}), "userId": user},
    ]
    line.begin()
    async with started(JSDOM, line.url, key, calls, {"signature": signature}):
        await until(lambda: len(line.accepted()) == 2, 30, "the page has sent both", every=0.05)
    marker = {"type": "track", "event": f"Marker of {user}", "anonymousId": anonymous}
    await shop.tell(marker, key=key)
    profile = (await shop.known(anonymous_id=anonymous))["id"]
    await shop.heard(profile, f"Marker of {user}")


async def test_two_keys_overlap_and_the_old_ones_end_at_their_moment(shop: Shop, line: Line) -> None:
    source = await shop.post("/v1/sources", {"name": "rotating", "kind": "secret"})
    old = source["write_key"]
    new = (await shop.post("/v1/sources/rotating/keys", {"overlap": "1h"}))["write_key"]

    await run(shop, line, SEGMENT_PYTHON, old, [viewed(1, {"userId": "u-rotating"})])
    await run(shop, line, SEGMENT_PYTHON, new, [viewed(2, {"userId": "u-rotating"})])
    told = Told(shop, SEGMENT_PYTHON, "rotating")
    assert [properties["number"] for properties in said(await told.events())] == [1, 2], "one source, two keys"

    newest = await shop.post("/v1/sources/rotating/keys", {"overlap": "1s"})
    ends = {key["id"]: key["valid_until"] for key in (await shop.get("/v1/sources/rotating"))["keys"]}
    assert ends.pop(newest["id"]) is None
    [moment] = {datetime.fromisoformat(end) for end in ends.values()}
    one = {"type": "track", "event": "Seen", "userId": "u-rotating"}

    async def refused() -> datetime | None:
        answer = await shop.post_batch([one], old)
        assert answer.status_code in (200, 401)
        return datetime.now(UTC) if answer.status_code == 401 else None

    assert await until(refused, 30, "the old key has ended") >= moment, "not before the moment that was set"
    assert (await shop.post_batch([one], newest["write_key"])).status_code == 200

    line.begin()
    async with started(SEGMENT_PYTHON, line.url, new, [viewed(3, {"userId": "u-rotating"})]) as running:
        await running.gone()
    assert [post.answered for post in line.requests("POST")] == [401], "the client gives up"
    await shop.post(f"/v1/sources/rotating/keys/{newest['id']}/revoke")
    assert (await shop.post_batch([one], newest["write_key"])).status_code == 401, "revoked is revoked at once"


async def test_a_dead_letter_is_patched_and_takes_effect_once(shop: Shop, line: Line) -> None:
    """A total that is no number is answered 200: only profile knows what money is, and puts the order aside."""
    order: Call = {"call": "track", "event": "Order Completed", "userId": "u-mended", "messageId": "mended-1"}
    order |= {"properties": {"order_id": "M-1", "total": "ninety", "products": [{"product_id": "p-1", "price": 90}]}}
    nameless: Call = {"call": "track", "event": "Email Sent", "userId": "u-mended", "properties": {"number": 1}}
    await run(shop, line, SEGMENT_NODE, shop.server_key, [order, nameless])

    async def letters() -> list[dict[str, Any]]:
        found = [one for one in await shop.all("/v1/dead-letters", state="open") if "u-mended" in (one["body"] or "")]
        return found if len(found) == 2 else []

    by_service = {letter["service"]: letter for letter in await until(letters, 30, "both are put aside")}
    unread, refused = by_service["profile"], by_service["ingest"]
    assert (unread["pointer"], refused["pointer"]) == ("/properties/total", "/event")

    operations = [
        {"op": "test", "path": "/properties/total", "value": "ninety"},
        {"op": "replace", "path": "/properties/total", "value": 90},
    ]
    answer = await shop.post(f"/v1/dead-letters/{unread['id']}/replay", {"patch": operations})
    assert (answer["state"], answer["accepted"], answer["refused"]) == ("replayed", 1, 0)
    await shop.post(f"/v1/dead-letters/{refused['id']}/replay", {"patch": {"event": "Product Viewed"}})
    again = await shop.call(
        "POST", f"/v1/dead-letters/{unread['id']}/replay", headers=shop.bearer, json={"patch": operations}
    )
    assert again.status_code == 409

    told = Told(shop, SEGMENT_NODE, "mended")
    events = await told.events()
    assert sorted(event["name"] for event in events) == ["Order Completed", "Product Viewed"]
    figures = (await shop.known(user_id="u-mended"))["figures"]
    assert (figures["orders"], figures["total"]) == (1, 90)


async def test_a_patch_that_does_not_fit_leaves_the_letter_open(shop: Shop) -> None:
    bad = {"type": "track", "event": "Email Sent", "userId": "u-open"}
    assert (await shop.post_batch([bad])).status_code == 400
    [letter] = [one for one in await shop.all("/v1/dead-letters") if "u-open" in (one["body"] or "")]
    path = f"/v1/dead-letters/{letter['id']}"
    for body, pointer in (
        ({"patch": [{"op": "remove", "path": "/properties/total"}]}, "#/patch/0"),
        ({"patch": {"event": "SMS Sent"}}, "#/event"),
        ({"patch": [], "body": {}}, "#/patch"),
    ):
        answer = await shop.call("POST", f"{path}/replay", headers=shop.bearer, json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer), answer.text
    assert (await shop.get(path))["state"] == "open"
    assert json.loads((await shop.get(path))["body"])["event"] == "Email Sent", "the bytes stay as they came"
