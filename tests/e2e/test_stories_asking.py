"""Stories of asking to be written to, and of letters that need no asking.

Collected before the other stories: that somebody who never confirmed is forgotten everywhere is looked at after them.
"""

from __future__ import annotations

import pytest

from tests.support.shop import (
    Person,
    Shop,
    added,
    at_once,
    consent_granted,
    identify,
    links,
    product,
    text_of,
    track,
)
from tests.support.wait import until

pytestmark = pytest.mark.timeout(180)
NEVER_CONFIRMED = Person("Ivan")
SCANNER = {"User-Agent": "Mozilla/5.0 (compatible; LinkScanner/1.0; +https://scanner.example)"}


def subscription_requested(person: Person, form: str) -> dict:
    """The form on the website: an address that somebody typed."""
    properties = {"channel": "email", "address": person.email, "topics": ["marketing"], "form": form}
    return {
        "type": "track",
        "event": "Subscription Requested",
        "anonymousId": f"a-{person.name.lower()}",
        "properties": {**properties, "text_version": "2026-01", "page": "http://shop.example/"},
    }


async def test_who_never_confirms_is_reminded_once_and_forgotten(shop: Shop) -> None:
    ivan = NEVER_CONFIRMED
    await shop.tell_from_site(subscription_requested(ivan, form="hurried"))
    first, second = await shop.letters(ivan, count=2)
    assert second.message["Subject"] == "One click is missing: Dripline Shop"
    assert links(text_of(first), "confirm") != []

    async def forgotten() -> bool:
        return await shop.person(email=ivan.email) is None

    await until(forgotten, 30, f"{ivan.email} is forgotten", every=0.1)
    visitor = await shop.known(anonymous_id="a-ivan")
    assert ivan.email not in str(visitor)
    assert ivan.email not in str(await shop.timeline(visitor["id"]))

    # asking again within thirty days brings no second confirmation mail
    await shop.tell_from_site(subscription_requested(ivan, form="hurried"))
    *_, again = await shop.settled("double-opt-in-hurried", visitor["id"], count=3)
    assert (again["state"], again["reason"]["code"]) == ("withheld", "limit")
    assert len(shop.smtp.letters(ivan.email)) == 2


async def status_of(shop: Shop, person: Person) -> str:
    found = await shop.known(email=person.email)
    [address] = [one for one in found["addresses"] if one["value"] == person.email]
    return str(address["status"])


async def test_a_pressed_button_confirms_and_nothing_else_does(shop: Shop) -> None:
    hanna = Person("Hanna")
    await shop.tell_from_site(subscription_requested(hanna, form="footer"))
    [mail] = await shop.letters(hanna)
    assert mail.message["Subject"] == "Please confirm your address for Dripline Shop"
    [link] = links(text_of(mail), "confirm")

    looks = await at_once(*(shop.follow(link, method, headers=SCANNER) for method in ("GET", "HEAD", "GET", "HEAD")))
    assert [look.status_code for look in looks] == [200] * 4
    assert "<button" in looks[0].text
    # an event that was posted after them is applied: so whatever they had caused would be seen, too
    await shop.tell_from_site(
        {"type": "track", "event": "Product Viewed", "anonymousId": "a-hanna", "properties": product("records")}
    )
    profile = (await shop.known(anonymous_id="a-hanna"))["id"]
    await shop.heard(profile, "Product Viewed")
    assert await status_of(shop, hanna) == "claimed"
    ledger = (await shop.get(f"/v1/profiles/{profile}/consents"))["ledger"]
    assert [row["state"] for row in ledger] == ["requested"]

    pressed = await at_once(shop.follow(link, "POST"), shop.follow(link, "POST"))
    assert [answer.status_code for answer in pressed] == [200, 200]
    _, welcome = await shop.letters(hanna, count=2)
    assert "FOOTER5" in text_of(welcome), "the code belongs to the form"
    assert await status_of(shop, hanna) == "confirmed"
    await shop.heard(profile, "Subscription Confirmed")
    names = [event["name"] for event in await shop.timeline(profile)]
    assert names.count("Subscription Confirmed") == 1
    runs = await shop.all("/v1/runs", rule="double-opt-in", profile=profile)
    assert [(run["ended_as"], run["goal_at"] is not None) for run in runs] == [("goal", True)]


async def test_a_transactional_letter_needs_no_consent(shop: Shop) -> None:
    julia = Person("Julia")
    await shop.tell(identify(julia), added(julia, product("records")))
    profile = (await shop.known(user_id=julia.user_id))["id"]
    await shop.tell(track(julia, "Order Ready", order_id="o-77"))

    [letter] = await shop.letters(julia)
    assert letter.message["Subject"] == "Your order o-77 is ready"
    assert letter.message["List-Unsubscribe"] is None
    [marketing] = await shop.settled("cart", profile)
    assert (marketing["state"], marketing["reason"]["code"]) == ("withheld", "no-consent")
    assert len(shop.smtp.letters(julia.email)) == 1


async def test_who_agreed_by_the_shops_server_is_written_to_and_who_was_only_claimed_by_the_site_is_not(
    shop: Shop,
) -> None:
    kira = Person("Kira")
    await shop.tell_from_site({**identify(kira), "anonymousId": "a-kira"})
    await shop.tell_from_site(
        {"type": "track", "event": "Product Added", "anonymousId": "a-kira", "properties": product("records")}
    )
    profile = (await shop.known(anonymous_id="a-kira"))["id"]
    [withheld] = await shop.settled("cart", profile)
    assert (withheld["state"], withheld["reason"]["code"]) == ("withheld", "claimed")

    refused = await shop.post_batch([consent_granted(kira)], shop.site_key)
    assert refused.status_code == 400, "a website cannot vouch for a consent"
    await shop.tell(identify(kira), consent_granted(kira))
    await shop.tell(added(kira, product("records")))
    await shop.letters(kira)
