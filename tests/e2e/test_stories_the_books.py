"""When all stories of a deployment are told (this module is collected after theirs) its books balance, and every decision
comes out the same when it is computed again."""

from __future__ import annotations

import pytest

from tests.e2e.test_stories_asking import NEVER_CONFIRMED
from tests.faults.deployment import Deployment
from tests.support.computed_again import KINDS, computed_again
from tests.support.shop import Shop, links, text_of
from tests.support.wait import until

pytestmark = pytest.mark.timeout(180)


async def test_the_links_of_who_was_forgotten_lead_nowhere(shop: Shop) -> None:
    letter, *_ = shop.smtp.letters(NEVER_CONFIRMED.email)
    [link] = links(text_of(letter), "confirm")

    async def gone() -> bool:
        return (await shop.follow(link)).status_code in (404, 410)

    await until(gone, 60, "the link is forgotten", every=0.3)
    assert (await shop.follow(link, "POST")).status_code in (404, 410)
    assert await shop.person(email=NEVER_CONFIRMED.email) is None


async def test_the_books_balance_and_every_decision_is_computed_again_without_a_difference(
    shop: Shop, deployment: Deployment
) -> None:
    said = deployment.command("audit", "--derive")
    again = computed_again(said)
    assert all(again[kind] > 0 for kind in KINDS), again
    assert "✗" not in said


async def test_no_dead_letter_is_open_but_those_that_ingest_refused(shop: Shop) -> None:
    left = await shop.all("/v1/dead-letters", state="open")
    assert [letter for letter in left if letter["service"] != "ingest"] == []
