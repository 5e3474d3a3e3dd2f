"""A channel of one's own, declared by a file: every service knows it by what the file says."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.dispatch.api.channels import declared_caps
from services.ingest.parse import Arrival, Shop, Source, parse
from services.ingest.refusal import Refused
from services.triggers.rule import read as read_rule
from shared import channels
from shared.conditions import ConditionError
from shared.conditions import parse as parse_condition
from shared.errors import ConfigurationError
from shared.events import Event, own_name
from shared.facts.extract import extract
from tests.support.profile_feed import START, event

PLUGINS = Path(__file__).parent.parent / "support" / "channels"
SHOP = Shop(UUID(int=1), "RU", frozenset({"shop.example"}))
SITE = Source(UUID(int=2), "site", "public", ("s3cret",))
SERVER = Source(UUID(int=3), "server", "secret")
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _pager() -> Iterator[None]:
    channels.declare([PLUGINS])
    yield
    channels.declare()


@pytest.fixture
def beeper(tmp_path: Path) -> None:
    """A second one, whose consents are those of the first."""
    text = (PLUGINS / "pager.yaml").read_text()
    (tmp_path / "beeper.yaml").write_text(text.replace("event: Pager", "event: Beeper\nconsents: pager"))
    channels.declare([tmp_path, PLUGINS])


def read(name: str, source: Source, **properties: Any) -> Event | Refused:
    call = {"event": name, "userId": "u-1", "messageId": "m-1", "properties": properties}
    return parse(json.dumps(call).encode(), "track", Arrival(source, NOON), SHOP, random.Random(7).getrandbits)


@pytest.mark.parametrize("name", ["Pager Sent", "pager opened", "PAGER COMPLAINED"])
@pytest.mark.parametrize("source", [SITE, SERVER], ids=["a website", "a server"])
def test_only_the_product_tells_what_became_of_its_messages(name: str, source: Source) -> None:
    refused = read(name, source)
    assert isinstance(refused, Refused) and "only Dripline itself publishes it" in refused.reason
    channels.declare()
    assert isinstance(read(name, source), Event) and own_name(name) is None


def test_people_consent_to_it_by_its_own_name_and_its_address_is_of_its_kind() -> None:
    said = {"channel": "pager", "address": "8 916 123-45-67", "topics": ["news"], "at": "2026-11-23T09:00:00Z"}
    taken = read("Consent Granted", SERVER, **said, form="till", text_version="1", page="till", ip="192.0.2.7")
    assert isinstance(taken, Event)
    assert ("phone", "+79161234567") in [(one.kind, one.value) for one in taken.ids]
    [row] = extract(taken, START, "RUB").consents
    assert (row.channel, row.topic, row.state) == ("pager", "news", "granted")


def test_a_complaint_takes_its_consent_away_for_all_topics() -> None:
    complaint = event("Pager Complained", "m-1", ids={"phone": "+79161234567"}, trust="internal", properties={})
    [row] = extract(complaint, START, "RUB").consents
    assert (row.channel, row.topic, row.state) == ("pager", "*", "complained")


@pytest.mark.parametrize(
    "document",
    [{"consent": {"pager": "granted"}}, {"reachable": {"any": ["pager"]}}, {"engagement": {"pager": {"opened": {}}}}],
    ids=lambda document: next(iter(document)),
)
def test_conditions_know_it(document: dict[str, Any]) -> None:
    parse_condition(document)
    channels.declare()
    with pytest.raises(ConditionError, match="unknown channel 'pager'"):
        parse_condition(document)


def test_a_rule_may_not_publish_its_events() -> None:
    def rule(name: str) -> dict[str, Any]:
        steps = [{"emit": {"event": name}}]
        return {"name": "r", "kind": "marketing", "enter": {"on": "Product Viewed"}, "again": "always", "steps": steps}

    read_rule(rule("Loyalty Invited"))
    with pytest.raises(ConditionError, match="Pager Sent is published by Dripline"):
        read_rule(rule("Pager Sent"))


def test_what_shares_a_consent_is_asked_for_by_its_name(beeper: None) -> None:
    with pytest.raises(ConditionError, match="people consent to beeper and pager at once: ask for pager"):
        parse_condition({"reachable": {"any": ["beeper"]}})
    parse_condition({"engagement": {"beeper": {"clicked": {}}}})
    refused = read("Subscription Requested", SITE, channel="beeper", address="+79161234567")
    assert isinstance(refused, Refused) and "people consent to 'beeper' by 'pager': name that" in refused.reason
    complaint = event("Beeper Complained", "m-1", ids={"phone": "+79161234567"}, trust="internal", properties={})
    assert [row.channel for row in extract(complaint, START, "RUB").consents] == ["pager"]


@pytest.mark.parametrize(
    ("cap", "words"),
    [
        ("{scope: person, limit: 1, per: fortnight}", "caps/per"),
        ("{scope: person, limit: -1, per: day}", "caps/limit"),
        ("{scope: person, most: 1, per: day}", "caps/"),
    ],
)
def test_a_cap_that_cannot_be_counted_is_refused_with_its_channel(tmp_path: Path, cap: str, words: str) -> None:
    (tmp_path / "pager.yaml").write_text((PLUGINS / "pager.yaml").read_text() + f"caps: [{cap}]\n")
    with pytest.raises(ConfigurationError, match=f"channel pager is wrong at {words}"):
        declared_caps(channels.read([tmp_path]))
