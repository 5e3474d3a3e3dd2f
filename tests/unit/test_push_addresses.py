"""Whose token an address is, and that it survives the way into the profile unchanged."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from services.dispatch.answers import judge_providers
from services.dispatch.channels.base import Result
from services.dispatch.channels.push import Service, service_of, token_of
from services.dispatch.channels.registry import find, taking
from services.dispatch.store.calls import Chosen
from services.ingest.origin import EventData, candidates, identify
from shared.identifiers import BadIdentifier, normalise
from tests.support.pushing import NOON

NAMESPACE = UUID("0198f3a2-0000-7000-8000-000000000000")
KEYS = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4.BTBZMqHH6r4Tts7J_aSIgg"
# Mozilla's and Windows' endpoints are longer than an e-mail address may be.
BROWSER = f"web:{KEYS}.https://updates.push.services.mozilla.com/wpush/v2/{'gAAAAABn-_' * 25}"
FIREBASE = f"fVq9mH7cT3iZ:APA91b{'Hk-_3' * 27}"
APPLE = "740f4707bebcf74f9b7c25d48e3358945f6aa01da5ddb387462c7eaf61bb78ad"


@pytest.mark.parametrize(
    ("address", "service"),
    [
        (BROWSER, "web"),
        (FIREBASE, "fcm"),
        ("APA91b" + "x" * 100, "fcm"),
        (APPLE, "apns"),
        (APPLE.upper(), "apns"),
        ("apns:short", "apns"),
        ("fcm:short", "fcm"),
        ("token-1", None),
        ("+79161234567", None),
        ("", None),
    ],
)
def test_a_token_tells_its_service(address: str, service: Service | None) -> None:
    assert service_of(address) == service


def test_the_service_in_front_is_not_part_of_the_token() -> None:
    assert [token_of(f"apns:{APPLE}"), token_of(APPLE), token_of(FIREBASE)] == [APPLE, APPLE, FIREBASE]


@pytest.mark.parametrize(("address", "name"), [(BROWSER, "web-push"), (FIREBASE, "fcm"), (APPLE, "apns")])
def test_exactly_one_push_adapter_takes_it(address: str, name: str) -> None:
    push = [kind for kind in find().values() if kind.channel == "push" and kind.leaves_machine]
    assert len(push) == 3
    assert [kind.name for kind in push if kind.accepts(address)] == [name]
    assert taking(push, "token-1") is None


@pytest.mark.parametrize("token", [BROWSER, FIREBASE, APPLE])
def test_a_token_in_the_context_of_any_event_is_kept_letter_by_letter(token: str) -> None:
    data = EventData({}, {}, {"device": {"token": token, "type": "ios"}})
    found, bad = identify(candidates({"userId": "anna"}, "identify", "", data), "secret", NAMESPACE, "RU")
    assert [(one.kind, one.value) for one in found] == [("user_id", "anna"), ("device_token", token)] and not bad


def test_only_a_device_token_may_be_that_long() -> None:
    assert len(BROWSER) > 320 and normalise("device_token", BROWSER, "RU") == BROWSER
    with pytest.raises(BadIdentifier, match="at most 1024"):
        normalise("device_token", "x" * 1025, "RU")
    with pytest.raises(BadIdentifier, match="at most 320"):
        normalise("user_id", BROWSER, "RU")


def test_what_concerns_one_phone_is_not_held_against_the_provider() -> None:
    one = Chosen(
        uuid4(), uuid4(), uuid4(), "r", "marketing", "t", "marketing", "s", "x", uuid4(), 0, "push", "apns", APPLE, uuid4(),
        "", "", "", {}, cost=0, attempts=0, repeats=0, valid_until=NOON,
    )  # fmt: skip
    crowded = Result("retry", "too many pushes to this device", for_one=True)
    assert judge_providers([(one, 1, crowded)] * 20, NOON) == ([], {}, {}, {})
    there, away, _, _ = judge_providers([(one, 1, Result("retry", "not reached"))] * 20, NOON)
    assert (there, away) == ([], {"apns": 20})
