"""The hidden truth about people: trust that messages use up and time gives back."""

import random
from datetime import datetime, timedelta, timezone

import pytest

from demo.response import HALF_HEALED, Truth, make_truth, react

NOON = datetime(2026, 11, 2, 12, tzinfo=timezone(timedelta(hours=3)))


def somebody(**changes) -> Truth:
    return Truth(
        **({"reach": {"email": 1.0, "sms": 1.0}, "act": {"email": 0.5}, "confirms": 1.0, "annoyed": 0.0} | changes)
    )


def test_an_unanswered_message_costs_trust_and_half_of_it_comes_back_in_time():
    truth = somebody()
    truth.unanswered("email", NOON)
    lost = 1.0 - truth.trust_in("email", NOON)
    assert lost > 0
    assert 1.0 - truth.trust_in("email", NOON + HALF_HEALED) == pytest.approx(lost / 2)


def test_an_intrusive_channel_costs_more_trust_than_a_quiet_one_and_only_its_own():
    truth = somebody()
    truth.unanswered("email", NOON)
    truth.unanswered("sms", NOON)
    assert truth.trust_in("sms", NOON) < truth.trust_in("email", NOON) < 1.0
    assert truth.trust_in("push", NOON) == 1.0


def test_an_answer_gives_trust_back():
    truth = somebody()
    for _ in range(5):
        truth.unanswered("sms", NOON)
    before = truth.trust_in("sms", NOON)
    truth.answered("sms", NOON)
    assert before < truth.trust_in("sms", NOON) <= 1.0


def acted(truth: Truth, *, relevance: float = 1.0) -> int:
    import copy

    return sum(
        react(copy.deepcopy(truth), "email", NOON, asks=False, relevance=relevance, chance=random.Random(n)).what
        == "acted"
        for n in range(2_000)
    )


def test_tired_people_act_less_and_a_full_cart_moves_more_than_an_empty_one():
    tired = somebody(act={"email": 0.2})
    for _ in range(40):
        tired.unanswered("email", NOON)
    fresh = somebody(act={"email": 0.2})
    assert acted(tired) < 0.7 * acted(fresh)
    assert acted(fresh, relevance=2.5) > 1.5 * acted(fresh)


def test_who_does_not_read_does_nothing():
    truth = somebody(reach={"email": 0.0})
    assert {react(truth, "email", NOON, asks=False, relevance=1, chance=random.Random(n)).what for n in range(50)} == {
        "ignored"
    }


def test_nobody_reads_at_night():
    for n in range(500):
        at = NOON + timedelta(minutes=n * 7)
        reaction = react(make_truth(random.Random(n)), "email", at, asks=False, relevance=1, chance=random.Random(n))
        assert 8 <= (at + reaction.after).hour < 23


def test_people_differ():
    truths = [make_truth(random.Random(n)) for n in range(200)]
    reaches = [truth.reach["email"] for truth in truths]
    assert max(reaches) - min(reaches) > 0.5
    assert len(set(reaches)) == 200
