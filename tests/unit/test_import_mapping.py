"""Mappings: what rows become, and what a wrong mapping is told."""

import io

import pytest

from services.importing.formats import Row, formats
from services.importing.mapping import parse_mapping, shipped_mappings
from services.importing.problems import BadMapping, ImportProblem
from services.importing.records import records
from services.importing.runner import read_records

FILE_ID = "0123456789abcdef" * 4


def mapping(**changes):
    document = {
        "name": "test",
        "format": "csv",
        "events": [{"event": "Order Completed", "user_id": "who", "timestamp": {"field": "when", "as": "time"}}],
    }
    return parse_mapping(document | changes)


def event(**changes):
    return {"event": "Order Completed", "user_id": "who", "timestamp": {"field": "when", "as": "time"}} | changes


def rows(*fields):
    return [Row(number, {"who": "anna", "when": "2024-03-01"} | row) for number, row in enumerate(fields, start=2)]


def made(chosen, *fields, live=False):
    return list(records(chosen, rows(*fields), file_id=FILE_ID, live=live))


def only_event(chosen, *fields, live=False):
    (record,) = made(chosen, *fields, live=live)
    assert not record.left_out, record.left_out
    (found,) = record.events
    return found


def value_of(value, fields):
    found = only_event(mapping(events=[event(properties={"found": value})]), fields)
    return found.get("properties", {}).get("found")


def test_an_imported_event_is_history_and_a_live_one_is_not():
    assert only_event(mapping(), {})["context"] == {"dripline": {"history": True}}
    assert "context" not in only_event(mapping(), {}, live=True)


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2011-01-15 12:00:00", "Europe/London", "2011-01-15T12:00:00+00:00"),
        ("2011-07-15 12:00:00", "Europe/London", "2011-07-15T12:00:00+01:00"),
        # the clocks go forward at 01:00: the hour that does not exist is read with the winter offset
        ("2011-03-27 01:30:00", "Europe/London", "2011-03-27T01:30:00+00:00"),
        # the clocks go back at 02:00: of the two half past ones the first, in summer time
        ("2011-10-30 01:30:00", "Europe/London", "2011-10-30T01:30:00+01:00"),
        ("2011-10-30 01:30:00+00:00", "Europe/London", "2011-10-30T01:30:00+00:00"),
        ("2011-07-15 12:00:00", "Asia/Yekaterinburg", "2011-07-15T12:00:00+06:00"),
    ],
)
def test_local_times_get_the_offset_of_their_zone_and_day(text, zone, expected):
    assert only_event(mapping(time_zone=zone), {"when": text})["timestamp"] == expected


@pytest.mark.parametrize(
    ("value", "fields", "expected"),
    [
        ("name", {"name": " Lamp "}, "Lamp"),
        ("name", {"name": "  "}, None),
        ("name", {}, None),
        ({"field": "id", "as": "id"}, {"id": "17850.0"}, "17850"),
        ({"field": "id", "as": "id"}, {"id": "17850.5"}, "17850.5"),
        ({"field": "n", "as": "integer"}, {"n": "6.0"}, 6),
        ({"field": "n", "as": "integer", "absolute": True}, {"n": "-6"}, 6),
        ({"field": "s", "map": {"1": "new"}}, {"s": 1}, "new"),
        ({"field": "s", "default": "unknown"}, {}, "unknown"),
        ({"constant": "GBP"}, {}, "GBP"),
        ({"text": "guest:{no}"}, {"no": "7.0"}, "guest:7"),
        ({"text": "guest:{no}"}, {}, None),
        ({"first_of": ["mobile", "phone"]}, {"phone": "1"}, "1"),
        ({"object": {"a": "x", "b": "y"}}, {"x": "1"}, {"a": "1"}),
        ({"field": "ts", "as": "unix_ms"}, {"ts": 1659304800025}, "2022-07-31T22:00:00.025000+00:00"),
        ({"field": "ts", "as": "unix_s"}, {"ts": "1659304800"}, "2022-07-31T22:00:00+00:00"),
        ({"field": "tags", "as": "as_is"}, {"tags": ["a"]}, ["a"]),
    ],
)
def test_each_form_of_a_value(value, fields, expected):
    assert value_of(value, fields) == expected


def test_sums_over_a_record_are_exact():
    chosen = mapping(
        group_by=["no"],
        events=[event(properties={"total": {"sum_of_products": ["n", "price"]}, "lines": {"each": {"p": "p"}}})],
    )
    properties = only_event(
        chosen, {"no": 1, "n": "3", "price": "0.1", "p": "a"}, {"no": 1, "n": "1", "price": "0.2", "p": "b"}
    )["properties"]
    assert str(properties["total"]) == "0.5"
    assert properties["lines"] == [{"p": "a"}, {"p": "b"}]


