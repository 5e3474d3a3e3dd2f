"""The management API of dispatch and the inbox page, over HTTP on real PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from services.dispatch.api import routers
from services.dispatch.cli import apply_templates
from shared import errors
from shared.auth import create_key
from shared.errors import ConfigurationError
from tests.support.dispatch import NOON, RULES, Stage
from tests.support.dispatch import stage as on_stage
from tests.support.wait import until


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with on_stage(database_url, tmp_path) as made:
        yield made


def app_of(stage: Stage) -> FastAPI:
    app = FastAPI()
    app.state.database = stage.context.database
    errors.install(app)
    d = stage.dispatch
    for router in routers(stage.context, d.adapter_types, d.signer, d.shop, d.subscriptions, d.desk):
        app.include_router(router)
    return app


async def key_of(stage: Stage, scope: str) -> str:
    connection = stage.owner
    _, key = await create_key(connection, f"test {scope}", scope, NOON)  # type: ignore[arg-type]
    return key


@pytest.fixture
async def api(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    """With an admin's key."""
    headers = {"Authorization": f"Bearer {await key_of(stage, 'admin')}"}
    transport = httpx.ASGITransport(app_of(stage), client=("203.0.113.9", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://dripline.example", headers=headers) as client:
        yield client


async def sent(stage: Stage, name: str = "anna") -> Any:
    user = await stage.customer(name, "email")
    await stage.learn(stage.product(user=user))
    [message] = await stage.deliver(stage.intent(user))
    return message


def pointers(answer: httpx.Response) -> dict[str, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return {error["pointer"]: error["detail"] for error in answer.json()["errors"]}


class TestMessages:
    async def test_say_what_was_sent_to_whom_and_why(self, stage: Stage, api) -> None:
        message = await sent(stage)
        [item] = (await api.get("/v1/messages")).json()["items"]
        assert item["id"] == str(message["id"])
        assert (item["rule"], item["channel"], item["state"], item["address"]) == (
            "abandoned-cart", "email", "sent", "anna@example.com",
        )  # fmt: skip
        assert item["cost"] == 0.01 and "Kind of Blue" in item["text"] and item["sent_at"] == "2026-03-10T09:00:00Z"
        rows = {row["channel"]: row for row in item["alternatives"]}
        assert rows["email"]["chosen"] and rows["email"]["net"] == 4.54
        assert rows["sms"]["reason"]["code"] == "no-address"
        names = {link["name"] for link in item["links"]}
        assert names == {"unsubscribe", "preferences", "open", "click"}
        assert all(link["url"].startswith("http://127.0.0.1:8080/") for link in item["links"])

    async def test_can_be_asked_for_by_person_rule_channel_state_and_reason(self, stage: Stage, api) -> None:
        message = await sent(stage)
        withheld = stage.intent(stage.id("user_id", "anna"), channels=["push"])
        await stage.deliver(withheld)
        profile = await stage.owner.fetchval("SELECT profile FROM cdp.node WHERE id = $1", message["origin"])

        async def found(**asked: str) -> set[str]:
            return {item["id"] for item in (await api.get("/v1/messages", params=asked)).json()["items"]}

        both = {str(message["id"]), str(withheld.message)}
        assert await found(profile=str(profile)) == both
        assert await found(rule="abandoned-cart", state="sent") == {str(message["id"])}
        assert await found(channel="email") == {str(message["id"])}
        assert await found(reason="no-address") == {str(withheld.message)}
        assert await found(rule="welcome") == set()
        assert await found(since="2026-03-10T09:00:01Z") == set()

    async def test_are_paged_by_their_last_change(self, stage: Stage, api) -> None:
        everyone = [str((await sent(stage, f"p{n}"))["id"]) for n in range(5)]
        first = (await api.get("/v1/messages", params={"limit": 2})).json()
        second = (await api.get("/v1/messages", params={"limit": 3, "cursor": first["next"]})).json()
        ids = [item["id"] for item in first["items"] + second["items"]]
        assert sorted(ids) == sorted(everyone) and second["next"] is None
        assert (await api.get("/v1/messages", params={"cursor": "x"})).status_code == 400

    async def test_one_shows_its_decisions_with_their_inputs_and_attempts(self, stage: Stage, api) -> None:
        message = await sent(stage)
        whole = (await api.get(f"/v1/messages/{message['id']}")).json()
        assert whole["decisions"][0]["inputs"]["guard"]["holds"] is True
        assert whole["tries"][0]["outcome"] == "sent" and "<html" in whole["html"]
        assert (await api.get("/v1/messages/00000000-0000-0000-0000-000000000000")).status_code == 404

    async def test_need_a_key(self, api) -> None:
        assert (await api.get("/v1/messages", headers={"Authorization": "Bearer nope"})).status_code == 401


class TestTemplates:
    good = {
        "name": "news",
        "purpose": "marketing",
        "subject": "News from {{ shop.name }}",
        "text": "Hello. {{ links.unsubscribe }}",
        "sms": "News! {{ links.unsubscribe }}",
    }

    async def test_are_made_changed_listed_and_archived(self, stage: Stage, api) -> None:
        made = await api.post("/v1/templates", json=self.good)
        assert made.status_code == 201 and made.json()["version"] == 1 and made.json()["id"]
        assert (await api.post("/v1/templates", json=self.good)).status_code == 409
        same = await api.put("/v1/templates/news", json=self.good)
        assert same.json()["version"] == 1
        changed = await api.put(f"/v1/templates/{made.json()['id']}", json=self.good | {"subject": "Old news"})
        assert changed.json()["version"] == 2 and changed.json()["subject"] == "Old news"
        listed = (await api.get("/v1/templates", params={"limit": 200})).json()["items"]
        assert "news" in {template["name"] for template in listed}
        assert (await api.delete("/v1/templates/news")).status_code == 204
        assert (await api.get("/v1/templates/news")).json()["archived"] is True
        log = await stage.owner.fetch("SELECT action FROM platform.change_log WHERE subject = 'template news'")
        assert {row["action"] for row in log} == {"template.create", "template.change", "template.archive"}
        assert len(log) == 3

    async def test_without_a_way_out_are_refused_with_a_pointer(self, api) -> None:
        answer = await api.post("/v1/templates", json=self.good | {"text": "Hello", "mjml": "<mjml></mjml>"})
        assert answer.status_code == 422
        assert pointers(answer) == {
            "#/text": "a marketing text needs {{ links.unsubscribe }}",
            "#/mjml": "a marketing text needs {{ links.unsubscribe }}",
        }

    async def test_unknown_fields_are_refused(self, api) -> None:
        answer = await api.post("/v1/templates", json=self.good | {"txt": "x"})
        assert answer.status_code == 422 and "#/txt" in pointers(answer)

    async def test_a_preview_shows_every_channel_or_what_is_missing(self, api) -> None:
        await api.post("/v1/templates", json=self.good | {"sms": "{{ person.nick }}: {{ links.unsubscribe }}"})
        shown = {row["channel"]: row for row in (await api.post("/v1/templates/news/preview", json={})).json()}
        assert shown["email"]["subject"] == "News from Dripline Shop"
        assert "person.nick is undefined" in shown["sms"]["reason"]
        filled = (await api.post("/v1/templates/news/preview", json={"variables": {"person": {"nick": "Ann"}}})).json()
        sms = next(row for row in filled if row["channel"] == "sms")
        assert sms["text"].startswith("Ann: http") and sms["segments"] == 1

    async def test_a_key_that_may_only_read_changes_nothing(self, stage: Stage, api) -> None:
        reader = {"Authorization": f"Bearer {await key_of(stage, 'read')}"}
        assert (await api.post("/v1/templates", json=self.good, headers=reader)).status_code == 403
        assert (await api.get("/v1/templates", headers=reader)).status_code == 200


class TestChannels:
    async def test_have_their_catalogue_figures_until_somebody_changes_them(self, stage: Stage, api) -> None:
        channels = {row["name"]: row for row in (await api.get("/v1/channels")).json()["items"]}
        assert set(channels) == {"email", "sms", "push", "messenger", "call"}
        assert (channels["sms"]["unit_cost"], channels["sms"]["reach"], channels["sms"]["act"]) == (1.0, 0.98, 0.03)
        assert channels["email"]["serves"] == "inbox-email"
        changed = await api.patch("/v1/channels/email", json={"unit_cost": 0.5, "quiet": "22:00-08:00"})
        assert changed.status_code == 200 and changed.json()["version"] == 2
        assert (await sent(stage))["cost"] * 2 == 1

    async def test_a_mistake_is_pointed_at(self, api) -> None:
        assert pointers(await api.patch("/v1/channels/email", json={"quiet": "22-8"})).keys() == {"#/quiet"}
        assert pointers(await api.patch("/v1/channels/email", json={"adapter": "smtp"}))["#/adapter"].endswith(
            "inbox-email"
        )
        assert pointers(await api.patch("/v1/channels/email", json={"caps": [{"limit": 1, "per": "1y"}]})).keys() == {
            "#/caps/0/per"
        }
        assert (await api.patch("/v1/channels/pigeon", json={})).status_code == 404

    async def test_caps_of_all_channels_can_be_lifted(self, stage: Stage, api) -> None:
        policy = (await api.get("/v1/caps")).json()
        assert {"scope": "person", "limit": 2, "per": "day", "purpose": "marketing", "channel": None} in policy["caps"]
        await api.put("/v1/caps", json=policy | {"caps": []})
        anna = await stage.customer("anna", "email")
        await stage.learn(stage.product(user=anna))
        messages = await stage.deliver(*(stage.intent(anna) for _ in range(4)))
        assert {message["state"] for message in messages} == {"sent"}

    @pytest.mark.parametrize("changed", [{"per": "day"}, {"per": "7d"}, {"purpose": "marketing"}, {"channel": "sms"}])
    async def test_a_cap_that_would_not_be_counted_as_it_says_is_refused(self, stage: Stage, api, changed) -> None:
        policy = (await api.get("/v1/caps")).json()
        cap = {"scope": "network", "limit": 5, "per": "1h", "purpose": "confirmation", "channel": None}
        assert (await api.put("/v1/caps", json=policy | {"caps": [cap]})).status_code == 200
        refused = await api.put("/v1/caps", json=policy | {"caps": [cap | changed]})
        assert refused.status_code == 422
        [error] = refused.json()["errors"]
        assert error["pointer"] == "#/caps/0" and "the confirmation mails of an hour" in error["detail"]

    async def test_a_kill_switch_and_a_hold_over_http(self, stage: Stage, api) -> None:
        on = await api.put(
            "/v1/switches", json={"scope": "rule", "name": "abandoned-cart", "on": True, "reason": "typo"}
        )
        assert on.json()["items"][0]["by"] == "test admin"
        anna = await stage.customer("anna", "email")
        await stage.learn(stage.product(user=anna))
        [message] = await stage.deliver(stage.intent(anna))
        assert message["reason"] == "somebody switched off the rule abandoned-cart: typo"
        assert (await api.put("/v1/switches", json={"scope": "rule", "on": True})).status_code == 422
        off = await api.put("/v1/switches", json={"scope": "rule", "name": "abandoned-cart", "on": False})
        assert off.json() == {"items": [], "held": False, "next": None}
        assert (await api.post("/v1/switches/hold")).json()["held"] is True
        assert await stage.dispatch.quiet()
        assert (await api.post("/v1/switches/release")).json()["held"] is False


class TestSuppressions:
    async def test_are_added_found_and_lifted(self, stage: Stage, api) -> None:
        made = await api.post("/v1/suppressions", json={"address": " Anna@Example.COM ", "why": "asked by phone"})
        assert made.status_code == 201 and made.json()["address"] == "anna@example.com"
        again = await api.post("/v1/suppressions", json={"address": "anna@example.com"})
        assert again.json()["id"] == made.json()["id"]
        anna = await stage.customer("anna", "email")
        [message] = await stage.deliver(stage.receipt(anna, channels=["email"]))
        assert message["reason_code"] == "suppressed"
        found = (await api.get("/v1/suppressions", params={"address": "anna@example.com"})).json()["items"]
        assert [row["why"] for row in found] == ["asked by phone"]
        assert (await api.delete(f"/v1/suppressions/{made.json()['id']}")).status_code == 204
        assert (await api.get("/v1/suppressions")).json()["items"] == []
        (told,) = await stage.owner.fetch("SELECT node, channel, from_at, to_at FROM platform.suppression")
        assert told["channel"] == "*" and told["from_at"] <= told["to_at"] == stage.clock.now() + timedelta(seconds=10)

    async def test_what_is_no_address_is_said(self, api) -> None:
        assert "#/kind" in pointers(await api.post("/v1/suppressions", json={"address": "token-1"}))
        assert "#/address" in pointers(await api.post("/v1/suppressions", json={"address": "a@"}))
        assert "#/channel" in pointers(
            await api.post("/v1/suppressions", json={"address": "a@b.de", "channel": "pigeon"})
        )


class TestOffers:
    async def test_are_made_changed_and_deleted(self, api) -> None:
        offer = {
            "name": "spring",
            "title": "Spring",
            "code": "SPRING",
            "valid": "3d",
            "forms": {"popup": {"code": "POP"}},
        }
        made = await api.post("/v1/offers", json=offer)
        assert made.status_code == 201 and made.json()["valid"] == "P3D" and made.json()["version"] == 1
        assert (await api.post("/v1/offers", json=offer)).json()["version"] == 1
        assert (await api.post("/v1/offers", json=offer | {"code": "MAY"})).json()["version"] == 2
        assert (await api.post("/v1/offers", json=offer | {"code": "no blanks"})).status_code == 422
        guard = {"products": ["p-1"], "categories": [], "within": "P30D"}
        guarded = offer | {"unless_bought": guard | {"within": "30d"}}
        assert (await api.post("/v1/offers", json=guarded)).json()["version"] == 3
        again = (await api.post("/v1/offers", json=guarded)).json()
        assert (again["version"], again["unless_bought"]) == (3, guard)
        assert (await api.post("/v1/offers", json=offer | {"unless_bought": {}})).status_code == 422
        assert (await api.post("/v1/offers", json=offer)).json()["unless_bought"] is None
        assert (await api.delete("/v1/offers/spring")).status_code == 204
        assert (await api.get("/v1/offers/spring")).status_code == 404


class TestTheInbox:
    async def client(self, stage: Stage, host: str, base: str, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app_of(stage), client=(host, 1)), base_url=base, headers=headers
        )

    async def test_shows_the_mail_as_it_looks_and_why_it_was_sent(self, stage: Stage) -> None:
        message = await sent(stage)
        async with await self.client(stage, "127.0.0.1", "http://127.0.0.1:8080") as here:
            listed = (await here.get("/inbox")).text
            assert "Kind of Blue" in listed and "anna@example.com" in listed
            page = (await here.get(f"/inbox/{message['id']}")).text
            assert 'sandbox="allow-popups allow-popups-to-escape-sandbox"' in page and "reach × act − base" in page
            assert "4.54" in page and "no address" in page
            letter = await here.get(f"/inbox/{message['id']}/letter")
            assert "Back to my cart" in letter.text and "/o/" not in letter.text
            assert "sandbox" in letter.headers["content-security-policy"]

    async def test_shows_what_was_withheld_with_its_reason_and_keeps_names_harmless(self, stage: Stage) -> None:
        nasty = await stage.customer("nasty", "email", traits={"first_name": "<script>alert(1)</script>"})
        await stage.learn(stage.product(user=nasty, name="<img src=x onerror=alert(1)>"))
        await stage.deliver(stage.intent(nasty), stage.intent(nasty, channels=["push"]))
        async with await self.client(stage, "127.0.0.1", "http://localhost:8080") as here:
            listed = (await here.get("/inbox")).text
            assert "<script>" not in listed and "<img src=x" not in listed and "push: no address" in listed
            only = (await here.get("/inbox", params={"state": "withheld"})).text
            assert "onerror" not in only

    @pytest.mark.parametrize(
        ("host", "base", "headers"),
        [
            ("203.0.113.9", "http://127.0.0.1:8080", {}),
            ("127.0.0.1", "http://127.0.0.1:8080", {"X-Forwarded-For": "203.0.113.9"}),
            ("127.0.0.1", "http://rebound.example:8080", {}),
        ],
    )
    async def test_from_elsewhere_needs_a_key(
        self, stage: Stage, host: str, base: str, headers: dict[str, str]
    ) -> None:
        async with await self.client(stage, host, base, **headers) as there:
            answer = await there.get("/inbox")
            assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic")
            with_key = await there.get("/inbox", auth=("anybody", await key_of(stage, "read")))
            assert with_key.status_code == 200

    async def test_needs_a_key_once_a_channel_is_configured(self, database_url: str, tmp_path: Path) -> None:
        async with (
            on_stage(database_url, tmp_path, smtp_url="smtp://127.0.0.1:1") as stage,
            await self.client(stage, "127.0.0.1", "http://127.0.0.1:8080") as here,
        ):
            assert (await here.get("/inbox")).status_code == 401


class TestApplyingFiles:
    @pytest.fixture
    async def server(self, stage: Stage) -> AsyncIterator[str]:
        """The API on a port: the command line is another process's and speaks HTTP."""
        http = uvicorn.Server(uvicorn.Config(app_of(stage), port=0, log_config=None, lifespan="off"))
        serving = asyncio.create_task(http.serve())
        await until(lambda: http.started, what="the server listens")
        yield f"http://127.0.0.1:{http.servers[0].sockets[0].getsockname()[1]}"
        http.should_exit = True
        await serving

    async def test_twice_changes_nothing(self, stage: Stage, server: str) -> None:
        await stage.owner.execute(
            "DELETE FROM dispatch.template; DELETE FROM dispatch.template_version; DELETE FROM dispatch.offer"
        )
        key = await key_of(stage, "marketing")
        first = await asyncio.to_thread(lambda: list(apply_templates(RULES, server, key)))
        assert "template cart-reminder: new" in first and "offer welcome: new" in first
        second = await asyncio.to_thread(lambda: list(apply_templates(RULES, server, key)))
        assert {line.split(": ")[1] for line in second} == {"unchanged"}
        assert threading.current_thread() is threading.main_thread()

    async def test_a_refusal_is_one_sentence(self, stage: Stage, server: str) -> None:
        with pytest.raises(ConfigurationError, match="401 No valid API key"):
            await asyncio.to_thread(lambda: list(apply_templates(RULES, server, "nope")))

    def test_a_file_that_is_wrong_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "templates").mkdir()
        (tmp_path / "templates" / "x.yml").write_text("subject: Hi\n")
        (tmp_path / "templates" / "x.liquid").write_text("{{ persn.x }}")
        with pytest.raises(
            ConfigurationError, match=r"x\.yml: text: there is no variable persn; did you mean person\?"
        ):
            list(apply_templates(tmp_path, "http://127.0.0.1:1", "k"))
