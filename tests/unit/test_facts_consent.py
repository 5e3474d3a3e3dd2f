"""The consent ledger, folded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.facts.consent import fold_consent
from shared.facts.rows import ConsentRow

START = datetime(2025, 1, 1, tzinfo=UTC)
NODE = UUID(int=1)


def rows(*said: tuple[str, str, int]) -> list[ConsentRow]:
    """(state, topic, hour) each."""
    return [
        ConsentRow(
            node=NODE,
            channel="email",
            topic=topic,
            id=UUID(int=10 + i),
            state=state,
            at=START + timedelta(hours=hour),
            origin=NODE,
        )
        for i, (state, topic, hour) in enumerate(said)
    ]


def states(*said: tuple[str, str, int]) -> dict[str, str]:
    return {one.topic: one.state for one in fold_consent(rows(*said), {NODE: "a@example.com"})}


@pytest.mark.parametrize(
    ("said", "state", "may_write"),
    [
        (["requested"], "requested", False),
        (["requested", "confirmed"], "confirmed", True),
        (["granted"], "granted", True),
        (["granted", "requested"], "granted", True),
        (["confirmed", "granted"], "confirmed", True),
        (["confirmed", "withdrawn"], "withdrawn", False),
        (["confirmed", "withdrawn", "requested"], "withdrawn", False),
        (["confirmed", "withdrawn", "granted"], "withdrawn", False),
        (["confirmed", "withdrawn", "requested", "confirmed"], "confirmed", True),
        (["confirmed", "complained", "confirmed"], "complained", False),
        (["confirmed", "complained", "granted"], "complained", False),
    ],
)
def test_what_a_person_said_last_counts_but_only_a_button_lifts_an_opt_out(
    said: list[str], state: str, may_write: bool
) -> None:
    (consent,) = fold_consent(rows(*((one, "news", hour) for hour, one in enumerate(said))), {NODE: "a@example.com"})
    assert (consent.state, consent.may_write, consent.address) == (state, may_write, "a@example.com")


def test_of_one_moment_the_more_restrictive_counts() -> None:
    assert states(("withdrawn", "news", 5), ("confirmed", "news", 5)) == {"news": "withdrawn"}
    assert states(("confirmed", "news", 5), ("withdrawn", "news", 5)) == {"news": "withdrawn"}


def test_an_opt_out_of_everything_ends_every_topic_and_a_button_lifts_one() -> None:
    assert states(("confirmed", "news", 1), ("confirmed", "offers", 1), ("withdrawn", "*", 2)) == {
        "*": "withdrawn",
        "news": "withdrawn",
        "offers": "withdrawn",
    }
    assert states(("confirmed", "news", 1), ("withdrawn", "*", 2), ("confirmed", "news", 3)) == {
        "*": "withdrawn",
        "news": "confirmed",
    }


def test_the_time_is_that_of_the_row_that_made_the_state() -> None:
    (consent,) = fold_consent(rows(("confirmed", "news", 1), ("confirmed", "news", 9)), {})
    assert consent.at == START + timedelta(hours=1)


@given(
    said=st.lists(
        st.tuples(
            st.sampled_from(["requested", "granted", "confirmed", "withdrawn", "complained"]),
            st.sampled_from(["news", "offers", "*"]),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=8,
    ),
    random=st.randoms(use_true_random=False),
)
def test_the_order_of_the_rows_makes_no_difference(said, random) -> None:  # type: ignore[no-untyped-def]
    ledger = rows(*said)
    expected = fold_consent(ledger, {})
    random.shuffle(ledger)
    assert fold_consent(ledger, {}) == expected
