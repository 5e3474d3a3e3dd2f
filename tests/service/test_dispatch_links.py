"""Public links and pages: what a click, a scanner, a forger and fifty parallel presses do, over HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from services.dispatch import public
from services.dispatch.store.reports import add_hits
from shared import errors
from shared.events import Guard
from tests.support.dispatch import Stage
from tests.support.dispatch import stage as on_stage

PERSON = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"}
SCANNER = {"User-Agent": "SafeLinks Scanner"}


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with on_stage(database_url, tmp_path) as made:
        yield made


@pytest.fixture
async def browser(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    errors.install(app)
    d = stage.dispatch
    app.include_router(public.router(stage.context, d.signer, d.subscriptions, d.limits))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", headers=PERSON) as client:
        yield client


@pytest.fixture
async def letter(stage: Stage):
    """A cart letter that was sent to Anna."""
    anna = await stage.customer("anna", "email")
    await stage.learn(stage.product(user=anna))
    [message] = await stage.deliver(stage.intent(anna))
    stage.clock.set(stage.clock.now() + timedelta(minutes=5))
    await stage.watermark()
    return message


def link(message, kind: str) -> str:
    """The path of the first link of this kind in the message."""
    found = re.search(rf"http://127\.0\.0\.1:8080/{kind}/[\w-]+", (message["html"] or "") + message["body"])
    assert found, f"no {kind} in the message"
    return urlsplit(found[0]).path


async def confirmation(stage: Stage, **changes):
    """A confirmation mail to an address that somebody typed."""
    visitor, mail = stage.id("anonymous_id", f"a-{uuid4()}"), stage.id("email", "new@example.com", strong=False)
    said = {"channel": "email", "address": "new@example.com", "topics": ["news"], "form": "popup", "text_version": "7"}
    request = stage.event("Subscription Requested", visitor, mail, trust="public", properties=said)
    await stage.learn(request)
    addressed = stage.addressed(mail, request, ["news"], "popup")
    intent = stage.intent(
        visitor, kind="transactional", rule_name="double-opt-in", template="confirm-subscription",
        guard=Guard(since=stage.clock.now()), addressed=addressed, **changes,
    )  # fmt: skip
    [message] = await stage.deliver(intent)
    assert message["state"] == "sent"
    return message


class TestClicks:
    async def test_lead_to_the_stored_link_and_are_told_once(self, stage: Stage, browser, letter) -> None:
        for _ in range(3):
            answer = await browser.get(link(letter, "c"))
            assert (answer.status_code, answer.headers["location"]) == (302, "http://127.0.0.1:8080/")
        [clicked] = await stage.events("Email Clicked")
        assert clicked.properties["url"] == "http://127.0.0.1:8080/"
        assert clicked.properties["message_id"] == str(letter["id"])
        assert clicked.origin == letter["origin"]

    async def test_in_parallel_are_told_once(self, stage: Stage, browser, letter) -> None:
        await asyncio.gather(*(browser.get(link(letter, "c")) for _ in range(20)))
        assert len(await stage.events("Email Clicked")) == 1

    async def test_of_head_are_not_told(self, stage: Stage, browser, letter) -> None:
        assert (await browser.head(link(letter, "c"))).status_code == 302
        assert (await browser.head(link(letter, "o"))).status_code == 200
        assert await stage.events("Email Clicked") == [] and await stage.events("Email Opened") == []

    async def test_of_a_scanner_are_kept_and_not_told(self, stage: Stage, browser, letter) -> None:
        await browser.get(link(letter, "c"), headers=SCANNER)
        await browser.get(link(letter, "o"), headers=SCANNER)
        assert await stage.events("Email Clicked") == [] and await stage.events("Email Opened") == []
        assert await stage.owner.fetch("SELECT kind, bot FROM dispatch.hit ORDER BY kind") == [
            ("click", True),
            ("open", True),
        ]

    async def test_of_a_person_are_told_once_although_scanners_were_there_before_and_after(
        self, stage: Stage, browser, letter
    ) -> None:
        await browser.get(link(letter, "c"), headers=SCANNER)
        stage.clock.set(stage.clock.now() + timedelta(minutes=5))
        await asyncio.gather(*(browser.get(link(letter, "c")) for _ in range(10)))
        await browser.get(link(letter, "c"), headers=SCANNER)
        await browser.get(link(letter, "c"))
        [clicked] = await stage.events("Email Clicked")
        assert clicked.occurred_at == stage.clock.now()
        [hit] = await stage.owner.fetch("SELECT at, bot FROM dispatch.hit")
        assert (hit["at"], hit["bot"]) == (clicked.occurred_at, False)

    async def test_lead_nowhere_else(self, browser, letter) -> None:
        path = link(letter, "c")
        for other in (f"{path}?url=https://evil.example", f"{path}/https://evil.example"):
            answer = await browser.get(other)
            assert answer.headers.get("location") in (None, "http://127.0.0.1:8080/")

    async def test_that_are_forged_or_of_another_kind_are_not_found(self, stage: Stage, browser, letter) -> None:
        token = link(letter, "u").split("/")[-1]
        unknown = stage.dispatch.signer.token("click", letter["id"], 99)
        for bad in (token, unknown, token[:-2] + "AA", "x", "%00", "a" * 500):
            assert (await browser.get(f"/c/{bad}")).status_code == 404
        assert await stage.events("Email Clicked") == []


class TestOpens:
    async def test_show_a_pixel_and_are_told_once(self, stage: Stage, browser, letter) -> None:
        for _ in range(2):
            answer = await browser.get(link(letter, "o"))
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/gif")
        assert len(await stage.events("Email Opened")) == 1

    async def test_of_an_unknown_token_look_the_same_and_tell_nothing(self, stage: Stage, browser) -> None:
        assert (await browser.get("/o/unknown")).headers["content-type"] == "image/gif"
        assert await stage.events() == []

    async def test_that_a_provider_saw_are_told_although_a_scanner_was_there_before(
        self, stage: Stage, browser, letter
    ) -> None:
        await browser.get(link(letter, "o"), headers=SCANNER)
        hit, found = (letter["id"], "open"), []
        for _ in range(2):
            async with stage.context.database.transaction() as tx:
                found.append(await add_hits(tx, [hit], stage.clock.now()))
        assert found == [{hit}, set()]


class TestUnsubscribing:
    async def test_scanners_that_follow_every_link_twice_change_nothing(self, stage: Stage, browser, letter) -> None:
        paths = [urlsplit(url).path for url in letter["urls"].values()]
        asked = [browser.request(method, path) for path in paths for method in ("GET", "HEAD") * 2]
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.consent") == 0
        assert await stage.events("Unsubscribed") == []

    async def test_one_click_ends_all_letters_without_a_cookie_or_a_page(self, stage: Stage, browser, letter) -> None:
        answer = await browser.post(link(letter, "u"), data={"List-Unsubscribe": "One-Click"})
        assert (answer.status_code, answer.text) == (200, "unsubscribed")
        [event] = await stage.events("Unsubscribed")
        assert event.properties["address"] == "anna@example.com" and event.properties["by"] == "one-click"
        assert event.origin == letter["address_node"]

    async def test_one_click_as_multipart_works_too(self, stage: Stage, browser, letter) -> None:
        answer = await browser.post(link(letter, "u"), files={"List-Unsubscribe": (None, "One-Click")})
        assert answer.status_code == 200
        assert len(await stage.events("Unsubscribed")) == 1

    async def test_the_page_has_a_button_and_its_post_does_it(self, stage: Stage, browser, letter) -> None:
        page = await browser.get(link(letter, "u"))
        assert "Unsubscribe from everything" in page.text and "a…@example.com" in page.text
        assert "anna@example.com" not in page.text
        done = await browser.post(link(letter, "u"), data={"action": "all"})
        assert "You will get no more" in done.text
        assert "does not write to this address" in (await browser.get(link(letter, "u"))).text

    async def test_fifty_presses_at_once_are_one_opt_out(self, stage: Stage, browser, letter) -> None:
        answers = await asyncio.gather(*(browser.post(link(letter, "u")) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(await stage.events("Unsubscribed")) == 1

    async def test_some_topics_can_be_kept(self, stage: Stage, browser, letter) -> None:
        mail = stage.id("email", "anna@example.com")
        said = {
            "channel": "email",
            "address": mail.value,
            "topics": ["news", "offers"],
            "at": "2026-03-10T09:00:00Z",
            "ip": "::1",
        }
        await stage.learn(stage.event("Consent Granted", stage.id("user_id", "anna"), mail, properties=said))
        page = await browser.get(link(letter, "u"))
        assert re.findall(r'value="(\w+)" checked', page.text) == ["marketing", "news", "offers"]
        done = await browser.post(link(letter, "u"), data={"action": "save", "keep": ["news"]})
        assert "You will still get: news" in done.text
        [event] = await stage.events("Unsubscribed")
        assert event.properties["topics"] == ["marketing", "offers"]

    async def test_a_forged_token_ends_nothing(self, stage: Stage, browser, letter) -> None:
        confirm_token = stage.dispatch.signer.token("confirm", letter["id"])
        for token in (confirm_token, "x" * 42):
            assert (await browser.post(f"/u/{token}")).status_code == 404
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.consent") == 0

    async def test_pages_let_nothing_else_in(self, browser, letter) -> None:
        headers = (await browser.get(link(letter, "u"))).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"


class TestConfirming:
    async def test_a_get_shows_a_button_and_a_post_confirms(self, stage: Stage, browser) -> None:
        message = await confirmation(stage)
        page = await browser.get(link(message, "confirm"))
        assert "Yes, write to me" in page.text and await stage.events("Subscription Confirmed") == []
        assert "address is confirmed" in (await browser.post(link(message, "confirm"))).text
        [event] = await stage.events("Subscription Confirmed")
        assert event.trust == "internal" and event.origin == message["address_node"]
        said = {"address": "new@example.com", "channel": "email", "topics": ["news"], "form": "popup"}
        assert said.items() <= event.properties.items()
        await stage.learn(event)
        row = await stage.owner.fetchrow("SELECT * FROM cdp.node WHERE id = $1", event.origin)
        assert (row["kind"], row["status"]) == ("email", "confirmed")
        ours = await stage.owner.fetchrow("SELECT id, proof FROM dispatch.consent")
        assert ours["id"] == event.id and ours["proof"]["form"] == "popup"

    async def test_presses_again_and_in_parallel_change_nothing(self, stage: Stage, browser) -> None:
        message = await confirmation(stage)
        answers = await asyncio.gather(*(browser.post(link(message, "confirm")) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(await stage.events("Subscription Confirmed")) == 1
        assert await stage.owner.fetchval("SELECT count(*) FROM dispatch.consent") == 1

    async def test_an_old_confirmation_does_not_lift_a_later_opt_out(self, stage: Stage, browser) -> None:
        message = await confirmation(stage)
        await browser.post(link(message, "confirm"))
        await stage.learn(*await stage.events("Subscription Confirmed"))
        stage.clock.set(stage.clock.now() + timedelta(hours=1))
        await stage.dispatch.subscriptions.withdraw(message["id"], None, "page", {})
        stage.clock.set(stage.clock.now() + timedelta(hours=1))
        assert "confirmed already" in (await browser.post(link(message, "confirm"))).text
        found = await stage.dispatch.subscriptions.look(message["id"])
        assert found is not None and found.out

    async def test_a_new_request_after_an_opt_out_can_be_confirmed(self, stage: Stage, browser) -> None:
        first = await confirmation(stage)
        await browser.post(link(first, "confirm"))
        stage.clock.set(stage.clock.now() + timedelta(days=2))
        await stage.dispatch.subscriptions.withdraw(first["id"], None, "page", {})
        stage.clock.set(stage.clock.now() + timedelta(hours=1))
        second = await confirmation(stage)
        stage.clock.set(stage.clock.now() + timedelta(hours=1))
        await browser.post(link(second, "confirm"))
        found = await stage.dispatch.subscriptions.look(second["id"])
        assert found is not None and found.topics == ["news"]

    async def test_a_link_that_is_too_old_says_so(self, stage: Stage, browser) -> None:
        message = await confirmation(stage)
        stage.clock.set(stage.clock.now() + timedelta(days=14, seconds=1))
        assert (await browser.post(link(message, "confirm"))).status_code == 410
        assert await stage.events("Subscription Confirmed") == []

    async def test_a_token_of_another_message_confirms_nothing(self, stage: Stage, browser, letter) -> None:
        token = stage.dispatch.signer.token("confirm", letter["id"])  # of a letter that asked for nothing
        assert (await browser.post(f"/confirm/{token}")).status_code == 404
        assert await stage.events("Subscription Confirmed") == []


class TestForgetting:
    async def purge(self, stage: Stage, message) -> None:
        mail = stage.id("email", "new@example.com")
        said = {"contact": "unconfirmed", "channel": "email", "address": mail.value}
        await stage.learn(stage.event("Contact Purged", mail, trust="internal", properties=said))

    async def test_a_purged_address_is_forgotten_here_too_and_its_links_lead_nowhere(
        self, stage: Stage, browser
    ) -> None:
        message = await confirmation(stage)
        waiting = stage.intent(stage.id("user_id", "x"))  # somebody else's message is left alone
        await stage.handle(waiting)
        await self.purge(stage, message)
        assert await stage.dispatch.forget() == 1
        after = await stage.message(message["id"])
        assert (after["state"], after["address"], after["body"], after["urls"]) == ("sent", None, None, None)
        assert "new@example.com" not in str(dict(after))
        assert (await browser.get(link(message, "confirm"))).status_code == 404
        assert (await browser.post(link(message, "confirm"))).status_code == 404
        assert await stage.events("Subscription Confirmed") == []
        assert await stage.dispatch.forget() == 0

    async def test_an_address_that_comes_back_at_once_does_not_save_what_was_written_to_it_before(
        self, stage: Stage
    ) -> None:
        message = await confirmation(stage)
        stage.clock.set(stage.clock.now() + timedelta(hours=1))
        await self.purge(stage, message)
        stage.clock.set(stage.clock.now() + timedelta(seconds=1))
        mail = stage.id("email", "new@example.com")
        await stage.learn(stage.event("Product Viewed", mail))
        assert await stage.dispatch.forget() == 1
        after = await stage.message(message["id"])
        assert (after["address"], after["body"]) == (None, None)

    async def test_a_message_that_waits_for_a_purged_address_is_withheld(self, stage: Stage) -> None:
        message = await confirmation(stage)
        visitor = await stage.owner.fetchval("SELECT origin FROM dispatch.message")
        intent = stage.intent(
            stage.id("user_id", "x"), origin=visitor, kind="transactional", template="confirm-reminder"
        )
        addressed = {"channel": "email", "address": "new@example.com", "node": str(message["address_node"])}
        await self.purge(stage, message)
        await stage.handle(intent)
        await stage.owner.execute(
            "UPDATE dispatch.message SET intent = intent || $2 WHERE id = $1", intent.message, {"addressed": addressed}
        )
        await stage.decide()
        after = await stage.message(intent.message)
        assert (after["state"], after["reason_code"]) == ("withheld", "gone")
        assert "new@example.com" not in str(after["intent"])

    async def test_a_purged_address_gets_no_second_confirmation_mail_for_thirty_days(self, stage: Stage) -> None:
        await self.purge(stage, await confirmation(stage))
        stage.clock.set(stage.clock.now() + timedelta(days=29))
        with pytest.raises(AssertionError):
            await confirmation(stage)
        reason = await stage.owner.fetchval("SELECT reason FROM dispatch.message WHERE state = 'withheld'")
        assert "left in peace for 30 days" in reason
        stage.clock.set(stage.clock.now() + timedelta(days=2))
        assert (await confirmation(stage))["state"] == "sent"
