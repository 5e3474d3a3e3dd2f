"""The management API of triggers, through HTTP: rules, versions, runs, decisions, and rules as files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from services.triggers import api
from services.triggers.cli import apply_rules, backtest_rules, diff_rules, read_rules
from shared import errors
from shared.auth import create_key
from shared.errors import ConfigurationError
from tests.service.test_triggers_cart import CART
from tests.support.engine import at
from tests.support.triggers import Shop, open_shop

YAML = """
name: seen
enter: {on: Product Viewed, if: {cart: {not_empty: true}}}
again: always
steps:
  - send: letter
  - wait: 1d
  - send: letter
"""


class Client:
    """Calls as somebody with one scope."""

    def __init__(self, app: FastAPI, keys: dict[str, str]) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, method: str, path: str, scope: str | None = "marketing", **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._keys[scope]}"} if scope else {}
        transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=headers, **more)


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with open_shop(database_url) as shop:
        yield shop


@pytest.fixture
async def keys(shop: Shop) -> dict[str, str]:
    async with shop.triggers.database.transaction() as tx:
        return {name: (await create_key(tx, f"anna ({name})", name, at()))[1] for name in ("read", "marketing")}


@pytest.fixture
def app(shop: Shop) -> FastAPI:
    app = FastAPI()
    app.state.database = shop.triggers.database
    app.include_router(api.router(shop.triggers, shop.book, shop.world))
    errors.install(app)
    return app


@pytest.fixture
def call(app: FastAPI, keys: dict[str, str]) -> Client:
    return Client(app, keys)


async def test_a_rule_is_made_from_yaml_read_by_name_and_activated(call: Client) -> None:
    made = await call("POST", "/v1/rules", content=YAML)
    assert made.status_code == 201, made.text
    assert made.json()["state"] == "draft"
    read = (await call("GET", "/v1/rules/seen", "read")).json()
    assert read["id"] == made.json()["id"]
    assert [step["id"] for step in read["document"]["steps"]] == ["send-letter", "wait", "send-letter-2"]
    assert (await call("POST", f"/v1/rules/{read['id']}/activate")).json()["state"] == "active"
    listed = (await call("GET", "/v1/rules", "read")).json()
    assert [(one["name"], one["state"]) for one in listed["items"]] == [("seen", "active")]


async def test_a_mistake_is_answered_with_its_pointer(call: Client) -> None:
    answer = await call("POST", "/v1/rules", json={"name": "x", "enter": {"on": "A"}, "steps": [{"sned": "x"}]})
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "#/steps/0/sned" and "did you mean 'send'?" in error["detail"]
    assert (await call("POST", "/v1/rules", content="a: [")).status_code == 400
    assert (await call("POST", "/v1/rules", content=b"\xff\xfe")).status_code == 400
    assert (await call("GET", "/v1/rules/nothing", "read")).status_code == 404


async def test_a_key_without_the_scope_changes_nothing(call: Client) -> None:
    assert (await call("POST", "/v1/rules", "read", content=YAML)).status_code == 403
    assert (await call("POST", "/v1/rules", None, content=YAML)).status_code == 401
    assert (await call("GET", "/v1/rules", "read")).json()["items"] == []


async def test_versions_have_author_and_differences(call: Client) -> None:
    await call("POST", "/v1/rules", params={"activate": "true"}, content=YAML)
    edited = await call("PUT", "/v1/rules/seen", content=YAML.replace("wait: 1d", "wait: 2d"))
    assert (edited.json()["version"], edited.json()["result"]) == (2, "changed")
    assert (await call("PUT", "/v1/rules/seen", content=YAML.replace("wait: 1d", "wait: 2d"))).json()[
        "result"
    ] == "unchanged"
    newest, first = (await call("GET", "/v1/rules/seen/versions", "read")).json()["items"]
    assert newest["author"] == "anna (marketing)"
    assert newest["differences"] == [{"at": "#/steps/wait/wait", "before": "1d", "after": "2d"}]
    assert (first["version"], first["differences"]) == (1, [])
    page = (await call("GET", "/v1/rules/seen/versions", "read", params={"limit": 1})).json()
    assert page["next"] == 2 and page["items"][0]["differences"] == newest["differences"]


async def test_changes_are_in_the_change_log(call: Client, shop: Shop) -> None:
    await call("POST", "/v1/rules", content=YAML)
    await call("POST", "/v1/rules/seen/activate")
    rows = await shop.fetch("SELECT principal, action FROM platform.change_log ORDER BY action DESC")
    assert [tuple(row) for row in rows] == [("anna (marketing)", "rule.create"), ("anna (marketing)", "rule.active")]


async def test_the_schema_is_published(call: Client) -> None:
    found = (await call("GET", "/v1/rules/schema", "read")).json()
    assert found["title"] == "Dripline rule" and "steps" in found["$defs"]


async def test_why_and_why_not_and_the_report(call: Client, shop: Shop) -> None:
    await shop.rule(**CART | {"holdout": "100%"})
    await shop.adds(at())
    await shop.adds(at(minutes=1), "boris", product="p-3")
    await shop.buys(at(minutes=30), user="boris")
    await shop.watermark(at(hours=1))
    await shop.buys(at(hours=2), "o-2")
    await shop.watermark(at(days=5))
    profiles = {row["value"]: str(row["profile"]) for row in await shop.fetch("SELECT value, profile FROM cdp.node")}
    decisions = (await call("GET", "/v1/decisions", "read", params={"profile": profiles["anna"]})).json()["items"]
    assert [one["what"] for one in decisions] == ["outcome", "goal", "entered"]
    assert decisions[-1]["seen"][0]["holds"] is True and "intended" in decisions[-1]["effects"][0]
    runs = (await call("GET", "/v1/runs", "read", params={"rule": "abandoned-cart"})).json()["items"]
    assert [(one["ended_as"], one["ghost"], one["revenue"]) for one in runs] == [("goal", True, 1500.0)]
    assert (await call("GET", f"/v1/runs/{runs[0]['id']}", "read")).json()["rule_name"] == "abandoned-cart"
    why = await call(
        "GET", "/v1/decisions/why-not", "read", params={"rule": "abandoned-cart", "profile": profiles["boris"]}
    )
    assert why.json()["why"].startswith("stopped before entry: Order Completed (order o-1) at 2026-03-02 10:30")
    report = (await call("GET", "/v1/rules/abandoned-cart/report", "read")).json()
    assert report["entered"] == 1 and report["held_out"]["goals"] == 1 and report["held_out"]["ended"] == {"goal": 1}


async def test_the_report_counts_goals_of_closed_windows_and_leaves_out_who_turned_out_to_be_in_both_arms(
    call: Client, shop: Shop
) -> None:
    await shop.rule(
        name="seen",
        enter={"on": "Product Viewed"},
        holdout="50%",
        goal={"event": "Order Completed", "within": "3d"},
        steps=[{"send": "letter"}],
    )
    for number in range(12):
        await shop.post(shop.event("Product Viewed", at(minutes=number), "", ids=[("anonymous_id", f"a-{number}")]))
    await shop.watermark(at(hours=1))
    arms = {row["node"]: row["ghost"] for row in await shop.runs()}
    browsers = [f"a-{number}" for number in range(12)]
    ghost, *_ = [one for one in browsers if arms[shop.node("anonymous_id", one)]]
    treated, other, *_ = [one for one in browsers if not arms[shop.node("anonymous_id", one)]]
    for minute, browser in ((61, ghost), (62, treated)):
        await shop.post(shop.event("Identify", at(minutes=minute), "anna", ids=[("anonymous_id", browser)]))
    await shop.buys(at(hours=2), "o-1", "anna")
    await shop.buys(at(hours=3), "o-2", "", ids=[("anonymous_id", other)])
    await shop.watermark(at(hours=4))
    early = (await call("GET", "/v1/rules/seen/report", "read")).json()
    assert (early["entered"], early["left_out"]) == (10, 2)
    assert (early["treated"]["goals"], early["treated"]["closed"], early["treated"]["goal_rate"]) == (0, 0, None)
    await shop.watermark(at(days=3, minutes=20))
    late = (await call("GET", "/v1/rules/seen/report", "read")).json()
    count = list(arms.values()).count(False) - 1
    assert (late["treated"]["goals"], late["treated"]["closed"]) == (1, count)
    assert late["treated"]["goal_rate"] == round(1 / count, 4) and late["treated"]["revenue"] == 1500.0
    assert (late["held_out"]["goals"], late["held_out"]["goal_rate"]) == (0, 0.0)


async def test_a_person_is_found_by_any_identifier(call: Client, shop: Shop) -> None:
    await shop.rule(again="always", steps=[{"send": "letter"}, {"wait": "1d"}])
    ids = [("email", "anna@example.com"), ("phone", "+79161234567"), ("card", "c-5"), ("anonymous_id", "a-7")]
    await shop.post(shop.event("Product Viewed", at(), ids=ids))
    await shop.post(shop.event("Product Viewed", at(seconds=1), "boris"))
    await shop.watermark(at(minutes=1))
    for known in (
        {"user_id": "anna"},
        {"email": " Anna@Example.com "},
        {"phone": "8 916 123-45-67"},
        {"card": "c-5"},
        {"anonymous_id": "a-7", "user_id": "anna"},
    ):
        decisions = (await call("GET", "/v1/decisions", "read", params=known)).json()["items"]
        assert len(decisions) == 1, known
        runs = (await call("GET", "/v1/runs", "read", params=known)).json()["items"]
        assert [one["id"] for one in runs] == [decisions[0]["run"]]
        why = (await call("GET", "/v1/decisions/why", "read", params=known | {"rule": "a-rule"})).json()
        assert why["run"]["id"] == decisions[0]["run"] and why["why"].startswith("entered by Product Viewed")
        assert [one["what"] for one in why["decisions"]] == ["entered"]
        why_not = await call("GET", "/v1/decisions/why-not", "read", params=known | {"rule": "a-rule"})
        assert why_not.json()["entered"] is True
    for nobody in ({"email": "nobody@example.com"}, {"user_id": "boris", "card": "c-5"}, {"email": "no address"}):
        assert (await call("GET", "/v1/decisions", "read", params=nobody)).json()["items"] == []
        for way in ("why", "why-not"):
            answer = await call("GET", f"/v1/decisions/{way}", "read", params=nobody | {"rule": "a-rule"})
            assert answer.status_code == 404, answer.text
            assert "example" not in answer.text
    assert (await call("GET", "/v1/decisions/why-not", "read", params={"rule": "a-rule"})).status_code == 422
    before = {"user_id": "anna", "rule": "a-rule", "at": at(minutes=-1).isoformat()}
    assert (await call("GET", "/v1/decisions/why", "read", params=before)).status_code == 404


async def test_an_edit_is_shown_with_what_becomes_of_the_people_inside(call: Client, shop: Shop) -> None:
    steps = [{"wait": "1d"}, {"send": "letter"}]
    await shop.rule(steps=steps)
    await shop.post(shop.event("Product Viewed", at()))
    await shop.watermark(at(minutes=1))
    document = {"name": "a-rule", "enter": {"on": "Product Viewed"}, "steps": steps}

    async def diff(**fields: Any) -> tuple[list[str], list[str]]:
        found = (await call("POST", "/v1/rules/a-rule/diff", "read", json=document | fields)).json()
        assert [(one["step"], one["version"], one["people"]) for one in found["inside"]] == [("wait", 1, 1)]
        return [one["at"] for one in found["differences"]], [one["becomes"] for one in found["inside"]]

    assert await diff() == ([], ["stays"])
    assert await diff(title="x") == (["#/title"], ["finishes"])
    assert await diff(on_edit="stop") == (["#/on_edit"], ["ends"])
    assert await diff(on_edit="move") == (["#/on_edit"], ["moves"])
    assert (await diff(on_edit="move", steps=[{"send": "letter"}]))[1] == ["finishes"]


async def test_holidays_are_set_and_read(call: Client) -> None:
    assert (await call("GET", "/v1/holidays", "read")).json()["version"] == 0
    put = await call("PUT", "/v1/holidays", json={"days": ["2026-05-09", "2026-01-01", "2026-01-01"]})
    assert put.status_code == 200 and put.json()["days"] == ["2026-01-01", "2026-05-09"]
    assert (await call("GET", "/v1/holidays", "read")).json() == put.json()
    assert (await call("PUT", "/v1/holidays", json={"days": ["soon"]})).status_code == 422
    assert (await call("PUT", "/v1/holidays", "read", json={"days": []})).status_code == 403


async def test_what_was_put_aside_is_listed_retried_and_dropped(call: Client, shop: Shop) -> None:
    await shop.rule()
    for user in ("anna", "boris", "vera"):
        await shop.post(shop.event("Product Viewed", at(), user))
    await shop.fetch("UPDATE triggers.item SET payload = '{\"event\": 5}'")
    await shop.watermark(at(minutes=1))
    first = (await call("GET", "/v1/put-aside", "read", params={"limit": 2})).json()
    rest = (await call("GET", "/v1/put-aside", "read", params={"limit": 2, "cursor": first["next"]})).json()
    items = first["items"] + rest["items"]
    assert len({one["node"] for one in items}) == 3 and rest["next"] is None
    assert items[0]["kind"] == "event" and "ValidationError" in items[0]["reason"]
    own = (await call("GET", "/v1/put-aside", "read", params={"user_id": "anna"})).json()["items"]
    assert [one["node"] for one in own] == [str(shop.node("user_id", "anna"))]
    path = f"/v1/put-aside/{own[0]['node']}/{own[0]['id']}"
    assert (await call("POST", f"{path}/retry", "read")).status_code == 403
    assert (await call("POST", f"{path}/retry")).json() == {"retried": 1}
    assert (await call("POST", f"{path}/retry")).status_code == 404
    await shop.work()
    assert (await call("DELETE", path)).status_code == 204
    assert (await call("DELETE", path)).status_code == 404
    assert (await call("POST", "/v1/put-aside/retry")).json() == {"retried": 2}


async def test_a_backtest_is_asked_for_by_name_or_with_a_document(call: Client, shop: Shop) -> None:
    saved = await shop.rule(steps=[{"send": "letter"}, {"wait": "1d"}])
    for number in range(3):
        await shop.post(shop.event("Product Viewed", at(minutes=number), f"user-{number}"))
    await shop.watermark(at(days=2))
    period = {"since": at(days=-1).isoformat(), "until": at(days=3).isoformat()}
    found = (await call("POST", "/v1/rules/a-rule/backtest", "read", params=period)).json()
    assert (found["version"], found["entered"], found["complete"]) == (1, {"treated": 3, "held_out": 0}, True)
    assert {one["run"] for one in found["samples"]} == {str(row["id"]) for row in await shop.runs()}
    assert found["intents"] == [{"step": "send-letter", "template": "letter", "treated": 3, "held_out": 0}]
    other = {"name": "unsaved", "enter": {"on": "Product Added"}, "steps": [{"send": "no-such-template"}]}
    unsaved = (await call("POST", "/v1/rules/backtest", "read", params=period, json=other)).json()
    assert (unsaved["rule_name"], unsaved["version"], unsaved["people"]) == ("unsaved", None, 0)
    wrong = {"since": at(days=3).isoformat(), "until": at().isoformat()}
    assert (await call("POST", "/v1/rules/a-rule/backtest", "read", params=wrong)).status_code == 422
    assert saved.version == 1 and await shop.items() == []


async def test_lists_page_by_cursor(call: Client, shop: Shop) -> None:
    await shop.rule(again="always")
    for second in range(5):
        await shop.post(shop.event("Product Viewed", at(seconds=second), f"user-{second}"))
    await shop.watermark(at(minutes=1))
    seen: list[int] = []
    cursor: str | None = None
    while True:
        page = (
            await call("GET", "/v1/decisions", "read", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        ).json()
        seen += [one["seq"] for one in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 5
    assert (await call("GET", "/v1/decisions", "read", params={"cursor": "nonsense"})).status_code == 422


# ── rules as files ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_folder_is_read_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(YAML)
    (tmp_path / "offers.yml").write_text("welcome: {form: footer}")
    assert [rule["name"] for _, rule in read_rules(tmp_path)] == ["seen"]
    (tmp_path / "b.yml").write_text(YAML)
    with pytest.raises(ConfigurationError, match="both hold a rule called 'seen'"):
        read_rules(tmp_path)
    (tmp_path / "b.yml").write_text(YAML.replace("send: letter", "sned: letter"))
    with pytest.raises(ConfigurationError, match=r"b\.yml: /steps/0/sned .*did you mean 'send'"):
        read_rules(tmp_path)
    with pytest.raises(ConfigurationError, match="no file or folder"):
        read_rules(tmp_path / "nowhere")


@pytest.fixture
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The routes on a port."""
    import asyncio

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task