def test_a_guest_is_anonymous_only_where_nobody_is_known():
    chosen = mapping(events=[event(guest_id={"text": "guest:{no}"})])
    assert only_event(chosen, {"no": "1"}) | {} == only_event(chosen, {"no": "1"})
    assert "anonymousId" not in only_event(chosen, {"no": "1"})
    guest = only_event(chosen, {"who": "", "no": "1"})
    assert guest["anonymousId"] == "guest:1"
    assert "userId" not in guest


def test_rows_left_out_are_listed_with_the_first_reason_that_fits():
    chosen = mapping(
        leave_out=[{"where": {"n": {"lte": 0}}, "reason": "none"}, {"where": {"n": {"lt": 10}}, "reason": "few"}]
    )
    found = made(chosen, {"n": "0"}, {"n": "5"}, {"n": "10"})
    assert [[item.reason for item in record.left_out] for record in found] == [["none"], ["few"], []]
    assert [len(record.events) for record in found] == [0, 0, 1]


def test_one_unreadable_row_leaves_out_its_whole_record_and_no_other():
    chosen = mapping(
        group_by=["no"],
        leave_out=[{"where": {"n": {"lte": 0}}, "reason": "none"}],
        events=[event(properties={"total": {"sum_of_products": ["n"]}})],
    )
    bad, good = made(chosen, {"no": "1", "n": "2"}, {"no": "1", "n": "two"}, {"no": "2", "n": "2"})
    assert not bad.events
    assert [item.reason for item in bad.left_out] == ["n is not a number: 'two'"] * 2
    assert len(good.events) == 1


def test_a_record_whose_second_event_cannot_be_made_sends_none():
    chosen = mapping(events=[event(), event(event="Order Refunded", properties={"total": {"sum_of_products": ["n"]}})])
    (bad,) = made(chosen, {"n": "two"})
    assert not bad.events
    assert len(bad.left_out) == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"who": ""}, "says nobody whose event it is"),
        ({"when": ""}, "has no time"),
        ({"when": "yesterday"}, "when is not an ISO 8601 time: 'yesterday'"),
    ],
)
def test_a_record_without_person_or_time_is_left_out_with_the_reason(fields, reason):
    (record,) = made(mapping(), fields)
    assert not record.events
    assert [item.reason for item in record.left_out] == [reason]


@pytest.mark.parametrize("number", ["nan", "Infinity", "1e5x", ""])
def test_what_is_no_finite_number_is_never_added_up(number):
    (record,) = made(mapping(events=[event(properties={"total": {"sum_of_products": ["n"]}})]), {"n": number})
    assert not record.events
    assert record.left_out


def test_a_record_that_comes_again_is_left_out_and_not_sent_with_half_its_rows():
    chosen = mapping(group_by=["no"])
    found = made(chosen, {"no": "1"}, {"no": "2"}, {"no": "1"})
    assert [len(record.events) for record in found] == [1, 1, 0]
    assert "sort the file by no" in found[2].left_out[0].reason


def test_a_message_id_is_the_natural_key_wherever_the_row_stands():
    chosen = mapping(events=[event(key="{no}")])
    first, second = made(chosen, {"no": "7"}, {"no": "8"})
    (moved,) = made(chosen, {"no": "8"})
    assert first.events[0]["messageId"] != second.events[0]["messageId"]
    assert moved.events[0]["messageId"] == second.events[0]["messageId"]


def test_without_a_natural_key_the_message_id_is_the_place_in_this_file():
    one, two = made(mapping(), {}, {})
    again = made(mapping(), {}, {})
    other = list(records(mapping(), rows({}, {}), file_id="f" * 64, live=False))
    assert one.events[0]["messageId"] != two.events[0]["messageId"]
    assert [r.events[0]["messageId"] for r in again] == [one.events[0]["messageId"], two.events[0]["messageId"]]
    assert other[0].events[0]["messageId"] != one.events[0]["messageId"]


@pytest.mark.parametrize("key", ["x" * 500, "заказ-1"])
def test_a_message_id_is_short_and_plain_whatever_the_key(key):
    first = only_event(mapping(events=[event(key="{no}")]), {"no": key})["messageId"]
    second = only_event(mapping(events=[event(key="{no}")]), {"no": key + "y"})["messageId"]
    assert len(first) <= 100
    assert first.isascii()
    assert first != second


