"""What `dripline audit --derive` said that it had computed again."""

from __future__ import annotations

import re

KINDS = ("decisions", "entries", "holdout draws", "intents", "occasions to enter", "choices", "rows of alternatives")


def computed_again(said: str) -> dict[str, int]:
    """By kind how many were computed again. Fails unless both lines are there and say that there were no differences."""
    one_line = " ".join(said.split())
    assert "decisions of triggers, computed again: 0 differences (" in one_line, said[-4000:]
    assert "choices of dispatch, computed again: 0 differences (" in one_line, said[-4000:]
    told = {name: re.search(rf"[(,] ?(\d[\d ]*) {name}[,)]", one_line) for name in KINDS}
    return {name: int(found[1].replace(" ", "")) for name, found in told.items() if found is not None}
