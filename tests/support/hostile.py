"""Input that breaks readers, databases and clocks: values as JSON text, to be put into any field of an event."""

from __future__ import annotations

# name → JSON text of a value that is no legal value of any field
BROKEN_VALUES: dict[str, bytes] = {
    "NUL": b'"a\\u0000b"',
    "raw NUL": b'"a\x00b"',
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate": b'"x\\udfffy"',
    "surrogate as bytes": b'"\xed\xa0\x80"',
    "not UTF-8": b'"\xff\xfe"',
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "1e999": b"1e999",
    "1e400000": b"1e400000",
    "1e131000": b"1e131000",
    "a 40-digit integer": b"1" * 40,
    "a 5 000-digit integer": b"9" * 5_000,
    "a number beyond 10^15": b"1234567890123456789012.5",
    "a name twice": b'{"a":1,"a":2}',
    "a name twice, with blanks": b'{"a" : 1, "a"\t:2}',
    "a name twice, deep": b'{"x":[{"a":1,"b":{"a":1},"a":2}]}',
    "NUL in a name": b'{"a\\u0000":1}',
    "depth 100": b"[" * 100 + b"]" * 100,
    "depth 3 000 of objects": b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
    "no JSON": b"{unquoted}",
}
# Legal JSON that one field or another cannot hold.
STRANGE_VALUES: dict[str, bytes] = {
    "a long text": b'"' + b"x" * 9_600 + b'"',
    "a year far away": b'"294277-01-10T04:00:54.775807Z"',
    "a number": b"7",
    "a fraction": b"1.5",
    "true": b"true",
    "a list": b'["x"]',
    "an object": b'{"x":{"y":1}}',
    "an empty text": b'""',
    "null": b"null",
    "the smallest fraction": b"1e-400000",
    "the greatest integer": b"9223372036854775807",
    "letters of all planes": '"🦊 ёЖ \\ud83e\\udd8a"'.encode(),
    "a script": b'"<script>alert(1)</script>\'; DROP TABLE x; --"',
}