def test_a_record_becomes_every_event_that_fits_it():
    chosen = mapping(
        events=[
            {"type": "identify", "user_id": "who", "timestamp": "when", "traits": {"email": "mail"}},
            event(event="Consent Granted", where={"mail": {"exists": True}}),
        ]
    )
    known, unknown = made(chosen, {"mail": "a@example.org"}, {})
    assert [found.get("event", found["type"]) for found in known.events] == ["identify", "Consent Granted"]
    assert [found["type"] for found in unknown.events] == ["identify"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"evnts": []}, "evnts: unknown field; did you mean 'events'?"),
        ({"format": "cvs"}, "format: there is no source format 'cvs'; did you mean 'csv'?"),
        ({"options": {"delimeter": ";"}}, "options.delimeter: unknown field; did you mean 'delimiter'?"),
        ({"time_zone": "Europe/Lodon"}, "time_zone: no time zone 'Europe/Lodon'; did you mean 'Europe/London'?"),
        (
            {"leave_out": [{"where": {"a": {"prefx": "C"}}, "reason": "x"}]},
            "leave_out.0.where.a.prefx: unknown field; did you mean 'prefix'?",
        ),
        (
            {"leave_out": [{"where": {"a": {"gt": "much"}}, "reason": "x"}]},
            "leave_out.0.where.a: gt is not a number: 'much'",
        ),
        ({"events": [event(propertys={})]}, "events.0.propertys: unknown field; did you mean 'properties'?"),
        (
            {"events": [event(timestamp={"field": "a", "ass": "time"})]},
            "events.0.timestamp.ass: unknown field; did you mean 'as'?",
        ),
        ({"events": [{"event": "A", "timestamp": "when"}]}, "whose event is it?"),
        ({"events": [event(properties={"a": {"text": "{"}})]}, "write a field as {FieldName}"),
        ({"events": []}, "events: "),
    ],
)
def test_a_wrong_mapping_names_the_field_and_suggests_the_nearest(changes, sentence):
    with pytest.raises(BadMapping) as problem:
        mapping(**changes)
    assert sentence in str(problem.value)


def test_a_column_that_the_file_does_not_have_is_told_before_anything_is_sent(tmp_path):
    path = tmp_path / "orders.csv"
    path.write_text("whom,when\nanna,2024-03-01\n")
    with pytest.raises(BadMapping, match="no column 'who'; did you mean 'whom'"):
        list(read_records(path, mapping()))


@pytest.mark.parametrize("name", sorted(formats()))
def test_every_format_reads_its_own_example(name):
    chosen = formats()[name]
    assert chosen.name == name
    found = list(chosen.read(io.BytesIO(chosen.example), chosen.options()))
    assert len(found) == chosen.example_rows
    assert all(row.problem is None and row.fields for row in found)
    declared = chosen.fields(io.BytesIO(chosen.example), chosen.options())
    assert declared is None or set(found[0].fields) == set(declared)


@pytest.mark.parametrize("name", sorted(shipped_mappings()))
def test_every_shipped_mapping_is_a_mapping_named_like_its_file(name):
    from services.importing.mapping import load_mapping

    assert load_mapping(name).name == name
    assert load_mapping(str(shipped_mappings()[name])) == load_mapping(name)


def test_a_csv_row_with_other_columns_than_the_header_is_left_out_alone():
    csv = formats()["csv"]
    found = list(csv.read(io.BytesIO(b"a,b\n1,2\n1,2,3\n4,5\n"), csv.options()))
    assert [row.problem for row in found] == [None, "has 3 columns, the header 2", None]
    assert [row.line for row in found] == [2, 3, 4]


def test_a_line_that_is_not_json_is_left_out_alone():
    jsonl = formats()["jsonl"]
    found = list(jsonl.read(io.BytesIO(b'{"a":1}\nnot json\n[1]\n{"a":"\xff"}\n{"a":2}\n'), jsonl.options()))
    assert [row.problem is None for row in found] == [True, False, False, False, True]


def test_a_file_in_another_encoding_is_told_so():
    csv = formats()["csv"]
    with pytest.raises(ImportProblem, match=r"is not utf-?8"):
        list(csv.read(io.BytesIO("a,b\n1,я\n".encode("cp1251")), csv.options()))
    (row,) = csv.read(io.BytesIO("a,b\n1,я\n".encode("cp1251")), csv.options(encoding="cp1251"))
    assert row.fields["b"] == "я"


def test_a_file_that_was_cut_short_is_told_so(tmp_path):
    import gzip

    path = tmp_path / "orders.csv.gz"
    path.write_bytes(gzip.compress(b"who,when\n" + b"anna,2024-03-01\n" * 5000)[:-50])
    with pytest.raises(ImportProblem, match="damaged or cut short"):
        list(read_records(path, mapping()))
