"""JSON lines: one JSON object a line; with `each`, one row for every element of an array inside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec
from pydantic import BaseModel, ConfigDict

from services.importing.formats import Row


class JsonlOptions(BaseModel):
    """`options` of a mapping for JSON lines.

    `each`: name of an array of objects in every line; each element becomes a row that also has the line's other fields
    (the element's own win).
    """

    model_config = ConfigDict(extra="forbid")

    each: str | None = None


class JsonlFormat:
    name = "jsonl"
    options = JsonlOptions
    example = b'{"a": 1}\n\n{"a": 2, "b": "two"}\n'
    example_rows = 2

    def fields(self, data: BinaryIO, options: JsonlOptions) -> None:
        return None  # every line may have fields of its own

    def read(self, data: BinaryIO, options: JsonlOptions) -> Iterator[Row]:
        decoder = msgspec.json.Decoder()
        for number, line in enumerate(data, start=1):
            if not line.strip():
                continue
            try:
                record = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as problem:
                yield Row(number, {}, f"not JSON: {problem}")
                continue
            if not isinstance(record, dict):
                yield Row(number, {}, "not a JSON object")
            elif options.each is None:
                yield Row(number, record)
            else:
                yield from self._elements(number, record, options.each)

    def _elements(self, number: int, record: dict[str, Any], each: str) -> Iterator[Row]:
        elements = record.pop(each, None)
        if not isinstance(elements, list):
            yield Row(number, record, f"has no array {each!r}")
            return
        for element in elements:
            if isinstance(element, dict):
                yield Row(number, {**record, **element})
            else:
                yield Row(number, record, f"an element of {each!r} is not an object")


FORMAT = JsonlFormat()
