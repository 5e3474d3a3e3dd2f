"""The pipe to the process that owns the clock: one JSON object a line on standard output, answers on standard input.

    → {"ready": true, "slices": 2016}     ← {"ok": true}     at the beginning
    → {"slice": {"start": …, "end": …}}   ← {"ok": true}     this slice has events
    → {"at": …}            ← {"ok": true, "now": …}          the clock stands at this moment; now it is posted
    → {"close": …}         ← {"closed": true}                all before it is handled; may span many slices
    → {"done": true, "stats": {…}}                           the end; no answer
    → {"failed": "sentence"}                                 the run cannot go on; no answer

All times are ISO 8601 with zone. No other way leads time into the simulation: it never looks at a clock.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import IO, Any


class DriverGone(Exception):
    """The parent closed the pipe, or does not keep to the protocol."""


class Driver:
    """The demo's end of the pipe."""

    def __init__(self, read: IO[str], write: IO[str]) -> None:
        self._read, self._write = read, write

    def ready(self, slices: int) -> None:
        self._ask({"ready": True, "slices": slices}, "ok")

    def slice(self, start: datetime, end: datetime) -> None:
        self._ask({"slice": {"start": start.isoformat(), "end": end.isoformat()}}, "ok")

    def at(self, moment: datetime) -> datetime:
        """Moves the clock to `moment`; the clock's present time."""
        return datetime.fromisoformat(self._ask({"at": moment.isoformat()}, "ok")["now"])

    def close(self, end: datetime) -> None:
        """Returns once everything before `end` is handled: messages of that time are sent."""
        self._ask({"close": end.isoformat()}, "closed")

    def done(self, stats: dict[str, Any]) -> None:
        self._tell({"done": True, "stats": stats})

    def failed(self, sentence: str) -> None:
        self._tell({"failed": sentence})

    def _tell(self, words: dict[str, Any]) -> None:
        try:
            self._write.write(json.dumps(words) + "\n")
            self._write.flush()
        except (BrokenPipeError, ValueError) as problem:
            raise DriverGone("the pipe is closed") from problem

    def _ask(self, words: dict[str, Any], expected: str) -> dict[str, Any]:
        self._tell(words)
        line = self._read.readline()
        if not line:
            raise DriverGone("the pipe is closed")
        try:
            answer = json.loads(line)
        except ValueError as problem:
            raise DriverGone(f"not an answer: {line[:200]!r}") from problem
        if not isinstance(answer, dict) or answer.get(expected) is not True:
            raise DriverGone(f"expected {expected}, got {line[:200]!r}")
        return answer
