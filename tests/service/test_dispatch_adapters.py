"""Adapters told by API, test messages, the ceiling of spending: over HTTP on real PostgreSQL, with a carrier that is a
process of its own and keeps a ledger of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.audit.counting import _charges
from services.dispatch.api import routers
from services.dispatch.secrets import Sealer
from services.dispatch.service import Dispatch
from services.dispatch.webhooks import router as webhooks
from shared import errors
from shared.auth import create_key
from tests.support.carrier_peer import TOKEN, CarrierPeer
from tests.support.contexts import context_for
from tests.support.dispatch import NOON, Stage
from tests.support.dispatch import stage as on_stage

PLUGINS = Path(__file__).parent.parent / "support" / "channels"
CANARY = "canary-7d1f"


@pytest.fixture(scope="module")
def running_carrier() -> Iterator[CarrierPeer]:
    with CarrierPeer() as peer:
        yield peer


@pytest.fixture
def carrier(running_carrier: CarrierPeer) -> CarrierPeer:
    running_carrier.reset()
    return running_carrier


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with on_stage(database_url, tmp_path, channels_path=(PLUGINS,), outside_allow=("127.0.0.0/8",)) as made:
        yield made


def app_of(stage: Stage) -> FastAPI:
    app = FastAPI()
    app.state.database = stage.context.database
    errors.install(app)
    d = stage.dispatch
    for router in routers(stage.context, d.adapter_types, d.signer, d.shop, d.subscriptions, d.desk):
        app.include_router(router)
    app.include_router(webhooks(stage.context, d.adapters, d.settings, d.reports, d.limits))
    return app


@pytest.fixture
async def api(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    _, key = await create_key(stage.owner, "test admin", "admin", NOON)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app_of(stage), client=("127.0.0.1", 1))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1:8080", headers={"Authorization": f"Bearer {key}"}
    ) as client:
        yield client


async def tell(api: httpx.AsyncClient, carrier: CarrierPeer, **more: Any) -> dict[str, Any]:
    document = {"url": carrier.url, "token": TOKEN, "signing_key": "k" * 20, **more}
    answer = await api.put("/v1/channels/sms/adapters/carrier", json=document)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def receipt(stage: Stage, name: str = "ivan", **changes: Any) -> Any:
    user = await stage.customer(name, "sms")
    return stage.receipt(user, channels=["sms"], **changes)


class TestTelling:
    async def test_an_adapter_serves_once_it_was_told_its_settings_and_no_longer_when_they_are_gone(
        self, stage: Stage, api: httpx.AsyncClient, carrier: CarrierPeer
    ) -> None:
        async def serves() -> str:
            return (await api.get("/v1/channels/sms")).json()["serves"]

        assert await serves() == "inbox-sms"
        told = await tell(api, carrier)
        assert (told["serves"], told["told"], told["version"]) == (True, True, 1)
        assert await serves() == "carrier"
        [message] = await stage.deliver(await receipt(stage))
        assert (message["state"], message["adapter"]) == ("sent", "carrier")
        assert [taken["to"] for taken in carrier.taken()] == [message["address"]]
        assert (await api.delete("/v1/channels/sms/adapters/carrier")).status_code == 204
        assert await serves() == "inbox-sms"
        [message] = await stage.deliver(await receipt(stage, "olga"))
        assert message["adapter"] == "inbox-sms" and len(carrier.taken()) == 1

    async def test_secrets_are_written_and_never_read_back(
        self, stage: Stage, api: httpx.AsyncClient, carrier: CarrierPeer
    ) -> None:
        await tell(api, carrier, token=CANARY)
        listed = await api.get("/v1/channels/sms/adapters")
        one = next(item for item in listed.json()["items"] if item["name"] == "carrier")
        assert one["secrets"] == {"token": True, "signing_key": True}
        assert one["settings"] == {"url": carrier.url, "account": "shop"}
        assert CANARY not in listed.text
        bad = await api.put("/v1/channels/sms/adapters/carrier", json={"url": "no url", "token": CANARY})
        assert bad.status_code == 422 and CANARY not in bad.text
        everything = await stage.owner.fetch(
            "SELECT to_jsonb(a)::text AS row FROM dispatch.adapter a "
            "UNION ALL SELECT to_jsonb(c)::text FROM platform.change_log c"
        )
        assert len(everything) == 2
        assert not any(CANARY in row["row"] or CANARY.encode().hex() in row["row"] for row in everything)

    async def test_what_cannot_be_read_lets_messages_wait_and_leaves_no_trail(
        self, stage: Stage, api: httpx.AsyncClient, carrier: CarrierPeer
    ) -> None:
        """SECRET_KEY was changed: nothing goes to the inbox instead, nothing turns round and round."""
        await tell(api, carrier)
        other = Sealer(b"another deployment's secret".ljust(32), stage.context.bits)
        sealed = other.seal("carrier", {"token": TOKEN})
        await stage.owner.execute("UPDATE dispatch.adapter SET secrets = $1", sealed)
        intent = await receipt(stage)
        await stage.handle(intent)
        for _ in range(5):
            await stage.decide()
            await stage.dispatch.sender.start_calls()
        message = await stage.message(intent.message)
        assert (message["state"], message["decisions"], message["attempts"]) == ("queued", 1, 0)
        assert message["due_at"] > stage.clock.now()
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.contact") == 0
        listed = (await api.get("/v1/channels/sms/adapters")).json()["items"]
        said = next(item for item in listed if item["name"] == "carrier")
        assert "SECRET_KEY" in said["problem"] and "SECRET_KEY" in said["pause"]["why"]
        assert not list((stage.inbox / "sms").glob("*.json"))
        # A test message is refused, and nothing was called that would have to be paid for.
        answer = await api.post("/v1/channels/sms/test", json={"address": "+79161234567"})
        assert (answer.status_code, carrier.taken()) == (422, [])
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.test") == 0
        await tell(api, carrier)
        stage.clock.set(message["due_at"])
        await stage.decide()
        await stage.send()
        assert (await stage.message(intent.message))["adapter"] == "carrier" and len(carrier.taken()) == 1

    async def test_a_secret_that_is_left_out_stays_and_null_takes_it_away(
        self, stage: Stage, api: httpx.AsyncClient, carrier: CarrierPeer
    ) -> None:
        await tell(api, carrier)
        changed = await api.put(
            "/v1/channels/sms/adapters/carrier", json={"url": carrier.url, "account": "other", "signing_key": None}
        )
        assert changed.json()["secrets"] == {"token": True, "signing_key": False}
        assert changed.json()["version"] == 2
        [message] = await stage.deliver(await receipt(stage))
        assert message["state"] == "sent"  # with the token that was kept

    async def test_what_is_wrong_is_said_by_field(self, api: httpx.AsyncClient) -> None:
        answer = await api.put("/v1/channels/sms/adapters/carrier", json={"url": "ftp://x", "colour": 1})
        assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
        pointers = {error["pointer"] for error in answer.json()["errors"]}
        assert pointers == {"#/url", "#/token", "#/colour"}

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/v1/channels/sms/adapters/nobody", 404),
            ("/v1/channels/email/adapters/carrier", 404),
            ("/v1/channels/sms/adapters/inbox-sms", 409),
        ],
    )
    async def test_an_adapter_that_cannot_be_told_is_refused(
        self, api: httpx.AsyncClient, path: str, status: int
    ) -> None:
        assert (await api.put(path, json={"url": "https://x.example", "token": "t"})).status_code == status

    async def test_the_other_processes_see_it_at_once(
        self, stage: Stage, api: httpx.AsyncClient, carrier: CarrierPeer, database_url: str, tmp_path: Path
    ) -> None:
        """A process that was there before the change, and has sent with what held then, uses what holds now."""
        await tell(api, carrier, token="an old token")
        async with context_for(
            database_url,
            role="dripline_dispatch",
            clock=stage.clock,
            leases=False,
            data_dir=tmp_path,
            channels_path=(PLUGINS,),
            outside_allow=("127.0.0.0/8",),
        ) as context:
            other = Dispatch(context)
            mine, stage.dispatch = stage.dispatch, other
            [refused] = await stage.deliver(await receipt(stage))
            assert refused["state"] == "failed"
            await tell(api, carrier)
            [message] = await stage.deliver(await receipt(stage, "olga"))
            stage.dispatch = mine
            await other.close()
        assert message["state"] == "sent"

    async def test_secrets_of_another_deployment_are_asked_for_again(
        self, stage: Stage, api: httpx.AsyncClient, carrier: CarrierPeer
    ) -> None:
        await tell(api, carrier)
        await stage.owner.execute(  # its last byte turned over: set to a fixed one, it may be what it was
            "UPDATE dispatch.adapter SET secrets ="
            " set_byte(secrets, length(secrets) - 1, get_byte(secrets, length(secrets) - 1) # 255)"
        )
        one = (await api.get("/v1/channels/sms/adapters/carrier")).json()
        assert not one["serves"] and "tell the adapter its secrets again" in one["problem"]
        answer = await api.put("/v1/channels/sms/adapters/carrier", json={"url": carrier.url, "token": TOKEN})
        assert [error["pointer"] for error in answer.json()["errors"]] == ["#/signing_key"]
        await tell(api, carrier)

    async def test_what_was_chosen_for_an_adapter_that_lost_its_settings_is_chosen_anew(
        self, stage: Stage, api: httpx.AsyncClient, carrier: CarrierPeer
    ) -> None:
        await tell(api, carrier)
        intent = await receipt(stage)
        await stage.handle(intent)
        await stage.decide()
        assert (await stage.message(intent.message))["adapter"] == "carrier"
        await api.delete("/v1/channels/sms/adapters/carrier")
        await stage.dispatch.sender.start_calls()
        assert (await stage.message(intent.message))["state"] == "queued"
        await stage.decide()
        await stage.send()
        message = await stage.message(intent.message)
        assert (message["state"], message["adapter"]) == ("sent", "inbox-sms")
        assert carrier.taken() == []

    async def test_only_an_admin_may_look_or_tell(self, stage: Stage, carrier: CarrierPeer) -> None:
        _, key = await create_key(stage.owner, "marketer", "marketing", NOON)  # type: ignore[arg-type]
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app_of(stage)), base_url="http://d.example", headers=headers
        ) as client:
            for method, path in [
                ("GET", "/v1/channels/sms/adapters"),
                ("PUT", "/v1/channels/sms/adapters/carrier"),
                ("DELETE", "/v1/channels/sms/adapters/carrier"),
                ("POST", "/v1/channels/sms/test"),
            ]:
                answer = await client.request(method, path, json={"address": "+79160000000"})
                assert answer.status_code == 403, path

    async def test_the_inbox_closes_when_an_adapter_that_was_told_leaves_the_machine(
        self, api: httpx.AsyncClient, carrier: CarrierPeer
    ) -> None:
        key = api.headers.pop("authorization")
        assert (await api.get("/inbox")).status_code == 200
        await tell_with(api, key, carrier)
        assert (await api.get("/inbox")).status_code == 401


async def tell_with(api: httpx.AsyncClient, key: str, carrier: CarrierPeer) -> None:
    document = {"url": carrier.url, "token": TOKEN}
    await api.put("/v1/channels/sms/adapters/carrier", json=document, headers={"Authorization": key})


class TestTestMessages:
    async def test_goes_to_the_provider_for_real_and_stands_in_the_books(
        self, stage: Stage, api: httpx.AsyncClient, carrier: CarrierPeer
    ) -> None:
        await tell(api, carrier)
        carrier.behave(price="1.70")
        answer = await api.post("/v1/channels/sms/test", json={"address": "8 916 123-45-67", "text": "Hello"})
        said = answer.json()
        assert (said["outcome"], said["adapter"], said["cost"]) == ("sent", "carrier", 1.7)
        assert [(taken["to"], taken["text"]) for taken in carrier.taken()] == [("+79161234567", "Hello")]
        assert carrier.taken()[0]["id"] == said["id"]
        assert await stage.owner.fetchval("SELECT sum(amount) FROM dispatch.charge") == Decimal("1.70")
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.message") == 0
        book = await _charges(stage.owner)
        assert book.balanced and book.right == {"cost ledger": Decimal("1.70")}
        [listed] = (await api.get("/v1/channels/sms/test")).json()["items"]
        assert listed["id"] == said["id"] and "address" not in listed

    async def test_a_refusal_is_answered_as_what_it_is_and_costs_nothing(
        self, stage: Stage, api: httpx.AsyncClient, carrier: CarrierPeer
    ) -> None:
        await tell(api, carrier, token="wrong")
        answer = await api.post("/v1/channels/sms/test", json={"address": "+79161234567"})
        assert (answer.status_code, answer.json()["outcome"], answer.json()["cost"]) == (200, "failed", 0.0)
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.charge") == 0

    async def test_a_provider_that_never_answers_is_unknown_and_paid_for(
        self, stage: Stage, api: httpx.AsyncClient, carrier: CarrierPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await tell(api, carrier)
        carrier.behave(mode="accept-then-hang")
        monkeypatch.setattr("services.dispatch.trying.START_SECONDS", 1.0)
        monkeypatch.setattr(stage.dispatch.adapter_types["carrier"], "timeout", timedelta(seconds=1))
        answer = await api.post("/v1/channels/sms/test", json={"address": "+79161234567"})
        assert answer.json()["outcome"] == "unknown"
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.charge") == 1

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"address": "not a number"}, "#/address"),
            ({"address": "+79161234567", "adapter": "smtp"}, "#/adapter"),
            ({"address": "+79161234567", "text": ""}, "#/text"),
        ],
    )
    async def test_what_cannot_be_tried_is_said(
        self, api: httpx.AsyncClient, body: dict[str, Any], pointer: str
    ) -> None:
        answer = await api.post("/v1/channels/sms/test", json=body)
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]

    async def test_a_suppressed_address_gets_no_test_message_either(
        self, api: httpx.AsyncClient, carrier: CarrierPeer
    ) -> None:
        await tell(api, carrier)
        await api.post("/v1/suppressions", json={"address": "+79161234567", "channel": "sms"})
        answer = await api.post("/v1/channels/sms/test", json={"address": "+79161234567"})
        assert answer.status_code == 422 and "suppressed" in answer.text
        assert carrier.taken() == []

    async def test_one_that_died_in_the_call_is_unknown_in_the_end(self, stage: Stage) -> None:
        await stage.owner.execute(
            """
            INSERT INTO dispatch.test (id, channel, adapter, address_node, by, at, cost, units, call_until)
            VALUES (gen_random_uuid(), 'sms', 'carrier', gen_random_uuid(), 'x', $1, 2.5, 1, clock_timestamp() - interval '1 s')
            """,
            NOON,
        )
        assert await stage.dispatch.trials.reap() == 1
        assert await stage.dispatch.trials.reap() == 0
        assert await stage.owner.fetchval("SELECT sum(amount) FROM dispatch.charge") == Decimal("2.5")


class TestSpending:
    async def test_a_message_that_costs_more_than_is_left_is_withheld(
        self, stage: Stage, api: httpx.AsyncClient
    ) -> None:
        """Ten receipts of 3.50 in one batch under a ceiling of 10: two are sent, and the rest say why not."""
        answer = await api.patch("/v1/channels/sms", json={"budget": {"day": 10}, "unit_cost": 3.5})
        assert answer.json()["budget"] == {"day": 10.0, "month": None}
        intents = [await receipt(stage, f"p{n}") for n in range(10)]
        rows = await stage.deliver(*intents)
        assert (
            sorted((row["state"], row["reason_code"]) for row in rows)
            == [("sent", None)] * 2 + [("withheld", "spend-ceiling")] * 8
        )
        assert await stage.owner.fetchval("SELECT amount FROM dispatch.spent") == Decimal("7.0")
        why = next(row["reason"] for row in rows if row["state"] == "withheld")
        assert "3.0 of 10" in why

    async def test_the_next_day_there_is_room_again_but_not_over_the_month(
        self, stage: Stage, api: httpx.AsyncClient
    ) -> None:
        await api.patch("/v1/channels/sms", json={"budget": {"day": 4, "month": 7}, "unit_cost": 3.5})
        states = []
        for day in range(3):
            stage.clock.set(NOON + timedelta(days=day))
            await stage.watermark()
            [row] = await stage.deliver(await receipt(stage, f"p{day}"))
            states.append((row["state"], row["reason_code"]))
        assert states == [("sent", None), ("sent", None), ("withheld", "spend-ceiling")]

    async def test_what_is_chosen_and_not_sent_yet_counts(self, stage: Stage, api: httpx.AsyncClient) -> None:
        await api.patch("/v1/channels/sms", json={"budget": {"day": 5}, "unit_cost": 3.5})
        first, second = await receipt(stage, "p1"), await receipt(stage, "p2")
        await stage.handle(first)
        await stage.decide()
        await stage.handle(second)
        await stage.decide()
        assert (await stage.message(second.message))["reason_code"] == "spend-ceiling"

    async def test_a_test_message_does_not_break_the_ceiling(self, api: httpx.AsyncClient) -> None:
        await api.patch("/v1/channels/sms", json={"budget": {"day": 5}, "unit_cost": 3.5})
        body = {"address": "+79161234567", "text": "one segment"}
        assert (await api.post("/v1/channels/sms/test", json=body)).status_code == 200
        refused = await api.post("/v1/channels/sms/test", json=body)
        assert refused.status_code == 409 and "spent" in refused.json()["title"]

    async def test_a_country_that_is_not_on_the_list_is_not_written_to(
        self, stage: Stage, api: httpx.AsyncClient
    ) -> None:
        assert (await api.patch("/v1/channels/sms", json={"countries": ["Russia"]})).status_code == 422
        await api.patch("/v1/channels/sms", json={"countries": ["KZ", "BY"]})
        [row] = await stage.deliver(await receipt(stage))
        assert (row["state"], row["reason_code"]) == ("withheld", "country")
        await api.patch("/v1/channels/sms", json={"countries": ["KZ", "RU"]})
        [row] = await stage.deliver(await receipt(stage, "olga"))
        assert row["state"] == "sent"
