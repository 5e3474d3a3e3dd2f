"""CSV: a header line, then one row a line (or several, where a quoted field contains line breaks)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict

from services.importing.formats import Row
from services.importing.problems import ImportProblem

# A field may hold a whole description, but not the rest of the file after a quote that nobody closed.
_LONGEST_FIELD = 1_000_000


class CsvOptions(BaseModel):
    """`options` of a mapping for CSV."""

    model_config = ConfigDict(extra="forbid")

    delimiter: str = ","
    quote: str = '"'
    encoding: str = "utf-8-sig"


class CsvFormat:
    name = "csv"
    options = CsvOptions
    example = b'a,b\r\n1,"two\r\nlines"\r\n2,\r\n'
    example_rows = 2

    def fields(self, data: BinaryIO, options: CsvOptions) -> list[str]:
        return self._header(self._reader(data, options))

    def read(self, data: BinaryIO, options: CsvOptions) -> Iterator[Row]:
        reader = self._reader(data, options)
        header = self._header(reader)
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as problem:
                yield Row(line, {}, f"not a CSV row: {problem}")
                continue
            except UnicodeDecodeError as problem:
                raise _other_encoding(line, problem) from problem
            if not values:
                continue
            fields = dict(zip(header, values, strict=False))
            wrong = len(values) != len(header)
            yield Row(line, fields, f"has {len(values)} columns, the header {len(header)}" if wrong else None)

    def _reader(self, data: BinaryIO, options: CsvOptions):  # type: ignore[no-untyped-def]  # csv names no public type
        csv.field_size_limit(_LONGEST_FIELD)
        try:
            text = io.TextIOWrapper(data, encoding=options.encoding, newline="")
            return csv.reader(text, delimiter=options.delimiter, quotechar=options.quote, strict=True)
        except (LookupError, TypeError) as problem:
            raise ImportProblem(f"options of the mapping do not fit CSV: {problem}") from problem

    def _header(self, reader) -> list[str]:  # type: ignore[no-untyped-def]
        try:
            header = [name.strip() for name in next(reader)]
        except StopIteration:
            raise ImportProblem("the file is empty; a CSV file begins with a line of column names") from None
        except UnicodeDecodeError as problem:
            raise _other_encoding(1, problem) from problem
        except csv.Error as problem:
            raise ImportProblem(f"the first line is not a line of column names: {problem}") from problem
        twice = {name for name in header if header.count(name) > 1}
        if twice:
            raise ImportProblem(f"the column {sorted(twice)[0]!r} is there twice; give the columns different names")
        return header


def _other_encoding(line: int, problem: UnicodeDecodeError) -> ImportProblem:
    return ImportProblem(
        f"from about line {line} on the file is not {problem.encoding} ({problem.reason}); "
        "name its encoding in the mapping, as in options: {encoding: cp1251}"
    )


FORMAT = CsvFormat()
