"""Stories of carts that were left alone."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from services.dispatch.bots import TOO_SOON
from tests.faults.deployment import Deployment
from tests.support.shop import (
    BROWSER,
    Person,
    Shop,
    added,
    consent_granted,
    identify,
    links,
    ordered,
    page_of,
    product,
    text_of,
    track,
)
from tests.support.wait import until

pytestmark = pytest.mark.timeout(180)
RECORD = product("records", 1500, name="Kind of Blue")
CLOCK = product("clocks", 1500, name="Wall clock")  # the rule for carts with clocks waits longer
PATIENCE_WITH_CLOCKS = timedelta(seconds=4)


async def come_in(shop: Shop, person: Person) -> str:
    """Identified by e-mail, agreed to be written to; the profile's id."""
    await shop.tell(identify(person, first_name=person.name), consent_granted(person))
    return str((await shop.known(user_id=person.user_id))["id"])


async def test_three_posts_bring_a_cart_letter_that_says_why_it_was_sent(shop: Shop) -> None:
    anna = Person("Anna")
    profile = await come_in(shop, anna)
    await shop.tell(added(anna, RECORD))

    [letter] = await shop.letters(anna)
    assert letter.message["Subject"] == "Kind of Blue is waiting for you"
    assert "Anna, you left something behind" in text_of(letter)

    [message] = await shop.settled("cart", profile)
    assert (message["state"], message["channel"], message["address"]) == ("sent", "email", anna.email)
    alternatives = {one["channel"]: one for one in message["alternatives"]}
    email = alternatives["email"]
    # design §6 by hand: 0.35 × 0.06 − 0.01 = 0.011; a third of 1 500 is 450; 0.01 the letter; 2 % lost × 4 × the gain
    assert (email["chosen"], email["effect"], email["value"], email["cost"]) == (True, 0.011, 450, 0.01)
    assert email["net"] == pytest.approx(4.54, abs=0.01)
    assert not alternatives["sms"]["chosen"]
    assert alternatives["sms"]["reason"]["code"] == "no-address"
    await shop.heard(profile, "Email Sent")


async def test_an_opened_and_a_clicked_letter_stand_on_the_timeline_once(shop: Shop) -> None:
    clara = Person("Clara")
    profile = await come_in(shop, clara)
    await shop.tell(added(clara, RECORD))
    [letter] = await shop.letters(clara)

    [pixel] = links(page_of(letter), "o")
    click = links(text_of(letter), "c")[0]
    # Whoever looks within a second of the sending is taken for a scanner, which does not use up the person's own look.
    await shop.follow(pixel)
    await shop.follow(click)
    [message] = await shop.settled("cart", profile)
    sent = datetime.fromisoformat(message["sent_at"])
    await until(lambda: datetime.now(UTC) - sent > TOO_SOON, what="the letter was sent more than a second ago")
    for _ in range(2):
        seen = await shop.follow(pixel)
        assert (seen.status_code, seen.headers["content-type"]) == (200, "image/gif")
        led = await shop.follow(click)
        assert led.status_code == 302
        assert led.headers["location"].startswith("http://shop.example/")
    assert (await shop.follow(pixel, "HEAD")).status_code == 200

    await shop.heard(profile, "Email Opened")
    await shop.heard(profile, "Email Clicked")
    names = [event["name"] for event in await shop.timeline(profile)]
    assert (names.count("Email Opened"), names.count("Email Clicked")) == (1, 1)


