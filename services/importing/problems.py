"""What can stop an import, said in one sentence that tells what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ImportProblem(Exception):
    """The import cannot start or cannot go on; the text is what a person reads."""


class BadMapping(ImportProblem):
    """The mapping file is not one; the text names the field and suggests the nearest known one."""


class BadField(ValueError):
    """A field of a row cannot be read as what the mapping says it is; its record is left out with this reason."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'InvoiceNo'?` or, when nothing is near, the known words."""
    words = sorted(known)
    near = get_close_matches(word, words, n=1, cutoff=0.6) or get_close_matches(
        word.lower(), [w.lower() for w in words], n=1, cutoff=0.6
    )
    if near:
        match = next(w for w in words if w.lower() == near[0].lower())
        return f"; did you mean {match!r}?"
    return f"; known are {', '.join(words)}" if words else ""
