"""Condition documents: what is refused and with which words, the schema, and matches of events."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from shared.conditions import ConditionError, match_holds, parse, parse_match, parse_where, schema, where_holds
from shared.conditions.registry import kinds, unavailable

EXAMPLES = [(name, example) for name, kind in kinds().items() for example in kind.examples]
# Each line of the language's page: a word that the parser must know, whether or not its data is kept yet.
LANGUAGE = [
    *("trait", "cart", "orders", "days_since_order", "later_than_own_rhythm", "did", "did_not", "bought", "consent"),
    *("reachable", "engagement", "age_in_base", "local_time", "holiday", "rfm", "rfm_moved", "segment", "value"),
]


def test_every_word_of_the_language_is_known() -> None:
    assert sorted([*kinds(), *unavailable()]) == sorted(LANGUAGE)


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_every_example_is_understood_and_meets_the_schema(name: str, example: Any) -> None:
    parse({name: example})
    jsonschema.Draft202012Validator(schema()).validate({name: example})


def test_the_schema_is_one_and_refuses_what_the_parser_refuses() -> None:
    document = schema()
    jsonschema.Draft202012Validator.check_schema(document)
    validator = jsonschema.Draft202012Validator(document)
    for wrong in ({"crat": {}}, {}, {"all": []}, {"did": {"at_least": 2}}, {"cart": {"total": {"gte": None}}}):
        assert not validator.is_valid(wrong), wrong
        with pytest.raises(ConditionError):
            parse(wrong)
    assert validator.is_valid({"not": {"any": [{"holiday": True}, {"all": [{"cart": {"not_empty": True}}]}]}})


@pytest.mark.parametrize(
    ("document", "pointer", "words"),
    [
        ({"crat": {"not_empty": True}}, "/if/crat", "did you mean 'cart'?"),
        ({"cart": {"not_emtpy": True}}, "/if/cart/not_emtpy", "did you mean 'not_empty'?"),
        ({"any": [{"holiday": True}, {"cart": {"totl": {}}}]}, "/if/any/1/cart/totl", "did you mean 'total'?"),
        ({"not": {"all": []}}, "/if/not/all", "at least one"),
        ({"all": {"cart": {}}}, "/if/all", "a list of conditions"),
        ({}, "/if", "is empty"),
        ("cart", "/if", "a condition is a mapping"),
        ({"cart": None}, "/if/cart", "cart is empty: write for example"),
        ({"cart": {}}, "/if/cart", "asks nothing"),
        ({"cart": {"total": None}}, "/if/cart/total", "is empty"),
        ({"trait": {"a/b": {"eqq": 1}}}, "/if/trait/a~1b/eqq", "did you mean 'eq'?"),
        ({"trait": {"city": "Kazan"}}, "/if/trait/city", "write {eq: Kazan}"),
        ({"trait": {"city": {"gt": "Kazan"}}}, "/if/trait/city/gt", "a number or an ISO date"),
        ({"trait": {"year": {"between": [1990, 1980]}}}, "/if/trait/year/between", "the lower first"),
        ({"trait": {"year": {}}}, "/if/trait/year", "names no operator"),
        ({"trait": {"year": {"in": []}}}, "/if/trait/year/in", "at least 1 item"),
        ({"did": {"at_least": 2}}, "/if/did/event", "is missing"),
        ({"did": {"event": "A", "within": "1 year"}}, "/if/did/within", "no fixed length"),
        ({"did": {"event": "A", "within": "3"}}, "/if/did/within", "is no duration"),
        ({"did": {"event": "A", "since": "entyr"}}, "/if/did/since", "'entry'"),
        ({"did": {"event": "A", "at_least": 3, "at_most": 2}}, "/if/did/at_most", "no count is both"),
        ({"did": {"event": "A", "at_least": True}}, "/if/did/at_least", "integer"),
        ({"did": {"event": "A", "where": {"total": 5}}}, "/if/did/where/total", "write {eq: 5}"),
        ({"did": {"event": " "}}, "/if/did/event", "is empty: name an event"),
        ({"bought": {"withn": "60d"}}, "/if/bought/withn", "did you mean 'within'?"),
        ({"bought": {"category": "vinyl"}}, "/if/bought/category", "write {eq: vinyl}"),
        ({"bought": {"category": {"eq": "x"}, "at_least": 0}}, "/if/bought/at_least", "greater than or equal to 1"),
        ({"consent": {"emial": "confirmed"}}, "/if/consent/emial", "did you mean 'email'?"),
        ({"consent": {"email": "confirmd"}}, "/if/consent/email", "did you mean 'confirmed'?"),
        ({"reachable": {"any": ["fax"]}}, "/if/reachable/any/0", "known are call, email"),
        ({"engagement": {"email": {"open": {}}}}, "/if/engagement/email/open", "did you mean 'opened'?"),
        ({"local_time": {"between": [540, 1260]}}, "/if/local_time/between/0", "in quotes"),
        ({"local_time": {"between": ["9", "21:00"]}}, "/if/local_time/between/0", "is no time of day"),
        ({"local_time": {"between": ["09:00", "09:00"]}}, "/if/local_time/between", "at the same time"),
        ({"holiday": "yes"}, "/if/holiday", "boolean"),
        ({"trait": {"city": {"in": ["Kazan", "a\x00b"]}}}, "/if/trait/city/in/1", "no text"),
        ({"did": {"event": "\ud800"}}, "/if/did/event", "no text"),
        ({"segment": {"in": ["moscow"]}}, "/if/segment", "it needs segments"),
        ({"rfm": {"in": ["loyal"]}}, "/if/rfm", "it needs RFM cells"),
        ({"value": {"cltv": {"gte": 1}}}, "/if/value", "it needs customer value"),
    ],
)
def test_a_wrong_document_is_refused_with_place_and_advice(document: Any, pointer: str, words: str) -> None:
    with pytest.raises(ConditionError) as refused:
        parse(document, "/if")
    assert refused.value.pointer == pointer
    assert words in refused.value.message


def test_a_document_nested_without_end_is_refused() -> None:
    document: Any = {"holiday": True}
    for _ in range(500):
        document = {"not": document}
    with pytest.raises(ConditionError, match="deeper than"):
        parse(document)


def test_a_match_names_an_event_and_what_its_properties_must_be() -> None:
    match = parse_match({"event": "Completed Order", "where": {"total": {"gt": 0}}})
    assert match_holds(match, "Order Completed", {"total": "12.50"})
    assert not match_holds(match, "Order Completed", {"total": 0})
    assert not match_holds(match, "Order Completed", {})
    assert not match_holds(match, "Order Updated", {"total": 12})
    assert match_holds(parse_match("Signed Up"), "Signed Up", {})


def test_a_wrong_match_is_refused_with_its_place() -> None:
    with pytest.raises(ConditionError) as refused:
        parse_match({"event": "Order Completed", "were": {}}, "/stop/0")
    assert (refused.value.pointer, "did you mean 'where'?" in refused.value.message) == ("/stop/0/were", True)


def test_where_alone_filters_properties() -> None:
    where = parse_where({"category": {"in": ["shoes", "boots"]}})
    assert where_holds(where, {"category": "Boots"})
    assert not where_holds(where, {"category": "hats"})
    assert where_holds(None, {})