async def test_a_folder_is_applied_compared_and_tried_on_what_is_stored(
    served: str, keys: dict[str, str], tmp_path: Path, shop: Shop
) -> None:
    import asyncio

    (tmp_path / "seen.yml").write_text(YAML)

    async def lines(work: Any, **more: Any) -> list[str]:
        return await asyncio.to_thread(lambda: list(work(tmp_path, served, keys["marketing"], **more)))

    assert await lines(diff_rules) == ["rule seen: new"]
    assert await lines(apply_rules, activate=True) == ["rule seen: made, version 1, active"]
    assert await lines(apply_rules, activate=True) == ["rule seen: as it was, version 1, active"]
    (tmp_path / "seen.yml").write_text(YAML.replace("wait: 1d", "wait: 3d"))
    assert await lines(diff_rules) == ["rule seen: changes", "    #/steps/wait/wait: 1d → 3d"]
    await shop.adds(at())
    await shop.post(shop.event("Product Viewed", at(minutes=1)))
    await shop.watermark(at(minutes=2))
    inside = "    people inside: 1 at wait finish by version 1"
    assert await lines(diff_rules) == ["rule seen: changes", "    #/steps/wait/wait: 1d → 3d", inside]
    told = await lines(backtest_rules, since=at(days=-1), until=at(days=9))
    assert told[0].endswith("of 1 people 1 entered, 0 of them held out")
    assert told[1:] == [
        "    send-letter: 1 messages of letter, 0 held out",
        "    send-letter-2: 1 messages of letter, 0 held out",
        "    finished: 1",
    ]
    assert (await lines(apply_rules))[0] == "rule seen: changed, version 2, active"
    with pytest.raises(ConfigurationError, match="No valid API key"):
        await asyncio.to_thread(lambda: list(apply_rules(tmp_path, served, "wrong")))
