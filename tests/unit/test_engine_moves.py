"""`on_edit: move`: a run goes on at the same step of the new version, and what it waits for is that version's."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from services.triggers import engine
from services.triggers.run import Decided, Run
from services.triggers.steps.base import Version
from shared.events import Intended
from tests.support.engine import MOSCOW, advanced, at, entered, event, facts, heard, order_event, rule, timer

LETTERS = [{"send": "first"}, {"wait": "2d"}, {"send": "second"}]


def edited(**fields: Any) -> Version:
    """Version 2 of the rule."""
    return replace(rule(**{"on_edit": "move"} | fields), number=2)


def moved(run: Run, before: Version, after: Version, moment, **about: Any) -> Decided:
    return advanced(run, engine.Moved(before), moment, after, **about)


def test_what_is_left_of_a_wait_is_counted_from_when_it_began() -> None:
    old = rule(steps=LETTERS)
    new = edited(steps=[{"send": "first"}, {"wait": "3d"}, {"send": "third"}])
    decided = moved(entered(old), old, new, at(days=1))
    assert (decided.what, decided.run.version, decided.run.due) == ("moved", 2, at(days=3))
    assert decided.effects == [] and "version 2" in decided.why
    after = timer(decided.run, new)
    assert [effect.template for effect in after.effects if isinstance(effect, Intended)] == ["third"]


def test_a_wait_that_became_shorter_than_what_has_passed_is_over_at_once() -> None:
    old, new = rule(steps=LETTERS), edited(steps=[{"send": "first"}, {"wait": "1h"}, {"send": "second"}])
    decided = moved(entered(old), old, new, at(days=1))
    assert decided.run.due == at(days=1) + timedelta(microseconds=1)
    assert timer(decided.run, new).run.ended_as == "finished"


def test_who_stands_at_a_step_that_is_gone_is_not_moved() -> None:
    old, new = rule(steps=LETTERS), edited(steps=[{"send": "first"}, {"wait": "3d", "id": "pause"}])
    run = entered(old)
    assert engine.advance(run, engine.Moved(old), at(days=1), facts(), new, MOSCOW) is None


def test_a_step_may_lie_elsewhere_in_the_new_version() -> None:
    old = rule(steps=LETTERS)
    inside = [{"wait": "2d"}, {"send": "second"}]
    new = edited(steps=[{"if": {"trait": {"city": {"eq": "Kazan"}}, "then": inside, "else": [{"send": "other"}]}}])
    decided = moved(entered(old), old, new, at(days=1))
    assert decided.run.path == ["if", "then", "wait"]
    (intent,) = timer(decided.run, new).effects
    assert isinstance(intent, Intended) and {"trait": {"city": {"eq": "Kazan"}}} in intent.guard.conditions


def test_a_step_that_became_another_kind_begins_at_once() -> None:
    old = rule(steps=[{"wait": "2d", "id": "there"}, {"send": "second"}])
    new = edited(steps=[{"send": "at-once", "id": "there"}, {"wait": "1d"}])
    decided = moved(entered(old), old, new, at(hours=5))
    assert [effect.template for effect in decided.effects if isinstance(effect, Intended)] == ["at-once"]
    assert decided.run.due == at(days=1, hours=5)


def test_wait_for_listens_to_the_new_event_until_the_new_time() -> None:
    steps = [{"wait_for": {"event": "Order Completed", "for": "1d", "then": [{"stop": "a"}]}, "id": "w"}]
    new_steps = [{"wait_for": {"event": "Review Written", "for": "4d", "then": [{"stop": "b"}]}, "id": "w"}]
    old, new = rule(steps=steps), edited(steps=new_steps)
    run = moved(entered(old), old, new, at(hours=1)).run
    assert run.due == at(days=4)
    assert heard(run, order_event(at(days=2)), new) is None
    decided = heard(run, event("Review Written", at(days=3)), new)
    assert decided is not None and decided.run.ended_why == "b"


def test_the_goal_window_is_that_of_the_new_version_and_never_lies_in_the_past() -> None:
    goal = {"event": "Order Completed", "within": "2d"}
    old, longer = rule(steps=LETTERS, goal=goal), edited(steps=LETTERS, goal=goal | {"within": "9d"})
    assert moved(entered(old), old, longer, at(days=1)).run.closes_at == at(days=9)
    shorter = edited(steps=LETTERS, goal=goal | {"within": "1h"})
    assert moved(entered(old), old, shorter, at(days=1)).run.closes_at == at(days=1) + timedelta(microseconds=1)
    without = edited(steps=LETTERS)
    assert moved(entered(old), old, without, at(days=1)).run.closes_at == at(days=2)


def test_a_run_that_has_ended_is_not_moved() -> None:
    old, new = rule(), edited()
    assert engine.advance(entered(old), engine.Moved(old), at(days=1), facts(), new, MOSCOW) is None
