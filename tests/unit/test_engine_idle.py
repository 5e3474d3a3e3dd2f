"""The idle timer's question: was there an hour without another match?"""

from __future__ import annotations

from datetime import datetime

from services.triggers import idle
from services.triggers.rule import Rule
from services.triggers.steps.base import Happened
from tests.support.engine import NODE, SPACE, at, event, order_event, rule, uuid5

CART = rule(
    enter={"on": ["Product Added", "Product Removed"], "idle": "1h"},
    stop=[{"event": "Order Completed"}],
    again="after 7d",
).document


HASTY = rule(enter={"on": ["Product Added"], "idle": "5m"}).document


def added(moment, **fields) -> Happened:
    fact = event("Product Added", moment, **fields)
    return Happened(fact, fact.learned_at)


def ordered(moment, counted=None, **fields) -> Happened:
    fact = order_event(moment, **fields)
    return Happened(fact, counted or fact.learned_at)


def test_an_hour_after_the_last_match_the_person_enters_by_it() -> None:
    answer = idle.ask(CART, at(minutes=90), [added(at()), added(at(minutes=30))])
    assert answer == idle.Quiet(added(at(minutes=30)).event)


def test_a_later_match_moves_the_timer() -> None:
    assert idle.ask(CART, at(hours=1), [added(at()), added(at(minutes=30))]) == idle.Moves(at(minutes=90))


def test_a_match_at_the_very_moment_moves_it_too() -> None:
    assert idle.ask(CART, at(hours=1), [added(at()), added(at(hours=1))]) == idle.Moves(at(hours=2))


def test_the_matches_of_all_nodes_count_and_the_last_ones_node_is_the_origin() -> None:
    phone = uuid5(SPACE, "her phone")
    answer = idle.ask(CART, at(minutes=70), [added(at()), added(at(minutes=10), node=phone)])
    assert isinstance(answer, idle.Quiet) and answer.last.node == phone != NODE


def test_an_order_after_the_last_match_stops_before_entry() -> None:
    answer = idle.ask(CART, at(hours=1), [added(at()), ordered(at(minutes=40))])
    assert isinstance(answer, idle.StoppedBefore)
    assert answer.why == "stopped before entry: Order Completed (order o-1) at 2026-03-02 10:40:00 UTC"


def test_a_match_after_the_order_asks_anew() -> None:
    answer = idle.ask(CART, at(minutes=110), [added(at()), ordered(at(minutes=40)), added(at(minutes=50))])
    assert isinstance(answer, idle.Quiet)


def test_a_nightly_report_of_yesterdays_order_stops_nothing() -> None:
    assert isinstance(
        idle.ask(CART, at(hours=1), [added(at()), ordered(at(minutes=40), counted=at(days=-1))]), idle.Quiet
    )


def test_a_public_report_of_an_order_stops_too_and_history_does_not() -> None:
    assert isinstance(
        idle.ask(CART, at(hours=1), [added(at()), ordered(at(minutes=4), trust="public", first=False)]),
        idle.StoppedBefore,
    )
    assert isinstance(idle.ask(CART, at(hours=1), [added(at()), ordered(at(minutes=4), history=True)]), idle.Quiet)


def test_what_is_learned_after_the_moment_is_not_looked_at() -> None:
    later = [added(at()), added(at(minutes=61)), ordered(at(minutes=62))]
    assert isinstance(idle.ask(CART, at(hours=1), later), idle.Quiet)
    assert idle.rearmed(at(hours=1), later, lambda moment: CART) == at(minutes=121)


def test_without_a_later_match_nothing_is_armed() -> None:
    assert idle.rearmed(at(hours=1), [added(at()), ordered(at(minutes=62))], lambda moment: CART) is None


def test_a_later_match_counts_by_the_rule_as_it_was_in_force_then() -> None:
    later = [added(at(minutes=61)), added(at(minutes=70)), added(at(minutes=80))]

    def edited(moment: datetime) -> Rule | None:
        return None if moment < at(minutes=65) else HASTY if moment < at(minutes=75) else CART

    assert idle.rearmed(at(hours=1), later, edited) == at(minutes=75)


def test_a_timer_whose_match_left_the_person_finds_nothing() -> None:
    assert idle.ask(CART, at(hours=1), []) == idle.NoMatch()
