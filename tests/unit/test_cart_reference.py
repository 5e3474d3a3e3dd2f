"""The reference computation for click streams, on streams worked out by hand in minutes from an arbitrary midnight."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.reference.cart_reference import DAY, MINUTE, first_intents, first_intents_of_file

MIDNIGHT = 1_659_304_800_000
HOURS = 60
DAYS = 24 * 60


def stream(*events: tuple[float, str]) -> list[dict]:
    return [{"ts": MIDNIGHT + int(minute * MINUTE), "type": kind, "aid": 1} for minute, kind in events]


def minutes(moments: list[int]) -> list[float]:
    return [(moment - MIDNIGHT) / MINUTE for moment in moments]


def intents(*events: tuple[float, str]) -> list[float]:
    return minutes(first_intents(stream(*events)))


def test_clicks_alone_want_nothing():
    assert intents((0, "clicks"), (5, "clicks")) == []


def test_a_cart_left_for_an_hour_wants_a_letter_then():
    assert intents((10, "carts"), (15, "clicks")) == [70]


def test_another_cart_event_within_the_hour_postpones():
    assert intents((0, "carts"), (40, "carts")) == [100]


def test_a_cart_event_exactly_at_the_hour_comes_before_the_timer():
    assert intents((0, "carts"), (60, "carts")) == [120]


def test_a_cart_event_just_after_the_hour_comes_too_late():
    assert intents((0, "carts"), (60 + 1 / MINUTE, "carts")) == [60]


def test_an_order_within_the_hour_answers_no():
    assert intents((0, "carts"), (30, "orders")) == []


def test_an_order_exactly_at_the_hour_answers_no():
    assert intents((0, "carts"), (60, "orders")) == []


def test_an_order_before_the_cart_event_does_not_count():
    assert intents((0, "orders"), (0, "carts"), (1, "clicks")) == [60]


def test_an_order_at_the_cart_events_own_time_counts_if_it_stands_after_it():
    assert intents((0, "carts"), (0, "orders")) == []


def test_after_an_order_the_next_cart_event_arms_anew():
    assert intents((0, "carts"), (30, "orders"), (45, "carts")) == [105]


def test_a_cart_within_seven_days_of_the_last_runs_end_is_passed_over():
    # entered at 60, ended a day later; eight days after the entry the next may begin
    assert intents((0, "carts"), (8 * DAYS - 1, "carts")) == [60]


def test_a_cart_seven_days_after_the_last_runs_end_enters_again():
    assert intents((0, "carts"), (8 * DAYS, "carts")) == [60, 60 + 8 * DAYS]


def test_an_order_ends_the_run_and_the_seven_days_count_from_it():
    # entered at 60, ordered at 3 h; so from 7 days and 3 h on another run may begin
    early = 7 * DAYS + 3 * HOURS - 60
    assert intents((0, "carts"), (3 * HOURS, "orders"), (early - 1, "carts")) == [60]
    assert intents((0, "carts"), (3 * HOURS, "orders"), (early, "carts")) == [60, early + 60]


def test_an_order_after_the_runs_end_does_not_move_it():
    assert intents((0, "carts"), (2 * DAYS, "orders"), (8 * DAYS, "carts")) == [60, 60 + 8 * DAYS]


def test_a_passed_over_cart_does_not_postpone_the_next_entry():
    assert intents((0, "carts"), (5 * DAYS, "carts"), (8 * DAYS, "carts")) == [60, 60 + 8 * DAYS]


def test_equal_times_keep_the_streams_order_even_if_it_is_not_sorted():
    assert intents((30, "carts"), (0, "clicks"), (30, "orders")) == []


def test_the_otto_sample_keeps_to_the_rules_it_was_computed_by():
    path = Path(__file__).resolve().parents[3] / "shared" / "data" / "otto_sample.jsonl"
    if not path.exists():
        pytest.skip(f"LOUD: {path} is not there; the click streams are not checked")
    found = first_intents_of_file(path)
    assert len(found) == 20
    assert sum(map(len, found.values())) > 0
    assert all(not found[session] for session in (6, 7, 8, 12899769)), "sessions without a cart event"
    for moments in found.values():
        assert all(later - earlier >= 7 * DAY for earlier, later in pairwise(moments))
