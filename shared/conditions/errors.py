"""What is wrong with a condition, and where in its document."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from shared.errors import DriplineError


class ConditionError(DriplineError):
    """A condition document cannot be understood.

    :param pointer: JSON pointer (RFC 6901, without `#`) of the field at fault: `/enter/if/all/0/cart/total`
    :param message: one sentence: what is wrong there and what to write instead
    """

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(f"{pointer or '/'}: {message}")
        self.pointer = pointer
        self.message = message


def joined(pointer: str, *parts: str | int) -> str:
    """`pointer` with `parts` behind it, escaped as RFC 6901 wants."""
    return pointer + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    by_folded = {k.casefold(): k for k in known}
    found = difflib.get_close_matches(str(name).casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown condition 'crat': did you mean 'cart'?`, or the names there are."""
    names = sorted(known)
    meant = nearest(name, names)
    hint = f"did you mean {meant!r}?" if meant else "known are " + ", ".join(names)
    return f"unknown {what} {name!r}: {hint}"
