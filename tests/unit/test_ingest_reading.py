"""Bodies that break readers: each fault is found where it stands, and costs its own item only."""

from __future__ import annotations

import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest import json_split, strict_json
from services.ingest.collect import inflate, user_of
from services.ingest.reading import read_body
from services.ingest.refusal import Refusal
from shared.errors import Problem
from tests.support.hostile import BROKEN_VALUES

POINTS = {
    "a name twice": "/properties/x/a",
    "a name twice, with blanks": "/properties/x/a",
    "a name twice, deep": "/properties/x/x/0/a",
    "NUL in a name": "/properties/x/a\N{REPLACEMENT CHARACTER}",
}
KEY = "c" + "a" * 24
NOWHERE = {"raw NUL", "surrogate as bytes", "not UTF-8", "no JSON", "depth 3 000 of objects"}


@pytest.mark.parametrize("name", BROKEN_VALUES)
def test_a_broken_value_is_refused_where_it_stands(name: str) -> None:
    raw = b'{"event":"X","properties":{"ok":"ok","x":' + BROKEN_VALUES[name] + b'},"userId":"u"}'
    with pytest.raises(Refusal) as caught:
        strict_json.read(raw)
    refusal = caught.value
    assert refusal.kind == "json"
    if name == "depth 100":
        assert refusal.pointer.startswith("/properties/x/0")
    elif name in NOWHERE:
        assert refusal.pointer == ""
    else:
        assert refusal.pointer == POINTS.get(name, "/properties/x")


@pytest.mark.parametrize("name", BROKEN_VALUES)
def test_a_broken_item_does_not_lose_its_neighbours(name: str) -> None:
    good = b'{"type":"track","event":"Product Added","userId":"u","properties":{"text":"a \\"quoted]}, {\\\\"}}'
    bad = b'{"type":"track","event":"X","properties":{"x":' + BROKEN_VALUES[name] + b"}}"
    if name == "no JSON":
        bad = b'{"a":{unquoted}}'
    body = (
        b'{"context":{"a":1}, "batch" : ['
        + good
        + b" , "
        + bad
        + b",\n"
        + good
        + b'], "sentAt":"2026-11-23T10:00:00Z"}'
    )
    reading = read_body(body, "batch")
    assert [item.raw for item in reading.items] == [good, bad, good]
    assert (reading.envelope.context, reading.envelope.sent_at) == ({"a": 1}, "2026-11-23T10:00:00Z")
    assert strict_json.read(reading.items[0].raw)["properties"]["text"] == 'a "quoted]}, {\\'
    with pytest.raises(Refusal):
        strict_json.read(reading.items[1].raw)


def test_a_million_brackets_are_refused_at_once() -> None:
    bomb = b"[" * 1_000_000
    begun = time.process_time()
    for raw in (bomb, b'{"x":' + bomb, b'{"batch":' + bomb, b'{"batch":[' + b'{"a":' * 200_000):
        with pytest.raises(Refusal):
            read_body(raw, "batch")
        with pytest.raises(Refusal):
            read_body(raw, "track")
    assert time.process_time() - begun < 5


def test_quotes_that_never_end_take_no_quadratic_time() -> None:
    body = b'{"batch":["' + b'\\"' * 250_000
    begun = time.process_time()
    with pytest.raises(Refusal):
        read_body(body, "batch")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"x"', b"{}", b'{"batch":null}', b'{"batch":{}}', b'{1:2,"batch":[]}',
        b'{"batch":[{}', b'{"batch":[{}]', b'{"batch":[{}]]', b'{"batch":[{}]}}', b'{"batch":[{}]} x',
        b'{"batch":[],"batch":[{}]}', b'{"batch":[{}],"context":[]}', b'{"batch":[{}],"sentAt":7}',
        b'{"batch":[{}],"context":{"a":"\\u0000"}}', b'{"batch":[' + b",".join([b"{}"] * 2_501) + b"]}",
    ],
)  # fmt: skip
def test_a_body_that_is_no_batch_is_refused_whole(body: bytes) -> None:
    with pytest.raises(Refusal):
        read_body(body, "batch")


def test_2500_events_are_a_batch() -> None:
    assert len(read_body(b'{"batch":[' + b",".join([b"{}"] * 2_500) + b"]}", "batch").items) == 2_500


def test_a_byte_order_mark_is_no_part_of_the_body() -> None:
    assert read_body(b'\xef\xbb\xbf{"writeKey":"caaaaaaaaaaaaaaaaaaaaaaaa"}', "track").write_key == "c" + "a" * 24


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e15, 1e15) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(json_values, st.booleans(), st.sampled_from([None, 1]))
def test_what_is_json_is_read_as_it_is(value: object, ascii_only: bool, indent: int | None) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert strict_json.read(raw) == value


@given(st.lists(json_values, max_size=5), st.booleans(), st.sampled_from([None, 1]))
def test_a_body_is_cut_where_its_items_end(values: list[object], ascii_only: bool, indent: int | None) -> None:
    raw = json.dumps({"a": 1, "batch": values}, ensure_ascii=ascii_only, indent=indent).encode()
    (_, one), (name, batch) = json_split.members(raw)
    assert (one, name) == (b"1", b'"batch"')
    assert [json.loads(part) for part in json_split.elements(batch)] == values


@pytest.mark.parametrize(
    ("header", "user"),
    [
        (b"Basic " + base64.b64encode(KEY.encode() + b":"), KEY),
        (b"basic " + base64.b64encode(KEY.encode() + b":password"), KEY),
        (b"Basic " + base64.b64encode(KEY.encode()), KEY),
        (b"Basic " + base64.b64encode(b"somebody:"), None),
        (b"Basic Og==", None),
        (b"Basic !!!", None),
        (b"Basic \xff", None),
        (b"Basic /w==", None),
        (b"Bearer abc", None),
        (b"", None),
    ],
)
def test_the_user_name_of_basic_is_the_key(header: bytes, user: str | None) -> None:
    assert user_of(header) == user


def test_a_gzip_bomb_is_stopped_early_and_a_broken_stream_is_told() -> None:
    import gzip
    import tracemalloc

    bomb = gzip.compress(bytes(128 << 20), 9)
    tracemalloc.start()
    with pytest.raises(Problem) as caught:
        inflate(bomb)
    assert caught.value.status == 413
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    whole = gzip.compress(b'{"a":1}')
    assert inflate(whole + whole) == b'{"a":1}{"a":1}'
    for broken in (whole[:-4], whole[:5], b"\x1f\x8bnonsense", b"{}"):
        with pytest.raises(Problem) as caught:
            inflate(broken)
        assert caught.value.status == 400
    assert len(inflate(gzip.compress(b"x" * 500 * 1024))) == 500 * 1024
    with pytest.raises(Problem):
        inflate(gzip.compress(b"x" * (500 * 1024 + 1)))


def test_a_body_of_thousands_of_empty_gzip_members_is_refused_before_it_is_worked_through() -> None:
    import gzip

    member = gzip.compress(b"")
    begun = time.process_time()
    with pytest.raises(Problem, match="parts") as caught:
        inflate(member * (500 * 1024 // len(member)))
    assert caught.value.status == 400
    assert time.process_time() - begun < 0.05, "nothing stops the event loop for 50 ms"
    assert inflate(member * 15 + gzip.compress(b"{}")) == b"{}"
