"""`/v1/profiles…` over HTTP: find, read, timeline, merge, unmerge, erase."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

from services.profile.api import router
from services.profile.derive import people_again
from shared import errors
from shared.auth import create_key
from shared.clock import VirtualClock
from shared.db import Database
from shared.events import ProfileMerged, ProfileSplit, decode_profile_record
from shared.marks import MARK_LOCK
from shared.outbox import unpack
from shared.service import Context
from tests.support.contexts import context_for
from tests.support.profile_dump import differences_to_rows, membership_faults
from tests.support.profile_feed import NAMESPACE, SECRET, START, Feed, event, node

NOW = START + timedelta(hours=1)


@dataclass
class Shop:
    """The routes of profile over a database, with a key of each scope."""

    context: Context
    http: httpx.AsyncClient
    keys: dict[str, str]
    feed: Feed

    @property
    def database(self) -> Database:
        return self.context.database

    async def get(self, path: str, scope: str = "read", **query: Any) -> Any:
        answer = await self.http.get(path, params=query, headers=self._headers(scope))
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: Any = None, scope: str = "admin") -> httpx.Response:
        return await self.http.post(path, json=body, headers=self._headers(scope))

    def _headers(self, scope: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[scope]}"}

    async def one(self, **query: str) -> Any:
        (found,) = (await self.get("/v1/profiles", **query))["items"]
        return found

    async def published(self) -> list[Any]:
        async with self.database.connection() as connection:
            rows = await connection.fetch("SELECT records FROM profile.outbox ORDER BY shard, number")
        return [decode_profile_record(record.value) for row in rows for record in unpack(row["records"])]


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE platform.deployment SET node_namespace = $1, secret = $2", NAMESPACE, SECRET)
    await connection.close()
    async with context_for(database_url, role="dripline_profile", leases=False, clock=VirtualClock(NOW)) as context:
        app = FastAPI()
        app.include_router(router(context))
        errors.install(app)
        app.state.database = context.database
        async with context.database.transaction() as tx:
            keys = {name: (await create_key(tx, name, name, START))[1] for name in ("read", "marketing", "admin")}
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://dripline") as http:
            yield Shop(context, http, keys, Feed(context.database))


async def anna(shop: Shop) -> None:
    await shop.feed(
        event(
            "Identify",
            "m1",
            at=1,
            ids={"user_id": "u-9", "email": "anna@example.com", "phone": "+79161234567"},
            traits={"name": "Anna"},
        ),
        event(
            "Consent Granted",
            "m2",
            at=2,
            ids={"user_id": "u-9", "email": "anna@example.com"},
            properties={
                "channel": "email",
                "address": "anna@example.com",
                "topics": ["news"],
                "ip": "10.0.0.1",
                "form": "f",
            },
        ),
        event(
            "Order Completed",
            "m3",
            at=3,
            ids={"user_id": "u-9"},
            properties={
                "order_id": "o-1",
                "total": 100,
                "products": [{"product_id": "p", "price": 33.333, "quantity": 3}],
            },
        ),
        event("Order Refunded", "m4", at=4, ids={"user_id": "u-9"}, properties={"order_id": "o-1", "total": 10.5}),
        event("Product Added", "m5", at=5, ids={"user_id": "u-9"}, properties={"product_id": "q", "price": 5}),
    )


# ── finding and reading ────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_person_is_found_by_any_identifier_as_people_write_it(shop: Shop) -> None:
    await anna(shop)
    by_user = await shop.one(user_id="u-9")
    assert (await shop.one(email="Anna@Example.com "))["id"] == by_user["id"]
    assert (await shop.one(phone="8 (916) 123-45-67"))["id"] == by_user["id"]
    assert (await shop.one(user_id="u-9", email="anna@example.com"))["id"] == by_user["id"]
    assert (await shop.get("/v1/profiles", user_id="nobody"))["items"] == []
    assert (await shop.get("/v1/profiles", email="not an address"))["items"] == []


async def test_a_profile_shows_what_is_known(shop: Shop) -> None:
    await anna(shop)
    profile = await shop.one(user_id="u-9")
    assert profile["traits"] == {"name": "Anna"}
    assert {(it["kind"], it["value"]) for it in profile["identifiers"]} == {
        ("user_id", "u-9"),
        ("email", "anna@example.com"),
        ("phone", "+79161234567"),
    }
    assert next(it["consents"] for it in profile["addresses"] if it["kind"] == "email")[0]["state"] == "granted"
    assert profile["cart"]["total"] == 5
    assert profile["orders"][0]["lines"][0]["price"] == 33.33
    assert profile["figures"] == {
        "orders": 1,
        "total": 89.5,
        "refunded": 10.5,
        "average": 89.5,
        "median_gap_days": None,
        "first_order_at": "2025-03-03T10:00:03Z",
        "last_order_at": "2025-03-03T10:00:03Z",
    }


async def test_two_people_are_not_one_answer(shop: Shop) -> None:
    await anna(shop)
    await shop.feed(event("Identify", "x", ids={"user_id": "other"}))
    assert (await shop.get("/v1/profiles", user_id="other", email="anna@example.com"))["items"] == []


async def test_profiles_are_listed_in_pages(shop: Shop) -> None:
    await shop.feed(*(event("Product Viewed", f"m{n}", at=n, ids={"user_id": f"u{n}"}) for n in range(7)))
    seen, cursor = [], None
    for _ in range(10):
        page = await shop.get("/v1/profiles", limit=3, **({"cursor": cursor} if cursor else {}))
        seen += [it["id"] for it in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 7
    assert seen == sorted(seen)


async def test_the_timeline_is_newest_first_in_pages(shop: Shop) -> None:
    await anna(shop)
    profile = (await shop.one(user_id="u-9"))["id"]
    first = await shop.get(f"/v1/profiles/{profile}/events", limit=3)
    rest = await shop.get(f"/v1/profiles/{profile}/events", limit=3, cursor=first["next"])
    names = [it["name"] for it in first["items"] + rest["items"]]
    assert names == ["Product Added", "Order Refunded", "Order Completed", "Consent Granted", "Identify"]
    assert rest["next"] is None
    assert first["items"][0]["trust"] == "secret"
    bad = await shop.http.get(
        f"/v1/profiles/{profile}/events?cursor=zz", headers={"authorization": f"Bearer {shop.keys['read']}"}
    )
    assert (bad.status_code, bad.headers["content-type"]) == (400, "application/problem+json")


async def test_consents_show_the_ledger_with_its_proof(shop: Shop) -> None:
    await anna(shop)
    profile = (await shop.one(user_id="u-9"))["id"]
    found = await shop.get(f"/v1/profiles/{profile}/consents")
    assert [(it["channel"], it["topic"], it["state"], it["may_write"]) for it in found["items"]] == [
        ("email", "news", "granted", True)
    ]
    assert found["ledger"][0]["proof"] == {"ip": "10.0.0.1", "form": "f"}
    assert found["ledger"][0]["address"] == "anna@example.com"


async def test_export_holds_everything(shop: Shop) -> None:
    await anna(shop)
    profile = (await shop.one(user_id="u-9"))["id"]
    document = await shop.get(f"/v1/profiles/{profile}/export", scope="admin")
    assert len(document["events"]) == 5
    assert {it["strength"] for it in document["links"]} == {"secret"}


async def test_an_unknown_profile_is_404_and_scopes_hold(shop: Shop) -> None:
    stranger = uuid4()
    for path in ("", "/events", "/consents"):
        answer = await shop.http.get(
            f"/v1/profiles/{stranger}{path}", headers={"authorization": f"Bearer {shop.keys['read']}"}
        )
        assert answer.status_code == 404
    assert (await shop.post("/v1/profiles/merge", {"profiles": [str(stranger), str(uuid4())]})).status_code == 404
    assert (await shop.post("/v1/profiles/merge", {"profiles": [str(stranger)] * 2}, scope="read")).status_code == 403
    assert (await shop.post(f"/v1/profiles/{stranger}/erase", scope="marketing")).status_code == 403
    assert (await shop.http.get("/v1/profiles")).status_code == 401


# ── by hand ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def two_people(shop: Shop) -> tuple[Any, Any]:
    await shop.feed(
        event("Identify", "a1", at=1, ids={"user_id": "anna", "email": "anna@example.com"}, traits={"name": "Anna"}),
        event("Product Added", "a2", at=2, ids={"user_id": "anna"}, properties={"product_id": "p"}),
        event("Identify", "b1", at=3, ids={"user_id": "boris", "card": "c"}, traits={"name": "Boris", "city": "Kazan"}),
        event("Order Completed", "b2", at=4, ids={"card": "c"}, properties={"order_id": "o", "total": 5}),
    )
    return await shop.one(user_id="anna"), await shop.one(user_id="boris")


def known(profile: Any) -> Any:
    return {name: profile[name] for name in ("traits", "cart", "orders", "addresses", "first_seen")} | {
        "identifiers": sorted((it["kind"], it["value"]) for it in profile["identifiers"])
    }


async def test_merge_by_hand_joins_what_nothing_else_may_join(shop: Shop) -> None:
    one, other = await two_people(shop)
    answer = await shop.post("/v1/profiles/merge", {"profiles": [one["id"], other["id"]]}, scope="marketing")
    merged = answer.json()
    assert answer.status_code == 200
    assert merged["id"] in (one["id"], other["id"])
    assert merged["traits"] == {"name": "Boris", "city": "Kazan"}
    assert len(merged["cart"]["items"]) == len(merged["orders"]) == 1
    for former in (one["id"], other["id"]):
        assert (await shop.get(f"/v1/profiles/{former}"))["id"] == merged["id"]
    assert {one["id"], other["id"]} == {merged["id"], *merged["former_ids"]}
    assert [type(it) for it in await shop.published()] == [ProfileMerged, ProfileMerged]
    assert await differences_to_rows(shop.database) == []
    assert await membership_faults(shop.database) == []


async def test_unmerge_gives_back_both_people_and_nothing_joins_them_again(shop: Shop) -> None:
    one, other = await two_people(shop)
    merged = (await shop.post("/v1/profiles/merge", {"profiles": [one["id"], other["id"]]})).json()
    nodes = [it["node"] for it in other["identifiers"]]
    answer = await shop.post(f"/v1/profiles/{merged['id']}/unmerge", {"nodes": nodes})
    assert answer.status_code == 200
    assert len(answer.json()["items"]) == 2
    assert known(await shop.one(user_id="anna")) == known(one)
    assert known(await shop.one(user_id="boris")) == known(other)
    assert ProfileSplit in [type(it) for it in await shop.published()]

    await shop.feed(
        event("Identify", "x1", at=50, ids={"card": "c", "email": "anna@example.com"}),
        event("Alias", "x2", at=51, ids=[("user_id", "anna"), ("user_id", "boris")], type="alias"),
        event("Identify", "x3", at=52, ids={"user_id": "anna", "anonymous_id": "new"}),
        event("Identify", "x4", at=53, ids={"user_id": "boris", "anonymous_id": "new"}),
    )
    assert (await shop.one(user_id="anna"))["id"] != (await shop.one(user_id="boris"))["id"]
    assert (await shop.one(user_id="anna"))["id"] == (await shop.one(anonymous_id="new"))["id"]
    assert await differences_to_rows(shop.database) == []
    assert await membership_faults(shop.database) == []


async def test_a_cut_by_hand_that_was_lost_comes_out_when_everybody_is_computed_again(shop: Shop) -> None:
    one, other = await two_people(shop)
    merged = (await shop.post("/v1/profiles/merge", {"profiles": [one["id"], other["id"]]})).json()
    nodes = [it["node"] for it in other["identifiers"]]
    await shop.post(f"/v1/profiles/{merged['id']}/unmerge", {"nodes": nodes})
    await shop.feed(event("Alias", "x", at=51, ids=[("user_id", "anna"), ("user_id", "boris")], type="alias"))
    assert (await people_again(shop.database)).differences == []
    async with shop.database.transaction() as tx:
        await tx.execute("DELETE FROM profile.cannot_link")
    differences = (await people_again(shop.database)).differences
    assert len(differences) == 2
    assert all("by the links that are stored" in one for one in differences)


async def test_a_person_made_by_links_is_parted_too(shop: Shop) -> None:
    await shop.feed(
        event("Identify", "m1", at=1, ids={"user_id": "u", "email": "one@example.com"}),
        event("Identify", "m2", at=2, ids={"user_id": "u", "phone": "+79161234567"}),
        event("Identify", "m3", at=3, ids={"user_id": "u", "card": "c"}),
    )
    profile = await shop.one(user_id="u")
    leaving = [str(node("card", "c")), str(node("phone", "+79161234567"))]
    items = (await shop.post(f"/v1/profiles/{profile['id']}/unmerge", {"nodes": leaving})).json()["items"]
    assert sorted(len(it["identifiers"]) for it in items) == [2, 2]
    assert (
        (await shop.one(card="c"))["id"]
        == (await shop.one(phone="+79161234567"))["id"]
        != (await shop.one(user_id="u"))["id"]
    )


async def test_merging_again_after_an_unmerge_lifts_what_kept_them_apart(shop: Shop) -> None:
    one, other = await two_people(shop)
    pair = {"profiles": [one["id"], other["id"]]}
    merged = (await shop.post("/v1/profiles/merge", pair)).json()
    await shop.post(f"/v1/profiles/{merged['id']}/unmerge", {"nodes": [it["node"] for it in other["identifiers"]]})
    now = [(await shop.one(user_id=name))["id"] for name in ("anna", "boris")]
    again = await shop.post("/v1/profiles/merge", {"profiles": now})
    assert again.status_code == 200
    assert (await shop.one(user_id="anna"))["id"] == (await shop.one(user_id="boris"))["id"]


async def test_unmerge_says_which_nodes_are_wrong(shop: Shop) -> None:
    one, other = await two_people(shop)
    stranger = other["identifiers"][0]["node"]
    answer = await shop.post(f"/v1/profiles/{one['id']}/unmerge", {"nodes": [stranger]})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/nodes")
    assert stranger in answer.json()["detail"]
    everything = await shop.post(
        f"/v1/profiles/{one['id']}/unmerge", {"nodes": [it["node"] for it in one["identifiers"]]}
    )
    assert everything.status_code == 422


async def test_erasing_leaves_no_row_and_what_comes_later_starts_anew(shop: Shop) -> None:
    await two_people(shop)
    other = await shop.one(user_id="boris")
    person = await shop.one(user_id="anna")
    await shop.feed(
        event(
            "Order Completed",
            "both",
            at=9,
            ids={"email": "anna@example.com"},
            trust="public",
            properties={"order_id": "o"},
        )
    )
    answer = await shop.post(f"/v1/profiles/{person['id']}/erase")
    assert (answer.status_code, answer.json()) == (200, {"erased_events": 3})
    async with shop.database.connection() as connection:
        for table in ("node", "event", "trait", "profile", "cart_op", "link"):
            text = await connection.fetch(f"SELECT t::text FROM profile.{table} t")
            assert not [row for row in text if "anna" in row[0].lower() or str(node("user_id", "anna")) in row[0]], (
                table
            )
    assert (await shop.get("/v1/profiles", user_id="anna"))["items"] == []
    assert (await shop.get(f"/v1/profiles/{other['id']}"))["orders"][0]["total"] == 5
    late = await shop.feed(event("Product Viewed", "late", at=10, ids={"user_id": "anna"}))
    assert late.erased == 1
    fresh = await shop.feed(event("Product Viewed", "fresh", at=7200, ids={"user_id": "anna"}))
    assert fresh.applied == 1
    assert (await shop.one(user_id="anna"))["id"] != person["id"]
    assert await differences_to_rows(shop.database) == []


async def test_what_is_done_by_hand_is_in_the_change_log(shop: Shop) -> None:
    one, other = await two_people(shop)
    await shop.post("/v1/profiles/merge", {"profiles": [one["id"], other["id"]]}, scope="marketing")
    async with shop.database.connection() as connection:
        (row,) = await connection.fetch("SELECT principal, action FROM platform.change_log")
    assert tuple(row) == ("marketing", "profile.merge")


async def test_by_hand_waits_for_the_keeper_before_it_locks_anybody(shop: Shop, database_url: str) -> None:
    """The lock "mark" comes first: while the keeper has it, no profile is locked; afterwards the merge goes through."""
    one, other = await two_people(shop)
    keeper = await asyncpg.connect(database_url)
    try:
        transaction = keeper.transaction()
        await transaction.start()
        await keeper.execute("SELECT pg_advisory_xact_lock($1)", MARK_LOCK)
        merging = asyncio.create_task(shop.post("/v1/profiles/merge", {"profiles": [one["id"], other["id"]]}))
        async with asyncio.timeout(10):
            while not await keeper.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ):
                await asyncio.sleep(0.01)
        await keeper.execute("SELECT 1 FROM profile.profile FOR UPDATE NOWAIT")
        await transaction.rollback()
        assert (await merging).status_code == 200
    finally:
        await keeper.close()
