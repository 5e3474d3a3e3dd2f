"""What an import tells at its end: counts, and a CSV file of everything that was left out, with reasons."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from services.importing.problems import ImportProblem
from services.importing.records import LeftOut, Record


@dataclass
class Report:
    """Counts of one import. Rows are rows of the file; `left_out` counts rows by reason, `refused` events by reason.

    rows == rows that went into events + rows left out. `sent` counts events acknowledged by the server, those of an
    earlier attempt at the same file (`resumed`) included.
    """

    rows: int = 0
    records: int = 0
    events: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    resumed: int = 0
    complete: bool = False

    def add(self, record: Record) -> None:
        self.rows += record.rows
        self.records += 1
        self.events.update(str(event.get("event") or event["type"]) for event in record.events)

        self.left_out.update(item.reason for item in record.left_out)


class LeftOutFile:
    """A CSV of what was not sent: line, key, reason and the row as it was read. Made only when there is something."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self._file: IO[str] | None = None
        self._writer: Any = None

    def add(self, item: LeftOut) -> None:
        if self._file is None:
            try:
                self._file = self.path.open("w", newline="", encoding="utf-8")
            except OSError as problem:
                raise ImportProblem(
                    f"cannot write {self.path} ({problem.strerror}); name another: --left-out"
                ) from problem
            self._writer = csv.writer(self._file)
            self._writer.writerow(["line", "key", "reason", "row"])
        self._writer.writerow([item.line, item.key, item.reason, msgspec.json.encode(item.fields).decode()])
        self.lines += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
