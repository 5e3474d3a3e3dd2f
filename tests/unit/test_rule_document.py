"""The rule document: what it takes, what it refuses and how it says so, and how step ids are made and kept."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import jsonschema
import pytest

from services.triggers.documents import DocumentError, parse_document
from services.triggers.entries.base import kinds as entry_kinds
from services.triggers.rule import read
from services.triggers.schema import schema
from services.triggers.steps.base import kinds as step_kinds
from shared.conditions import ConditionError

ABANDONED_CART = """
name: abandoned-cart
kind: marketing
enter:
  on: [Product Added, Product Removed, Checkout Started]
  idle: 1h
  if: {cart: {not_empty: true}}
again: after 7d
stop: [{event: Order Completed}]
goal: {event: Order Completed, within: 3d}
holdout: 10%
value: {cart_total: 0.3}
steps:
  - send: cart-reminder
  - wait: 1d
  - send: {template: cart-last-call, offer: cart5, channels: [push, email]}
"""


def minimal(**fields: Any) -> dict[str, Any]:
    return {"name": "a-rule", "enter": {"on": "Product Viewed"}, "steps": [{"send": "letter"}]} | fields


def ids(document: dict[str, Any], stored: dict[str, Any] | None = None) -> list[str]:
    return [step.id for step in read(document, stored).flow]


def refusal(document: Any) -> tuple[str, str]:
    with pytest.raises(ConditionError) as error:
        read(document)
    return error.value.pointer, error.value.message


def test_the_cart_rule_is_read_as_a_marketer_means_it() -> None:
    rule = read(parse_document(ABANDONED_CART))
    assert rule.enter.names == {"Product Added", "Product Removed", "Checkout Started"}
    assert rule.enter.idle == timedelta(hours=1)
    assert rule.again.after == timedelta(days=7)
    assert rule.holdout == Decimal("0.1")
    assert rule.value == {"cart_total": "0.3"}
    assert rule.max_age == timedelta(days=1, hours=1)
    assert rule.goal is not None and rule.goal.within == timedelta(days=3)
    assert rule.forward_names == {"Order Completed"}


def test_an_event_may_be_a_day_old_and_the_idle_time_comes_on_top_of_it() -> None:
    assert read(minimal()).max_age == timedelta(days=1)
    assert read(minimal(enter={"on": "Product Viewed", "idle": "3d"})).max_age == timedelta(days=4)
    assert read(minimal(enter={"on": "Product Viewed", "idle": "3d"}, max_age="73h")).max_age == timedelta(hours=73)


@pytest.mark.parametrize("max_age", ["1h", "24h"])
def test_a_max_age_that_passes_before_the_idle_time_does_is_refused(max_age: str) -> None:
    with pytest.raises(ConditionError, match="nobody would ever enter") as caught:
        read(minimal(enter={"on": "Product Viewed", "idle": "1d"}, max_age=max_age))
    assert caught.value.pointer == "/max_age"


def test_a_name_of_the_old_vocabulary_means_the_new_event() -> None:
    assert read(minimal(enter={"on": "Completed Order"})).enter.names == {"Order Completed"}


def test_step_ids_are_made_from_kind_and_template_and_repeats_are_numbered() -> None:
    steps = [
        {"send": "letter"},
        {"wait": "1d"},
        {"send": "letter"},
        {"wait_for": {"event": "Order Completed", "for": "1d"}},
        {"wait": "2d"},
    ]
    assert ids(minimal(steps=steps)) == ["send-letter", "wait", "send-letter-2", "wait-for-order-completed", "wait-2"]


def test_nested_steps_are_numbered_in_document_order() -> None:
    inner = {"if": {"cart": {"not_empty": True}, "then": [{"send": "a"}], "else": [{"send": "b"}, {"send": "a"}]}}
    assert ids(minimal(steps=[{"send": "a"}, inner])) == ["send-a", "if", "send-a-2", "send-b", "send-a-3"]


def test_a_given_id_stays_and_is_not_made_again() -> None:
    assert ids(minimal(steps=[{"send": "a", "id": "send-b"}, {"send": "b"}])) == ["send-b", "send-b-2"]


def test_a_file_without_ids_keeps_the_stored_ones_by_kind_template_and_order() -> None:
    stored = read(
        minimal(steps=[{"send": "a", "id": "first"}, {"wait": "1d", "id": "pause"}, {"send": "a", "id": "second"}])
    ).document
    edited = minimal(steps=[{"send": "new"}, {"send": "a"}, {"wait": "3d"}, {"send": "a"}, {"send": "a"}])
    assert ids(edited, stored) == ["send-new", "first", "pause", "second", "send-a"]


def test_a_new_step_does_not_take_the_id_of_a_step_that_was_removed() -> None:
    stored = read(minimal(steps=[{"send": "b", "id": "send-a"}, {"wait": "1d"}])).document
    assert ids(minimal(steps=[{"send": "a"}]), stored) == ["send-a-2"]


def test_an_id_given_twice_is_refused_where_it_stands() -> None:
    pointer, message = refusal(
        minimal(steps=[{"send": "a", "id": "x"}, {"if": {"holiday": False, "then": [{"stop": "no", "id": "x"}]}}])
    )
    assert pointer == "/steps/1/if/then/0/id"
    assert "'x'" in message


@pytest.mark.parametrize(
    ("document", "pointer", "words"),
    [
        (minimal(holdot="10%"), "/holdot", "did you mean 'holdout'?"),
        (minimal(enter={"on": "A", "idel": "1h"}), "/enter/idel", "did you mean 'idle'?"),
        (minimal(enter={"onn": "A"}), "/enter", "did you mean 'on'?"),
        (minimal(enter={"on": "A", "schedule": "0 9 * * *"}), "/enter", "exactly one"),
        (minimal(enter={"on": "A", "if": {"crat": {"not_empty": True}}}), "/enter/if/crat", "did you mean 'cart'?"),
        (minimal(enter={"segment": {"entered": "vip"}}), "/enter/segment", "not available"),
        (minimal(enter={"schedule": "0 9 30 2 *", "among": {"holiday": False}}), "/enter/schedule", "never comes"),
        (minimal(enter={"schedule": "every day", "among": {"holiday": False}}), "/enter/schedule", "five fields"),
        (minimal(enter={"schedule": "0 9 * * *"}), "/enter/among", "missing"),
        (minimal(steps=[{"sned": "x"}]), "/steps/0/sned", "did you mean 'send'?"),
        (
            minimal(steps=[{"send": {"template": "x", "chanels": ["email"]}}]),
            "/steps/0/send/chanels",
            "did you mean 'channels'?",
        ),
        (minimal(steps=[{"send": "x", "wait": "1d"}]), "/steps/0", "several kinds"),
        (minimal(steps=[{"wait": "1 month"}]), "/steps/0/wait", "no fixed length"),
        (minimal(steps=[{"wait": {"until": "someday"}}]), "/steps/0/wait/until", "next tuesday 10:00"),
        (minimal(steps=[{"webhook": {"url": "https://x"}}]), "/steps/0/webhook", "not available"),
        (minimal(steps=[{"if": {"then": [{"stop": "x"}]}}]), "/steps/0/if", "no condition"),
        (
            minimal(steps=[{"wait_for": {"event": "A", "for": "1d", "then": [{"wait": "0"}]}}]),
            "/steps/0/wait_for/then/0/wait",
            "duration",
        ),
        (minimal(steps=[{"split": {"t": {"a": "50%", "b": "40%"}, "then": {}}}]), "/steps/0/split/t", "90%"),
        (minimal(steps=[{"emit": {"event": "Order Completed"}}]), "/steps/0/emit/event", "another name"),
        (minimal(steps=[{"set": {"x": "{{ cart.total }}"}}]), "/steps/0/set", "cart.total"),
        (minimal(steps=[]), "/steps", "at least 1"),
        (minimal(stop=[{"event": "A", "were": {}}]), "/stop/0/were", "did you mean 'where'?"),
        (minimal(goal={"event": "A"}), "/goal/within", "missing"),
        (minimal(again="sometimes"), "/again", "after 7d"),
        (minimal(holdout="110%"), "/holdout", "100%"),
        (minimal(value={"basket": 0.3}), "/value", "cart_total"),
        (minimal(value=-5), "/value", "0 or more"),
        (minimal(window={"days": ["mon..sunday", "caturday"]}), "/window/days", "caturday"),
        (minimal(on_edit="carry"), "/on_edit", "finish"),
        (minimal(name="A rule"), "/name", "match"),
        (minimal(kind="transactional", holdout="5%"), "/holdout", "transactional"),
        (minimal(kind="transactional", enter={"on": "A", "idle": "1h"}), "/enter/idle", "at once"),
        (["a rule"], "", "mapping"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_to_write(document: Any, pointer: str, words: str) -> None:
    at, message = refusal(document)
    assert (at, words in message) == (pointer, True), f"{at}: {message}"


def test_yaml_is_read_without_its_surprises() -> None:
    text = "enter: {on: A}\nhours: 10:00\nday: 2024-01-01\nyes: no\nshare: 0.3\nwhole: 5\nnothing:\n"
    assert parse_document(text) == {
        "enter": {"on": "A"},
        "hours": "10:00",
        "day": "2024-01-01",
        "yes": "no",
        "share": 0.3,
        "whole": 5,
        "nothing": None,
    }


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2", "a: &x [1]\nb: *x", "a: [", "!!python/name:os.system", "a: 1\n---\nb: 1", "[" * 5000, b"\xff"],
)
def test_a_text_that_cannot_be_read_is_refused_in_one_sentence(text: str | bytes) -> None:
    with pytest.raises(DocumentError) as error:
        parse_document(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "example"), [(key, one) for key, kind in step_kinds().items() for one in kind.examples]
)
def test_every_example_of_a_step_is_read_and_fits_the_schema(key: str, example: Any) -> None:
    document = minimal(steps=[{key: example}])
    assert read(document).flow.steps[0].key == key
    jsonschema.Draft202012Validator(schema()).validate(document)


@pytest.mark.parametrize("example", [one for kind in entry_kinds().values() for one in kind.examples])
def test_every_example_of_an_entry_is_read_and_fits_the_schema(example: Any) -> None:
    document = minimal(enter=example)
    assert read(document).enter.document == example
    jsonschema.Draft202012Validator(schema()).validate(document)


def test_the_schema_takes_the_cart_rule_and_refuses_a_slip_of_the_pen() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    jsonschema.Draft202012Validator.check_schema(schema())
    validator.validate(parse_document(ABANDONED_CART))
    assert not validator.is_valid(parse_document(ABANDONED_CART) | {"holdot": "5%"})
    assert not validator.is_valid(minimal(steps=[{"sned": "x"}]))
