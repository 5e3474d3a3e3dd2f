"""Who enters a rule, who does not, and which arm they are in."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from uuid import uuid5

import pytest

from services.triggers import engine
from services.triggers.holdout import arm, draw
from services.triggers.run import Decided, Known, Refused
from services.triggers.steps.base import Version
from shared.events import Intended
from tests.support.engine import (
    MOSCOW,
    NODE,
    RULE,
    SPACE,
    T0,
    address,
    advanced,
    at,
    entered,
    entering,
    event,
    facts,
    order_event,
    rule,
    timer,
)


def refusal(*args, **more) -> str:
    found = entering(*args, **more)
    assert isinstance(found, Refused), found
    return found.code


def confirmed(version: Version, moment: datetime, value: str, known: list[Known] | None = None) -> Decided | Refused:
    """What comes of somebody who confirms a subscription for this address."""
    channel = "email" if "@" in value else "sms"
    said = {"channel": channel, "address": value}
    return entering(
        version, moment, by=event("Subscription Confirmed", moment, key=value, properties=said), known=known
    )


def ended_run(ended_after: timedelta = timedelta(hours=1)) -> Known:
    run = entered(rule())
    run.ended_at = T0 + ended_after
    return Known.of(run)


def test_an_event_enters_and_its_letter_is_intended_at_once() -> None:
    decided = entering(rule(value=900, topic="offers", goal={"event": "Order Completed", "within": "3d"}))
    assert isinstance(decided, Decided)
    (intent,) = decided.effects
    assert isinstance(intent, Intended)
    assert (intent.template, intent.topic, intent.value, intent.goal_within) == (
        "letter",
        "offers",
        {"money": "900"},
        259200.0,
    )
    assert intent.event["name"] == "Product Viewed"
    assert intent.valid_until == at(days=1)
    assert decided.run.ended_as == "finished"


def test_the_run_is_named_by_rule_origin_and_entry_key() -> None:
    assert entered(rule()).id == entered(rule(title="edited")).id
    other = event("Product Viewed", T0, node=uuid5(SPACE, "boris"))
    assert entered(rule()).id != entered(rule(), by=other).id


def test_the_same_event_never_starts_a_second_run() -> None:
    run = entered(rule(again="always"))
    assert refusal(rule(again="always"), known=[Known.of(run)]) == "key_taken"


def test_whoever_is_inside_does_not_enter_again_even_with_always() -> None:
    version = rule(again="always", steps=[{"wait": "1d"}])
    assert refusal(version, at(hours=1), known=[Known.of(entered(version))]) == "inside"


def test_again_is_counted_from_the_end_of_the_last_run() -> None:
    version = rule(again="after 7d")
    known = [ended_run(timedelta(hours=1))]
    assert refusal(version, at(days=7, minutes=59), known=known) == "again"
    assert isinstance(entering(version, at(days=7, hours=1), known=known), Decided)


def test_again_never_is_the_default_of_marketing_and_always_of_transactional() -> None:
    assert refusal(rule(), at(days=400), known=[ended_run()]) == "again"
    assert isinstance(entering(rule(kind="transactional"), at(days=1), known=[ended_run()]), Decided)


def test_a_run_that_was_merged_away_does_not_count_for_again() -> None:
    run = entered(rule())
    run.ended_at, run.ended_as = T0, "merged"
    assert isinstance(entering(rule(), at(days=1), known=[Known.of(run)]), Decided)


def test_an_old_event_starts_nothing() -> None:
    late = event("Product Viewed", at(days=2), occurred_at=T0)
    assert refusal(rule(), at(days=2), by=late) == "too_old"
    assert isinstance(entering(rule(max_age="2d"), at(days=2), by=late), Decided)


def test_the_condition_of_the_entry_is_judged_and_what_it_saw_is_kept() -> None:
    version = rule(enter={"on": "Product Viewed", "if": {"cart": {"not_empty": True}}})
    found = entering(version, cart=0)
    assert isinstance(found, Refused) and found.code == "condition" and "cart" in found.why
    assert isinstance(decided := entering(version, cart=500), Decided)
    assert decided.seen[0]["holds"] is True


def test_an_event_five_hops_away_starts_nothing() -> None:
    fact = event("Product Viewed", T0, hops=5)
    asking = engine.Asking(version=rule(), at=T0, origin=NODE, key=str(fact.id), event=fact)
    found = engine.enter(asking, [], facts(), MOSCOW)
    assert isinstance(found, Refused) and found.code == "hops"


def test_a_condition_of_stop_that_holds_already_lets_nobody_in() -> None:
    assert refusal(rule(stop=[{"cart": {"total": {"gte": 5000}}}]), cart=9000) == "stopped"


def test_an_import_and_a_repeated_order_report_do_not_enter() -> None:
    entry = rule(enter={"on": "Order Completed"}).document.enter
    assert entry.matches(order_event(T0))
    assert not entry.matches(order_event(T0, history=True))
    assert not entry.matches(order_event(T0, first=False))
    assert not entry.matches(event("Product Viewed", T0))


def test_where_looks_at_the_properties_of_the_event() -> None:
    entry = rule(enter={"on": "Product Viewed", "where": {"category": {"in": ["shoes"]}}}).document.enter
    assert entry.matches(event("Product Viewed", T0, properties={"category": "Shoes"}))
    assert not entry.matches(event("Product Viewed", T0, properties={}))


# ── holdout ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_held_out_run_goes_on_as_a_ghost() -> None:
    decided = entering(rule(holdout="100%"))
    assert isinstance(decided, Decided)
    assert decided.run.ghost and isinstance(decided.effects[0], Intended) and decided.effects[0].ghost


def test_the_share_of_ghosts_is_the_holdout() -> None:
    ghosts = sum(arm(RULE, uuid5(SPACE, str(n)), Decimal("0.1"), [])[0] for n in range(10_000))
    assert 900 < ghosts < 1100


def test_the_draw_depends_on_rule_and_origin_alone() -> None:
    assert draw("holdout", RULE, NODE) == draw("holdout", RULE, NODE)
    assert draw("holdout", RULE, NODE) != draw("holdout", uuid5(SPACE, "another rule"), NODE)


@pytest.mark.parametrize("ghost", [True, False])
def test_a_person_stays_in_the_arm_of_the_earliest_run(ghost: bool) -> None:
    first, second = ended_run(), ended_run()
    first = Known(**{**{f: getattr(first, f) for f in first.__struct_fields__}, "ghost": ghost})
    second = Known(
        **{**{f: getattr(second, f) for f in second.__struct_fields__}, "ghost": not ghost, "entered_at": at(days=1)}
    )
    assert arm(RULE, NODE, Decimal("0.5"), [second, first])[0] is ghost


# ── addressed runs ────────────────────────────────────────────────────────────────────────────────────────────────────
def requested(value: str, moment=T0):
    said = {"channel": "email", "address": value, "topics": ["news"], "form": "footer"}
    return event("Subscription Requested", moment, key=value, trust="public", properties=said)


def test_a_subscription_carries_its_address_form_and_topics() -> None:
    version = rule(kind="transactional", enter={"on": "Subscription Requested"})
    decided = entering(version, by=requested(" Anna@Example.com"), addresses=[address()])
    assert isinstance(decided, Decided)
    asked = decided.effects[0].addressed
    assert (asked.address, asked.form, asked.topics, asked.node) == (
        "anna@example.com",
        "footer",
        ["news"],
        address().node,
    )
    assert asked.request == requested(" Anna@Example.com").id


def test_a_second_address_of_a_person_has_a_run_of_its_own() -> None:
    version = rule(kind="transactional", enter={"on": "Subscription Requested"}, steps=[{"wait": "1d"}])
    first = Known.of(entered(version, by=requested("anna@example.com")))
    assert isinstance(
        entering(version, at(minutes=1), by=requested("a@work.example", at(minutes=1)), known=[first]), Decided
    )
    again = entering(version, at(minutes=2), by=requested("anna@example.com", at(minutes=2)), known=[first])
    assert isinstance(again, Refused) and again.code == "inside"


def test_a_marketing_rule_counts_the_person_whatever_address_they_confirm() -> None:
    version = rule(enter={"on": "Subscription Confirmed"}, again="never")
    first = confirmed(version, at(), "anna@example.com")
    assert isinstance(first, Decided) and first.run.ended_as == "finished"
    second = confirmed(version, at(days=1), "+79161234567")
    assert isinstance(second, Decided)  # of another person
    again = confirmed(version, at(days=1), "+79161234567", known=[Known.of(first.run)])
    assert isinstance(again, Refused) and again.code == "again"
    waiting = rule(enter={"on": "Subscription Confirmed"}, again="always", steps=[{"wait": "3d"}, {"send": "letter"}])
    inside = confirmed(waiting, at(), "anna@example.com")
    twice = confirmed(waiting, at(days=1), "+79161234567", known=[Known.of(inside.run)])
    assert isinstance(twice, Refused) and twice.code == "inside"


def test_only_a_confirmation_of_the_same_address_stops_a_run_about_an_address() -> None:
    version = rule(
        kind="transactional",
        enter={"on": "Subscription Requested"},
        stop=[{"event": "Subscription Confirmed"}],
        steps=[{"send": "confirm"}, {"wait": "1d"}, {"send": "confirm-again"}],
    )
    run = entered(version, by=requested("anna@example.com"))
    other = event("Subscription Confirmed", at(hours=1), properties={"channel": "email", "address": "a@work.example"})
    same = event("Subscription Confirmed", at(hours=1), properties={"channel": "email", "address": "anna@example.com"})
    assert (
        engine.advance(run, engine.Happened(other, other.learned_at), other.learned_at, facts(), version, MOSCOW)
        is None
    )
    assert advanced(run, engine.Happened(same, same.learned_at), same.learned_at, version).run.ended_as == "stopped"
    guard = timer(run, version).effects[0].guard
    assert guard.until == [{"event": "Subscription Confirmed", "where": {"address": {"in": ["anna@example.com"]}}}]


def test_a_contact_that_nobody_confirmed_is_purged_and_a_confirmed_one_is_not() -> None:
    version = rule(
        kind="transactional",
        enter={"on": "Subscription Requested"},
        steps=[{"wait": "1d"}, {"purge": {"contact": "unconfirmed"}}],
    )
    run = entered(version, by=requested("anna@example.com"), addresses=[address()])
    (purged,) = timer(run, version, addresses=[address()]).effects
    assert (purged.name, purged.properties["address"], purged.trust) == (
        "Contact Purged",
        "anna@example.com",
        "internal",
    )
    assert timer(run, version, addresses=[address(status="confirmed")]).effects == []
