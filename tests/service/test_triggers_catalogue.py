"""What a rule names must be there when it is activated; presets; whom a rule would mean."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI

from services.triggers import api
from services.triggers.presets import presets
from services.triggers.store import preview as preview_store
from shared import errors
from shared.auth import create_key
from shared.errors import Problem
from tests.service.test_triggers_api import Client
from tests.service.test_triggers_cart import CART
from tests.support.engine import at
from tests.support.triggers import MARKETER, Shop, add_offers, add_templates, open_shop


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with open_shop(database_url) as shop:
        yield shop


@pytest.fixture
async def call(shop: Shop) -> Client:
    app = FastAPI()
    app.state.database = shop.triggers.database
    app.include_router(api.router(shop.triggers, shop.book, shop.world))
    errors.install(app)
    async with shop.triggers.database.transaction() as tx:
        keys = {name: (await create_key(tx, name, name, at()))[1] for name in ("read", "marketing")}
    return Client(app, keys)


def pointers(answer: Any) -> list[tuple[str, str]]:
    return [(one["pointer"], one["detail"]) for one in answer.json()["errors"]]


# ── templates and offers ──────────────────────────────────────────────────────────────────────────────────────────────
STEPS = [
    {"send": "cart-remindr"},
    {"wait_for": {"event": "X", "for": "1d", "else": [{"send": {"template": "letter", "offer": "nowhere"}}]}},
    {"offer": {"pool": "cart6"}},
]


async def test_a_rule_that_names_what_is_not_there_is_saved_but_not_activated(call: Client, shop: Shop) -> None:
    document = {"name": "seen", "enter": {"on": "Product Viewed"}, "steps": STEPS}
    assert (await call("POST", "/v1/rules", json=document)).status_code == 201
    answer = await call("POST", "/v1/rules/seen/activate")
    assert answer.status_code == 422
    assert pointers(answer) == [
        ("#/steps/0/send", "there is no template 'cart-remindr': did you mean 'cart-reminder'?"),
        ("#/steps/1/wait_for/else/0/send/offer", "there is no offer 'nowhere': make it first (POST /v1/offers)"),
        ("#/steps/2/offer/pool", "there is no offer 'cart6': did you mean 'cart5'?"),
    ]
    assert (await call("GET", "/v1/rules/seen", "read")).json()["state"] == "draft"
    preview = (await call("POST", "/v1/rules/seen/preview", "read")).json()
    assert preview["missing"] == {"templates": ["cart-remindr"], "offers": ["cart6", "nowhere"]}


async def test_all_rules_of_a_folder_are_refused_together_and_an_active_rule_keeps_its_version(
    call: Client, shop: Shop
) -> None:
    good, bad = ({"name": name, "enter": {"on": "X"}, "steps": [{"send": send}]} for name, send in
                 (("good", "letter"), ("bad", "nowhere")))  # fmt: skip
    answer = await call("POST", "/v1/rules/apply", params={"activate": "true"}, json={"rules": [good, bad]})
    assert [pointer for pointer, _ in pointers(answer)] == ["#/1/steps/0/send"]
    assert (await call("GET", "/v1/rules", "read")).json()["items"] == []
    await shop.editor.create(good, MARKETER, activate=True)
    assert (await call("PUT", "/v1/rules/good", json=good | {"steps": bad["steps"]})).status_code == 422
    assert (await call("GET", "/v1/rules/good", "read")).json()["newest_version"] == 1


async def test_a_marketing_rule_may_not_use_a_transactional_template(shop: Shop, database_url: str) -> None:
    await add_templates(database_url, "invoice", purpose="transactional")
    await shop.rule(name="t", kind="transactional", enter={"on": "Order Completed"}, steps=[{"send": "invoice"}])
    with pytest.raises(Problem) as error:
        await shop.rule(name="m", steps=[{"send": "invoice"}])
    assert "transactional" in error.value.errors[0]["detail"]
    with pytest.raises(Problem) as error:
        await shop.rule(name="o", kind="transactional", enter={"on": "X"}, steps=[{"send": "letter"}])
    assert error.value.errors[0]["detail"].startswith("the template 'letter' is marketing; the rule is transactional")


async def test_the_role_of_triggers_reads_the_names_and_nothing_else_of_dispatch(shop: Shop) -> None:
    import asyncpg

    rows = await shop.fetch("SELECT * FROM platform.catalogue WHERE name = 'letter'")
    assert [tuple(row) for row in rows] == [("template", "letter", "marketing")]
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await shop.fetch("SELECT 1 FROM dispatch.template")


# ── presets ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_every_shipped_rule_is_a_preset_and_is_made_as_it_is(call: Client) -> None:
    listed = (await call("GET", "/v1/presets", "read")).json()["items"]
    names = [one["name"] for one in listed]
    assert names == ["abandoned-cart", "churn", "double-opt-in", "welcome"]
    assert all(one["title"] and one["description"] and one["parameters"] for one in listed)
    for name in names:
        made = await call("POST", "/v1/rules", params={"preset": name})
        assert made.status_code == 201, made.text
        document = (await call("GET", f"/v1/rules/{name}", "read")).json()["document"]
        shipped = (await call("GET", f"/v1/presets/{name}", "read")).json()["document"]
        assert document["enter"] == shipped["enter"] and len(document["steps"]) == len(shipped["steps"])


async def test_a_preset_with_values_of_its_own(call: Client, database_url: str) -> None:
    body = {"name": "my-cart", "parameters": {"idle": "45m", "last_call_after": "2d", "holdout": "0%"}}
    made = await call("POST", "/v1/rules", params={"preset": "abandoned-cart", "activate": "true"}, json=body)
    assert made.status_code == 201, made.text
    document = (await call("GET", "/v1/rules/my-cart", "read")).json()["document"]
    assert (document["enter"]["idle"], document["steps"][1]["wait"], document["holdout"]) == ("45m", "2d", "0%")
    assert presets()["abandoned-cart"].default("idle") == "1h"


@pytest.mark.parametrize(
    ("preset", "body", "pointer", "words"),
    [
        ("abandoned-cart", {"parameters": {"idel": "1h"}}, "#/parameters/idel", "did you mean 'idle'"),
        ("abandoned-cart", {"parameters": {"idle": "soon"}}, "#/parameters/idle", "soon"),
        ("abandoned-cart", {"parameters": {"margin": 7}}, "#/parameters/margin", "share"),
        ("abandoned-cart", {"name": "My Cart"}, "#/name", "pattern"),
        ("churn", {"paramters": {}}, "#/paramters", "not permitted"),
    ],
)
async def test_a_mistake_in_a_preset_is_named_where_it_was_written(
    call: Client, preset: str, body: dict[str, Any], pointer: str, words: str
) -> None:
    answer = await call("POST", "/v1/rules", params={"preset": preset}, json=body)
    assert answer.status_code == 422
    ((at_pointer, detail),) = pointers(answer)
    assert at_pointer == pointer and words in detail


async def test_a_preset_that_is_not_there(call: Client) -> None:
    assert (await call("POST", "/v1/rules", params={"preset": "nothing"})).status_code == 404
    assert (await call("GET", "/v1/presets/nothing", "read")).status_code == 404


# ── preview ───────────────────────────────────────────────────────────────────────────────────────────────────────────
CHURN = {
    "name": "churn",
    "enter": {"schedule": "0 9 * * *", "among": {"days_since_order": {"gte": 30}}},
    "again": "never",
    "steps": [{"wait": "3d"}, {"send": "come-back"}],
}


async def test_a_preview_counts_who_is_meant_and_who_would_enter(call: Client, shop: Shop) -> None:
    for number, day in enumerate((0, 1, 2, 40)):
        await shop.buys(at(days=day), f"o-{number}", user=f"user-{number}")
    shop.clock.set(at(days=45))
    unsaved = (await call("POST", "/v1/rules/preview", "read", json=CHURN)).json()
    assert (unsaved["people"], unsaved["matching"], unsaved["would_enter"], unsaved["inside"]) == (4, 3, 3, [])
    assert unsaved["next_moment"] == "2026-04-17T06:00:00Z"
    assert {one["profile"] for one in unsaved["samples"]} == {
        str(row["profile"]) for row in await shop.fetch("SELECT profile FROM cdp.node WHERE value <> 'user-3'")
    }
    assert all(one["seen"][0]["holds"] for one in unsaved["samples"])
    await shop.rule(**CHURN)
    await shop.watermark(at(days=46))
    saved = (await call("POST", "/v1/rules/churn/preview", "read")).json()
    assert (saved["matching"], saved["would_enter"]) == (3, 0)
    assert saved["inside"] == [{"step": "wait", "version": 1, "people": 3}]


async def test_a_preview_counts_whoever_was_in_the_rule_about_any_address(call: Client, shop: Shop) -> None:
    document = {
        "name": "hello",
        "enter": {"on": "Subscription Confirmed", "if": {"orders": {"count": {"gte": 0}}}},
        "again": "never",
        "steps": [{"send": "letter"}],
    }
    await shop.rule(**document)
    for user in ("anna", "boris"):
        said = {"channel": "email", "address": f"{user}@example.com"}
        name = "Subscription Confirmed" if user == "anna" else "Product Viewed"
        await shop.post(shop.event(name, at(), user, properties=said))
    await shop.watermark(at(minutes=5))
    found = (await call("POST", "/v1/rules/hello/preview", "read")).json()
    assert (found["matching"], found["would_enter"]) == (2, 1)


async def test_a_condition_that_sql_cannot_decide_is_judged_by_python(call: Client, shop: Shop) -> None:
    for user in ("anna", "boris", "vera"):
        await shop.adds(at(), user)
    await shop.post(shop.event("Product Removed", at(minutes=1), "vera", properties={"product_id": "p-1"}))
    shop.clock.set(at(minutes=2))
    found = (await call("POST", "/v1/rules/preview", "read", json=CART)).json()
    assert (found["matching"], found["would_enter"], len(found["samples"])) == (2, 2, 2)


@pytest.fixture
def few_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.triggers.preview.JUDGED", 1)


async def test_where_not_everybody_can_be_looked_at_the_bounds_are_told(
    call: Client, shop: Shop, few_judged: None
) -> None:
    for user in ("anna", "boris"):
        await shop.adds(at(), user)
    shop.clock.set(at(minutes=2))
    found = (await call("POST", "/v1/rules/preview", "read", json=CART)).json()
    assert (found["at_least"], found["at_most"], found["matching"], found["would_enter"]) == (1, 2, None, None)


async def test_a_count_that_takes_too_long_is_stopped(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_store, "LONGEST", 0.05)
    with pytest.raises(preview_store.TooLong):
        async with preview_store.bounded(shop.triggers.database) as tx:
            await tx.execute("SELECT pg_sleep(5)")


async def test_an_offer_made_later_lets_the_rule_be_activated(shop: Shop, database_url: str) -> None:
    with pytest.raises(Problem):
        await shop.rule(steps=[{"send": {"template": "letter", "offer": "spring"}}])
    await add_offers(database_url, "spring")
    assert (await shop.rule(steps=[{"send": {"template": "letter", "offer": "spring"}}])).state == "active"