async def test_after_one_click_the_next_cart_is_withheld_as_unsubscribed(shop: Shop) -> None:
    boris = Person("Boris")
    profile = await come_in(shop, boris)
    await shop.tell(added(boris, RECORD))
    [letter] = await shop.letters(boris)
    assert letter.message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    link = letter.message["List-Unsubscribe"].strip(" <>")
    assert links(text_of(letter), "u") == [link]

    assert (await shop.follow(link)).status_code == 200  # looking changes nothing
    assert await may_write(shop, boris)
    answer = await shop.follow(link, "POST", data={"List-Unsubscribe": "One-Click"}, headers={"User-Agent": BROWSER})
    assert answer.status_code == 200
    await shop.heard(profile, "Unsubscribed")
    assert not await may_write(shop, boris)

    await shop.tell(added(boris, RECORD))
    messages = await shop.settled("cart", profile, count=2)
    assert [message["state"] for message in messages] == ["sent", "withheld"]
    assert messages[1]["reason"]["code"] == "opted-out"
    assert messages[1]["reason"]["text"].startswith("email: unsubscribed at ")
    assert len(shop.smtp.letters(boris.email)) == 1


async def may_write(shop: Shop, person: Person) -> bool:
    found = await shop.person(user_id=person.user_id)
    assert found is not None
    [address] = [one for one in found["addresses"] if one["kind"] == "email"]
    return any(one["may_write"] for one in address["consents"])


async def test_an_order_before_the_timer_keeps_everybody_out_and_why_not_says_so(shop: Shop) -> None:
    dora = Person("Dora")
    profile = await come_in(shop, dora)
    await shop.tell(added(dora, RECORD), ordered(dora, "o-dora-1", RECORD))
    # somebody who came later and ordered nothing has a letter: so Dora's timer is over, too
    later = Person("Later")
    await come_in(shop, later)
    await shop.tell(added(later, RECORD))
    await shop.letters(later)

    answer = await shop.get("/v1/decisions/why-not", rule="cart", profile=profile)
    assert (answer["entered"], answer["code"]) == (False, "stopped")
    assert answer["why"].startswith("stopped before entry: Order Completed (order o-dora-1) at ")
    assert await shop.all("/v1/runs", rule="cart", profile=profile) == []
    assert await shop.messages("cart", profile) == []
    assert shop.smtp.letters(dora.email) == []


async def test_who_ordered_while_profile_was_late_gets_no_letter(shop: Shop, deployment: Deployment) -> None:
    zoe = Person("Zoe")
    profile = await come_in(shop, zoe)
    await shop.tell(added(zoe, CLOCK))
    [cart] = await shop.heard(profile, "Product Added")
    due = datetime.fromisoformat(cart["learned_at"]) + PATIENCE_WITH_CLOCKS
    async with nobody_may_store_events(deployment):
        await shop.tell(ordered(zoe, "o-zoe-1", CLOCK))
        # the order waits in the backlog at the moment at which a system that asks the clock would write
        await until(lambda: datetime.now(UTC) > due + timedelta(seconds=1), what="the timer's moment is over")
        assert await shop.all("/v1/runs", rule="cart-patient", profile=profile) == []
    await shop.heard(profile, "Order Completed")
    later = Person("Zoe-later")
    await come_in(shop, later)
    await shop.tell(added(later, CLOCK))
    await shop.letters(later)

    answer = await shop.get("/v1/decisions/why-not", rule="cart-patient", profile=profile)
    assert (answer["entered"], answer["code"]) == (False, "stopped")
    assert await shop.messages("cart-patient", profile) == []
    assert shop.smtp.letters(zoe.email) == []


