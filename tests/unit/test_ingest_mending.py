"""Patches of dead letters; the examples are those of RFC 6902, appendix A, and RFC 7396, appendix A."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.ingest.mending import mended
from shared.errors import Problem

OPERATIONS: dict[str, tuple[Any, list[dict[str, Any]], Any]] = {
    "A.1 adding a member": (
        {"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"},
    ),
    "A.2 adding an element": (
        {"foo": ["bar", "baz"]}, [{"op": "add", "path": "/foo/1", "value": "qux"}], {"foo": ["bar", "qux", "baz"]},
    ),
    "A.3 removing a member": ({"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
    "A.4 removing an element": (
        {"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]},
    ),
    "A.5 replacing a value": (
        {"baz": "qux", "foo": "bar"}, [{"op": "replace", "path": "/baz", "value": "boo"}], {"baz": "boo", "foo": "bar"},
    ),
    "A.6 moving a value": (
        {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
        [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
        {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
    ),
    "A.7 moving an element": (
        {"foo": ["all", "grass", "cows", "eat"]},
        [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
        {"foo": ["all", "cows", "eat", "grass"]},
    ),
    "A.8 testing a value": (
        {"baz": "qux", "foo": ["a", 2, "c"]},
        [{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}],
        {"baz": "qux", "foo": ["a", 2, "c"]},
    ),
    "A.10 adding a nested object": (
        {"foo": "bar"}, [{"op": "add", "path": "/child", "value": {"g": {}}}], {"foo": "bar", "child": {"g": {}}},
    ),
    "A.11 members that nobody knows": (
        {"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux", "xyz": 1}], {"foo": "bar", "baz": "qux"},
    ),
    "A.14 escaped pointers": ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    "A.16 adding to an end": (
        {"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}], {"foo": ["bar", ["abc", "def"]]},
    ),
    "copying a value": ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1], "b": [1]}),
    "the whole document": ({"a": 1}, [{"op": "replace", "path": "", "value": {"b": 2}}], {"b": 2}),
}  # fmt: skip
MISFITS: dict[str, tuple[Any, list[dict[str, Any]], str]] = {
    "A.9 a test that fails": ({"baz": "qux"}, [{"op": "test", "path": "/baz", "value": "bar"}], "another value"),
    "A.12 adding below nothing": ({"foo": "bar"}, [{"op": "add", "path": "/baz/bat", "value": 1}], "'/baz'"),
    "A.15 a number is no text": ({"~1": 10}, [{"op": "test", "path": "/~01", "value": "10"}], "another value"),
    "one is not true": ({"a": 1}, [{"op": "test", "path": "/a", "value": True}], "another value"),
    "removing nothing": ({}, [{"op": "remove", "path": "/total"}], "nothing at '/total'"),
    "an index beyond the end": ([1], [{"op": "add", "path": "/2", "value": 3}], "nothing at '/2'"),
    "an index with a zero before it": ([1, 2], [{"op": "remove", "path": "/01"}], "nothing at '/01'"),
    "an unknown operation": ({}, [{"op": "set", "path": "/a", "value": 1}], '"op"'),
    "no value": ({}, [{"op": "add", "path": "/a"}], '"value"'),
    "no pointer": ({}, [{"op": "add", "path": "a", "value": 1}], "JSON pointer"),
    "into itself": ({"a": {"b": 1}}, [{"op": "move", "from": "/a", "path": "/a/b"}], "into itself"),
    "below a text": ({"a": "x"}, [{"op": "add", "path": "/a/b", "value": 1}], "nothing can be put"),
}
MERGES: list[tuple[Any, dict[str, Any], Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize("case", OPERATIONS)
def test_operations_do_what_their_standard_says(case: str) -> None:
    before, patch, after = OPERATIONS[case]
    assert json.loads(mended(json.dumps(before).encode(), patch)) == after


@pytest.mark.parametrize("case", MISFITS)
def test_an_operation_that_does_not_fit_is_named(case: str) -> None:
    before, patch, why = MISFITS[case]
    with pytest.raises(Problem) as refused:
        mended(json.dumps(before).encode(), [{"op": "test", "path": "", "value": before}, *patch])
    assert refused.value.status == 422
    assert refused.value.errors[0]["pointer"] == "#/patch/1"
    assert why in refused.value.errors[0]["detail"]


@pytest.mark.parametrize(("before", "patch", "after"), MERGES)
def test_an_object_is_merged_in(before: Any, patch: dict[str, Any], after: Any) -> None:
    assert json.loads(mended(json.dumps(before).encode(), patch)) == after


def test_a_letter_that_is_no_json_cannot_be_patched() -> None:
    with pytest.raises(Problem, match="send the whole of it as `body`"):
        mended(b'{"event": ', {"event": "x"})
    with pytest.raises(Problem, match="send the whole of it as `body`"):
        mended(b"\xff\xfe", [])


def test_what_utf8_cannot_say_is_refused() -> None:
    with pytest.raises(Problem) as refused:
        mended(b"{}", {"name": "\ud800"})
    assert refused.value.status == 422
