"""What a run does: its steps, what ends it, and what is told when its goal window closes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from services.triggers import engine
from services.triggers.language import LocalMoment, TraitMoment, Window
from services.triggers.run import Decided
from shared.events import Cancelled, Intended, Outcome
from tests.support.engine import (
    T0,
    advanced,
    at,
    entered,
    entering,
    event,
    facts,
    heard,
    order,
    order_event,
    rule,
    timer,
)

LETTERS = [{"send": "first"}, {"wait": "1d"}, {"send": "second"}]
GOAL = {"event": "Order Completed", "within": "3d"}
MOSCOW = ZoneInfo("Europe/Moscow")
BERLIN = ZoneInfo("Europe/Berlin")


def templates(decided: Decided) -> list[str]:
    return [effect.template for effect in decided.effects if isinstance(effect, Intended)]


def test_the_second_letter_comes_a_day_after_the_first() -> None:
    version = rule(steps=LETTERS)
    decided = entering(version)
    assert templates(decided) == ["first"]
    assert (decided.run.due, decided.run.path) == (at(days=1), ["wait"])
    after = timer(decided.run, version)
    assert templates(after) == ["second"]
    assert (after.run.ended_as, after.run.number) == ("finished", 2)


def test_a_timer_of_a_step_that_is_over_does_nothing() -> None:
    version = rule(steps=LETTERS)
    run = entered(version)
    assert engine.advance(run, engine.StepDue(), at(hours=23), facts(), version, engine.World(MOSCOW, "RU")) is None
    ended = timer(run, version).run
    assert engine.advance(ended, engine.StepDue(), at(days=2), facts(), version, engine.World(MOSCOW, "RU")) is None


def test_deciding_does_not_change_the_run_it_was_given() -> None:
    version = rule(steps=LETTERS, goal=GOAL)
    run = entered(version)
    before = repr(run)
    heard(run, order_event(at(hours=1)), version)
    timer(run, version)
    assert repr(run) == before


# ── stop and goal ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_order_stops_the_run_and_cancels_what_may_still_wait() -> None:
    version = rule(steps=LETTERS, stop=[{"event": "Order Completed"}])
    decided = heard(entered(version), order_event(at(hours=1)), version)
    assert decided is not None and decided.run.ended_as == "stopped"
    (cancel,) = decided.effects
    assert isinstance(cancel, Cancelled) and cancel.run_version == 2 and "Order Completed" in cancel.reason
    assert decided.run.due is None


def test_what_is_no_longer_valid_need_not_be_cancelled() -> None:
    version = rule(
        steps=[{"send": {"template": "first", "late": "30m"}}, {"wait": "1d"}], stop=[{"event": "Order Completed"}]
    )
    decided = heard(entered(version), order_event(at(hours=1)), version)
    assert decided is not None and decided.effects == []


def test_the_goal_comes_before_a_stop_by_the_same_event() -> None:
    version = rule(steps=LETTERS, stop=[{"event": "Order Completed"}], goal=GOAL)
    decided = heard(entered(version), order_event(at(hours=1)), version)
    assert decided is not None
    assert (decided.run.ended_as, decided.run.goal_at) == ("goal", at(hours=1))


def test_an_order_that_was_known_before_the_entry_stops_nothing_when_it_is_reported_again() -> None:
    version = rule(steps=LETTERS, stop=[{"event": "Order Completed"}], goal=GOAL)
    assert heard(entered(version), order_event(at(hours=1), first=False), version, moment=at(days=-1)) is None


def test_a_goal_counts_only_if_it_occurred_after_the_entry_and_within_the_window() -> None:
    version = rule(steps=LETTERS, goal=GOAL)
    run = entered(version)
    assert heard(run, order_event(at(hours=1), occurred_at=at(hours=-1)), version) is None
    assert heard(run, order_event(at(days=3, seconds=1)), version) is None
    assert heard(run, order_event(at(days=3)), version) is not None


def test_history_is_no_stop_and_no_goal() -> None:
    version = rule(steps=LETTERS, stop=[{"event": "Order Completed"}], goal=GOAL)
    assert heard(entered(version), order_event(at(hours=1), history=True), version) is None


def test_a_condition_in_stop_ends_the_run_when_an_event_makes_it_true() -> None:
    version = rule(steps=LETTERS, stop=[{"cart": {"total": {"gte": 5000}}}])
    run = entered(version)
    assert heard(run, event("Product Added", at(hours=1)), version, cart=100) is None
    decided = heard(run, event("Product Added", at(hours=1)), version, cart=9000)
    assert decided is not None and decided.run.ended_as == "stopped"


def test_a_goal_after_the_last_step_is_noted_and_told_when_the_window_closes() -> None:
    version = rule(goal=GOAL)
    run = entered(version)
    assert run.ended_as == "finished" and run.closes_at == at(days=3)
    noted = heard(run, order_event(at(days=2)), version)
    assert noted is not None and noted.what == "goal" and noted.run.ended_as == "finished"
    told = advanced(
        noted.run, engine.WindowClosed(), at(days=3), version, orders=[order(at(days=2), refunded=Decimal(500))]
    )
    (outcome,) = told.effects
    assert isinstance(outcome, Outcome)
    assert (outcome.goal_at, outcome.revenue, outcome.run_version) == (at(days=2), Decimal(1000), 3)
    assert not told.run.open


def test_the_window_of_a_ghost_is_told_alike_and_only_once() -> None:
    version = rule(goal=GOAL, holdout="100%")
    told = advanced(entered(version), engine.WindowClosed(), at(days=3), version)
    assert isinstance(told.effects[0], Outcome) and told.effects[0].ghost and told.effects[0].goal_at is None
    assert (
        engine.advance(told.run, engine.WindowClosed(), at(days=3), facts(), version, engine.World(MOSCOW, "RU"))
        is None
    )


def test_revenue_counts_the_orders_of_the_window_alone() -> None:
    version = rule(goal=GOAL)
    orders = [
        order(at(hours=1), 1000, "within"),
        order(at(days=-1), 70, "before"),
        order(at(days=4), 700, "after"),
        order(at(hours=2), 7, "cancelled", cancelled=True),
        order(at(hours=3), 13, "imported", history=True),
        order(at(hours=4), None, "without money"),
    ]
    told = advanced(entered(version), engine.WindowClosed(), at(days=3), version, orders=orders)
    assert told.effects[0].revenue == Decimal(1000)


def test_a_run_that_is_merged_away_ends_and_cancels() -> None:
    version = rule(steps=LETTERS)
    decided = advanced(
        entered(version), engine.Removed("merged", "an earlier run of the same person stays"), at(hours=1), version
    )
    assert decided.run.ended_as == "merged" and isinstance(decided.effects[0], Cancelled)


def test_a_rule_that_fails_ends_the_run_with_the_reason() -> None:
    version = rule(steps=[{"wait": "1h"}, {"wait": {"until": {"trait": "renewal", "days": 3650}}}, {"send": "x"}])
    decided = timer(entered(version), version, traits={"renewal": "9999-06-01"})
    assert decided.run.ended_as == "failed" and "OverflowError" in decided.why
    assert decided.effects == []


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
WAIT_FOR = [
    {
        "wait_for": {
            "event": "Order Completed",
            "for": "3d",
            "then": [{"send": "thanks"}],
            "else": [{"send": "reminder"}],
        }
    },
    {"send": "last"},
]


def test_wait_for_goes_one_way_with_the_event_and_the_other_without() -> None:
    version = rule(steps=WAIT_FOR)
    run = entered(version)
    with_event = heard(run, order_event(at(days=3)), version)
    assert with_event is not None and templates(with_event) == ["thanks", "last"]
    assert templates(timer(run, version)) == ["reminder", "last"]
    assert heard(run, order_event(at(days=3, seconds=1)), version) is None


def test_wait_for_does_not_count_what_was_known_before_the_step_began() -> None:
    version = rule(steps=[{"wait": "1d"}, *WAIT_FOR])
    run = timer(entered(version), version).run
    assert heard(run, order_event(at(days=1, hours=1)), version, moment=at(hours=5)) is None


def test_if_goes_by_the_facts_of_the_moment_and_guards_what_it_sends() -> None:
    condition = {"cart": {"not_empty": True}}
    version = rule(
        steps=[{"wait": "1h"}, {"if": {**condition, "then": [{"send": "cart"}], "else": [{"send": "none"}]}}]
    )
    run = entered(version)
    full, empty = timer(run, version, cart=10), timer(run, version, cart=0)
    assert (templates(full), templates(empty)) == (["cart"], ["none"])
    assert full.effects[0].guard.conditions == [condition]
    assert empty.effects[0].guard.conditions == [{"not": condition}]
    assert full.seen and full.seen[0]["holds"] is True


def test_a_guard_holds_stop_goal_the_entry_and_every_if_around() -> None:
    entry, inner = {"cart": {"not_empty": True}}, {"holiday": False}
    version = rule(
        enter={"on": "Product Viewed", "if": entry},
        stop=[
            "Order Completed",
            {"event": "Product Returned", "where": {"price": {"gt": 5}}},
            {"consent": {"email": "withdrawn"}},
        ],
        goal={"event": "Order Completed", "within": "1d"},
        steps=[{"if": {**inner, "then": [{"wait_for": {"event": "X", "for": "1h", "else": [{"send": "a"}]}}]}}],
    )
    run = entered(version, cart=5)
    guard = timer(run, version, cart=5).effects[0].guard
    assert guard.since == T0
    assert guard.until == [{"event": "Order Completed"}, {"event": "Product Returned", "where": {"price": {"gt": "5"}}}]
    assert guard.conditions == [entry, {"not": {"consent": {"email": "withdrawn"}}}, inner]


def test_a_step_that_stops_says_why_and_leaves_its_messages_alone() -> None:
    decided = entering(rule(steps=[{"send": "x"}, {"stop": "bought elsewhere"}, {"send": "y"}]))
    assert isinstance(decided, Decided)
    assert (decided.run.ended_as, decided.run.ended_why, templates(decided)) == ("stop_step", "bought elsewhere", ["x"])


def test_empty_branches_lead_on() -> None:
    version = rule(steps=[{"if": {"holiday": False, "else": [{"send": "never"}]}}, {"send": "always"}])
    assert templates(entering(version)) == ["always"]


def test_split_sends_the_same_person_the_same_way_and_people_both_ways() -> None:
    from tests.support.engine import SPACE, uuid5

    version = rule(
        steps=[{"split": {"t": {"a": "50%", "b": "50%"}, "then": {"a": [{"send": "a"}], "b": [{"send": "b"}]}}}]
    )
    ways = [
        templates(entering(version, by=event("Product Viewed", T0, node=uuid5(SPACE, str(n)))))[0] for n in range(200)
    ]
    assert 70 < ways.count("a") < 130
    assert templates(entering(version)) == templates(entering(version))


def test_an_offer_is_named_for_the_sends_after_it_and_a_send_may_name_its_own() -> None:
    steps = [
        {"send": "a"},
        {"offer": {"pool": "welcome10"}},
        {"send": "b"},
        {"send": {"template": "c", "offer": "other"}},
    ]
    decided = entering(rule(steps=steps))
    assert [effect.offer for effect in decided.effects] == [None, "welcome10", "other"]


def test_emit_and_set_fill_in_what_the_run_knows() -> None:
    steps = [
        {"set": {"likes": "{{ event.category }}", "absent": "{{ event.nothing }}"}},
        {"emit": {"event": "Invited", "properties": {"text": "to {{ person.city }}!"}}},
    ]
    fact = event("Product Viewed", T0, properties={"category": "vinyl"})
    decided = entering(rule(steps=steps), by=fact, traits={"city": "Kazan"})
    assert isinstance(decided, Decided)
    written, told = decided.effects
    assert (written.name, written.traits) == ("Traits Set", {"likes": "vinyl"})
    assert (told.name, told.properties["text"], told.hops, told.trust) == ("Invited", "to Kazan!", 1, "internal")


# ── moments ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "now", "zone", "expected"),
    [
        ("10:00", utc(2026, 3, 2, 6, 59), MOSCOW, utc(2026, 3, 2, 7)),
        ("10:00", utc(2026, 3, 2, 7), MOSCOW, utc(2026, 3, 3, 7)),
        ("tomorrow 10:00", utc(2026, 3, 2, 5), MOSCOW, utc(2026, 3, 3, 7)),
        ("monday 10:00", utc(2026, 3, 2, 6), MOSCOW, utc(2026, 3, 2, 7)),
        ("next monday 10:00", utc(2026, 3, 2, 6), MOSCOW, utc(2026, 3, 9, 7)),
        ("next tuesday 10:00", utc(2026, 3, 2, 6), MOSCOW, utc(2026, 3, 3, 7)),
        ("02:30", utc(2026, 3, 28, 22), BERLIN, utc(2026, 3, 29, 1, 30)),  # 02:30 does not exist that night: 03:30
        ("02:30", utc(2026, 10, 24, 22), BERLIN, utc(2026, 10, 25, 1, 30)),  # exists twice: the later
    ],
)
def test_until_a_moment_of_the_week(text: str, now: datetime, zone: ZoneInfo, expected: datetime) -> None:
    assert LocalMoment.model_validate(text).after(now, zone) == expected


def test_until_days_from_a_date_in_a_trait() -> None:
    moment = TraitMoment(trait="renewal", days=-7, at="10:30")
    assert moment.moment("2026-04-01", MOSCOW) == utc(2026, 3, 25, 7, 30)
    assert moment.moment("soon", MOSCOW) is None
    version = rule(steps=[{"wait": {"until": {"trait": "renewal", "days": -7}}}, {"send": "x"}])
    assert entered(version, traits={"renewal": "2026-04-01"}).due == utc(2026, 3, 25, 6)
    assert templates(entering(version, traits={"renewal": "2026-03-01"})) == ["x"]
    assert entered(version).ended_why == "there is no date in renewal to wait for"


@pytest.mark.parametrize(
    ("days", "hours", "now", "opens"),
    [
        (["mon..fri"], "09:00-21:00", utc(2026, 3, 2, 10), utc(2026, 3, 2, 10)),
        (["mon..fri"], "09:00-21:00", utc(2026, 3, 2, 18), utc(2026, 3, 3, 6)),  # 21:00 Moscow: closed
        (["mon..fri"], "09:00-21:00", utc(2026, 3, 6, 19), utc(2026, 3, 9, 6)),  # Friday night → Monday
        (["sat", "sun"], "22:00-02:00", utc(2026, 3, 8, 22, 30), utc(2026, 3, 8, 22, 30)),  # 01:30 after Sunday
        (["fri..mon"], "00:00-24:00", utc(2026, 3, 3, 10), utc(2026, 3, 5, 21)),
    ],
)
def test_a_window_of_the_week_opens(days: list[str], hours: str, now: datetime, opens: datetime) -> None:
    assert Window.model_validate({"days": days, "hours": hours}).opens(now, MOSCOW) == opens


def test_outside_its_window_a_rule_waits_before_it_sends() -> None:
    version = rule(window={"days": ["mon..fri"], "hours": "09:00-21:00"})
    run = entered(version, at(hours=9))  # 22:00 in Moscow
    assert run.due == utc(2026, 3, 3, 6)
    assert templates(timer(run, version)) == ["letter"]


def test_an_intent_carries_its_window_and_stays_valid_until_it_has_opened_again() -> None:
    hours = {"days": ["mon..fri"], "hours": "09:00-22:00"}
    friday = utc(2026, 3, 6, 18, 30)  # 21:30 in Moscow
    (intent,) = entering(rule(window=hours), friday).effects
    assert (intent.window, intent.valid_until) == (hours, utc(2026, 3, 10, 6))
    (hurried,) = entering(rule(window=hours, steps=[{"send": {"template": "x", "late": "2h"}}]), friday).effects
    assert hurried.valid_until == friday + timedelta(hours=2)
    assert entering(rule(), friday).effects[0].window is None


def test_the_window_is_of_the_persons_own_zone() -> None:
    version = rule(window={"hours": "09:00-21:00"})
    assert entered(version, at(hours=9), zone="America/New_York").due is None


def test_how_late_a_message_may_be_is_said_by_the_step() -> None:
    decided = entering(rule(steps=[{"send": {"template": "x", "late": "2h"}}]))
    assert decided.effects[0].valid_until == at(hours=2)


def test_every_number_of_a_run_is_one_higher() -> None:
    version = rule(steps=[{"wait": "1h"}, {"wait": "1h"}, {"wait": "1h"}])
    run, numbers = entered(version), []
    while run.live:
        numbers.append(run.number)
        run = timer(run, version).run
    assert numbers == [1, 2, 3] and run.ended_at == T0 + timedelta(hours=3)
