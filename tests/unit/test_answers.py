"""What a message's next state is after an attempt, when an earlier one may have arrived: it stays with that channel."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from msgspec.structs import replace

from services.dispatch.answers import BACK_OFF, LATE, Answered, judged
from services.dispatch.channels.base import Result
from services.dispatch.store.calls import Chosen

NOW = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
ONE = Chosen(
    uuid4(), uuid4(), uuid4(), "r", "marketing", "t", "marketing", "s", "x", uuid4(), 0, "messenger", "webhook", "anna",
    uuid4(), "", "", "", {}, cost=Decimal(1), attempts=1, repeats=1, valid_until=NOW + timedelta(days=1),
)  # fmt: skip
# Of which an earlier attempt is unknown.
PINNED = replace(ONE, pinned="messenger")
AWAY = Result("retry", "HTTP 503")


def came_to(one: Chosen, result: Result, number: int = 2) -> Answered:
    return judged(one, number, result, NOW, repeatable=True)


@pytest.mark.parametrize("result", [AWAY, LATE, Result("retry", "429", retry_after=timedelta(minutes=3))])
def test_a_retry_after_an_unknown_attempt_stays_with_its_channel(result: Result) -> None:
    answered = came_to(PINNED, result)
    assert (answered.state, answered.pinned) == ("queued", "messenger")
    assert came_to(ONE, result).pinned is None


@pytest.mark.parametrize("result", [AWAY, Result("failed", "HTTP 400")])
def test_what_may_have_arrived_ends_as_unknown_and_not_as_failed(result: Result) -> None:
    ending = NOW + timedelta(seconds=5)  # nothing can be tried again before that
    answered = came_to(replace(PINNED, valid_until=ending), result)
    assert (answered.state, answered.reason_code, answered.pinned) == ("unknown", "unknown", "messenger")
    assert came_to(replace(ONE, valid_until=ending), result).state == "failed"


def test_a_message_that_the_provider_did_not_take_is_kept_as_long_as_it_is_good() -> None:
    """However often that was: it may take the shop a day to see that its sender's name is wrong."""
    now, number = NOW, 0
    while (answered := judged(ONE, number := number + 1, AWAY, now, repeatable=True)).state == "queued":
        now = answered.due_at
    assert (answered.state, answered.reason_code) == ("failed", "exhausted")
    assert ONE.valid_until - now < BACK_OFF[-1]


def test_a_repeat_that_arrives_ends_the_doubt() -> None:
    answered = came_to(PINNED, Result("sent"))
    assert (answered.state, answered.pinned) == ("sent", None)


def test_what_is_marketing_by_its_template_is_not_repeated_by_the_rule_s_kind() -> None:
    receipt = replace(ONE, kind="transactional", purpose="transactional")
    unknown = Result("unknown", "hung")
    assert judged(receipt, 1, unknown, NOW, repeatable=False).state == "queued"
    advertising = replace(receipt, purpose="marketing")
    assert judged(advertising, 1, unknown, NOW, repeatable=False).state == "unknown"
