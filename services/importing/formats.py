"""Source formats: each is one module `*_format.py` in this folder with a `FORMAT`; there is no list to edit."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from pydantic import BaseModel

from services.importing.problems import BadMapping, suggestion


class Row(NamedTuple):
    """One row of a file. `line`: 1-based number of its first line. `problem`: why it could not be read, else None."""

    line: int
    fields: dict[str, Any]
    problem: str | None = None


class SourceFormat(Protocol):
    """How a kind of file becomes rows."""

    name: str
    options: type[BaseModel]  # what a mapping may say under `options`
    example: bytes  # a small file of this kind, read by the contract test with default options
    example_rows: int

    def fields(self, data: BinaryIO, options: Any) -> list[str] | None:
        """The field names that the file itself declares, else None."""

    def read(self, data: BinaryIO, options: Any) -> Iterator[Row]:
        """All rows in order. A row that cannot be read has a `problem`; a file that cannot raises ImportProblem."""


@cache
def formats() -> dict[str, SourceFormat]:
    """All formats in this folder, by name."""
    found: dict[str, SourceFormat] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name.endswith("_format"):
            source_format: SourceFormat = importlib.import_module(f"{__package__}.{module.name}").FORMAT
            found[source_format.name] = source_format
    return found


def format_named(name: str) -> SourceFormat:
    """Raises BadMapping if there is no such format."""
    if name not in formats():
        raise BadMapping(f"format: there is no source format {name!r}{suggestion(name, formats())}")
    return formats()[name]