@asynccontextmanager
async def nobody_may_store_events(deployment: Deployment) -> AsyncIterator[None]:
    """What makes profile late: its inserts wait for a lock that somebody else holds."""
    connection = await asyncpg.connect(deployment.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE profile.event IN SHARE MODE")
            yield
    finally:
        await connection.close()


async def test_an_anonymous_cart_is_written_about_to_the_address_of_who_logs_in(shop: Shop) -> None:
    eva = Person("Eva")
    account = await come_in(shop, eva)
    site = await shop.post("/v1/sources", {"name": "shop-window", "kind": "signed"})
    browser = {"anonymousId": "a-eva"}
    cart = {**browser, "type": "track", "event": "Product Added", "properties": CLOCK}
    await shop.tell(cart, key=site["write_key"])
    stranger = await shop.known(anonymous_id="a-eva")
    assert stranger["id"] != account
    # the shop's server vouches for the user id in the page that it shows to somebody who is logged in
    signature = hmac.new(site["signing_secret"].encode(), eva.user_id.encode(), hashlib.sha256).hexdigest()
    login = {**browser, "type": "identify", "userId": eva.user_id, "context": {"dripline": {"signature": signature}}}
    await shop.tell(login, key=site["write_key"])

    [letter] = await shop.letters(eva)
    assert letter.message["Subject"] == "Wall clock is waiting for you"
    merged = await shop.person(anonymous_id="a-eva")
    assert merged is not None
    assert merged["id"] == account
    assert stranger["id"] in merged["former_ids"]
    assert {(one["kind"], one["value"]) for one in merged["identifiers"]} >= {
        ("user_id", eva.user_id),
        ("email", eva.email),
        ("anonymous_id", "a-eva"),
    }


async def test_somebody_held_out_gets_nothing_and_leaves_a_ghost(shop: Shop) -> None:
    fedor = Person("Fedor")
    profile = await come_in(shop, fedor)
    await shop.tell(added(fedor, product("lamps")))

    [message] = await shop.settled("cart-held-out", profile)
    assert (message["state"], message["ghost"], message["reason"]["code"]) == ("withheld", True, "ghost")
    chosen = [one["channel"] for one in message["alternatives"] if one["chosen"]]
    assert chosen == ["email"], "what would have been sent is chosen all the same"
    [run] = await shop.all("/v1/runs", rule="cart-held-out", profile=profile)
    assert run["ghost"] is True
    report = await shop.get("/v1/rules/cart-held-out/report")
    assert (report["held_out"]["entered"], report["treated"]["entered"]) == (1, 0)
    assert shop.smtp.letters(fedor.email) == []


async def test_a_kill_switch_stops_a_rule_and_it_goes_on_when_it_is_switched_on_again(shop: Shop) -> None:
    galina = Person("Galina")
    profile = await come_in(shop, galina)
    switch = {"scope": "rule", "name": "cart-switched-off"}
    await shop.put("/v1/switches", {**switch, "on": True, "reason": "the prices are wrong"})
    await shop.tell(added(galina, product("chairs")))
    [message] = await shop.settled("cart-switched-off", profile)
    assert (message["state"], message["reason"]["code"]) == ("withheld", "switched-off")
    assert message["reason"]["text"] == "somebody switched off the rule cart-switched-off: the prices are wrong"
    assert shop.smtp.letters(galina.email) == []

    await shop.put("/v1/switches", {**switch, "on": False})
    await shop.tell(added(galina, product("chairs")))
    await shop.letters(galina)


@pytest.mark.parametrize("meanwhile", ["unsubscribed", "ordered", "emptied"])
async def test_what_happens_between_intent_and_claim_withholds_the_letter(shop: Shop, meanwhile: str) -> None:
    person = Person(f"Hold-{meanwhile}")
    profile = await come_in(shop, person)
    events, code, said = {
        "unsubscribed": (
            track(person, "Unsubscribed", channel="email", address=person.email),
            "opted-out",
            "unsubscribed at ",
        ),
        "ordered": (ordered(person, f"o-{person.name}", RECORD), "guard", "Order Completed"),
        "emptied": (track(person, "Product Removed", **RECORD), "guard", "not_empty"),
    }[meanwhile]
    await shop.post("/v1/switches/hold")
    try:
        await shop.tell(added(person, RECORD))
        [waiting] = await wait_for_intent(shop, profile)
        assert waiting["state"] == "queued"
        await shop.tell(events)
        await shop.heard(profile, events["event"])
    finally:
        await shop.post("/v1/switches/release")
    [message] = await shop.settled("cart", profile)
    assert (message["state"], message["reason"]["code"]) == ("withheld", code)
    assert said in message["reason"]["text"]
    assert shop.smtp.letters(person.email) == []


async def wait_for_intent(shop: Shop, profile: str) -> list[dict]:
    return await until(lambda: shop.messages("cart", profile), 30, "the letter is wanted", every=0.1)
