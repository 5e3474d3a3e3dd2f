"""The choice of the channel, or silence: the examples of design §6 and of the walkthrough are the test vectors."""

from __future__ import annotations

from decimal import Decimal as D

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dispatch.choice import Choice, Figures, Learned, Option, Stakes, choose, posterior, weigh
from services.dispatch.reasons import Reason, money

CATALOGUE = {
    "email": (Figures(D("0.35"), D("0.06"), D("0.02")), D("0.01")),
    "push": (Figures(D("0.5"), D("0.03"), D("0.03")), D("0.10")),
    "messenger": (Figures(D("0.8"), D("0.04"), D("0.04")), D("0.10")),
    "sms": (Figures(D("0.98"), D("0.03"), D("0.06")), D("1.00")),
    "call": (Figures(D("0.85"), D("0.10"), D("0.15")), D("45")),
}


def option(channel: str, units: int = 1, blocked: Reason | None = None, price: D = D(1)) -> Option:
    figures, cost = CATALOGUE[channel]
    return Option(channel, figures, cost * units, units, blocked, price)


def chosen(gain: str | int, *channels: str) -> str | None:
    return choose([option(c) for c in channels], Stakes("marketing", D(gain)), D(0)).channel


def test_the_table_of_the_walkthrough() -> None:
    stakes = Stakes("marketing", D(450))
    email, sms = weigh(option("email"), stakes), weigh(option("sms", units=2), stakes)
    assert (email.effect, round(email.erosion or D(0), 2), round(email.net or D(0), 1)) == (
        D("0.011"),
        D("0.40"),
        D("4.5"),
    )
    assert (sms.effect, sms.cost, round(sms.erosion or D(0), 2)) == (D("0.0194"), D("2.00"), D("1.62"))
    assert round(sms.net or D(0), 1) == D("5.1")


def test_without_consent_for_sms_the_walkthrough_goes_by_email_and_the_row_says_why() -> None:
    no_consent = Reason("no-consent", "no consent")
    choice = choose([option("sms", 2, no_consent), option("email")], Stakes("marketing", D(450)), D(0))
    assert choice.channel == "email"
    sms = next(row for row in choice.alternatives if row.channel == "sms")
    assert sms.reason == no_consent
    assert sms.net is not None and sms.net > D(5)


@pytest.mark.parametrize(
    ("gain", "expected"),
    [(150, "email"), (450, "sms"), (1_000, "sms")],
)
def test_without_a_messenger_cheap_channels_come_first_and_a_dear_one_where_the_gain_pays(
    gain: int, expected: str
) -> None:
    assert chosen(gain, "email", "push", "sms", "call") == expected


def test_a_messenger_beats_email_from_about_9() -> None:
    assert chosen("8.5", "email", "messenger") == "email"
    assert chosen("9.5", "email", "messenger") == "messenger"


def test_a_call_beats_all_from_about_1600() -> None:
    assert chosen(1_500, *CATALOGUE) == "messenger"
    assert chosen(1_650, *CATALOGUE) == "call"


def test_nothing_is_sent_when_no_channel_brings_anything_and_the_reason_says_so() -> None:
    choice = choose([option("email"), option("sms")], Stakes("marketing", D("0.5")), D(0))
    assert choice.channel is None
    assert choice.reason is not None and choice.reason.code == "not-worth-it"
    assert {row.channel for row in choice.alternatives} == {"email", "sms"}


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0.00"),
        ("-0.0032", "-0.0032"),
        ("0.00418", "0.0042"),
        ("-0.000061", "-0.000061"),
        ("-0.3", "-0.30"),
        ("450", "450.00"),
    ],
)
def test_an_amount_that_two_digits_would_hide_is_told_with_more(amount: str, text: str) -> None:
    assert money(D(amount)) == text


def test_people_who_would_buy_anyway_are_left_in_peace() -> None:
    # Ghosts that bought as often as those who got a letter: the message brings nothing, whatever success is worth.
    bought_anyway = Learned(successes=D(50), observations=D(1_000))
    stakes = Stakes("marketing", D(450), base_learned=bought_anyway)
    assert choose([option("email")], stakes, D(0)).channel is None


def test_a_transactional_message_takes_the_cheapest_channel_that_reaches_whatever_it_is_worth() -> None:
    stakes = Stakes("transactional", D(0))
    assert choose([option("sms"), option("email"), option("push")], stakes, D(0)).channel == "email"
    blocked = Reason("no-address", "no address")
    options = [option("sms"), option("email", blocked=blocked), option("call")]
    assert choose(options, stakes, D(0)).channel == "sms"


def test_nothing_open_tells_the_reason_that_matters_most() -> None:
    options = [
        option("sms", blocked=Reason("no-address", "no address")),
        option("email", blocked=Reason("cap", "this person has had 2 of at most 2")),
    ]
    choice = choose(options, Stakes("marketing", D(450)), D(0))
    assert choice.reason == Reason("cap", "email: this person has had 2 of at most 2")


def test_an_overspent_budget_makes_its_channel_dearer_until_another_wins() -> None:
    stakes = Stakes("marketing", D(450))
    assert choose([option("sms"), option("email")], stakes, D(0)).channel == "sms"
    assert choose([option("sms", price=D(4)), option("email")], stakes, D(0)).channel == "email"


def test_what_was_learned_moves_the_prior_by_its_weight() -> None:
    assert posterior(D("0.06"), Learned()) == D("0.06")
    assert posterior(D("0.06"), Learned(D(0), D(50))) == D("0.03")
    assert posterior(D("0.06"), Learned(D(10), D(50))) == D("0.13")


def test_a_rival_that_is_worth_more_wins_and_the_loser_learns_why() -> None:
    stakes = Stakes("marketing", D(450), rival=D(100), rival_name="win-back")
    choice = choose([option("email")], stakes, D(0))
    assert choice.channel is None
    assert choice.reason is not None and choice.reason.code == "outbid" and "win-back" in choice.reason.text


def test_chance_is_bounded_and_its_probability_is_logged() -> None:
    options, stakes = [option("sms"), option("email")], Stakes("marketing", D(450), explore=D("0.03"))
    draws = [D(n) / 1000 for n in range(1000)]
    made = [choose(options, stakes, draw) for draw in draws]
    share = {c: sum(1 for m in made if m.channel == c) for c in ("sms", "email", None)}
    assert share == {"sms": 980, "email": 10, None: 10}
    stated = {m.channel: m.probability for m in made}
    assert stated == {"sms": D("0.98"), "email": D("0.01"), None: D("0.01")}
    assert sum(m.explored for m in made) == 30


amounts = st.decimals(min_value=0, max_value=100_000, places=2)


@given(gain=amounts, draw=st.decimals(min_value=0, max_value="0.999", places=3))
def test_the_choice_has_the_greatest_net_above_zero(gain: D, draw: D) -> None:
    choice: Choice = choose([option(c) for c in CATALOGUE], Stakes("marketing", gain), draw)
    nets = {row.channel: row.net for row in choice.alternatives if row.net is not None}
    assert len(nets) == len(CATALOGUE)
    if choice.channel is None:
        assert max(nets.values()) <= 0
    else:
        assert nets[choice.channel] == max(nets.values()) > 0


@given(gain=amounts)
def test_the_choice_does_not_depend_on_the_order_of_the_options(gain: D) -> None:
    options, stakes = [option(c) for c in CATALOGUE], Stakes("marketing", gain)
    assert choose(options, stakes, D(0)) == choose(options[::-1], stakes, D(0))
