"""The kinds of conditions there are: every module in `kinds/` that defines a Leaf, found by the folder."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from shared.conditions import kinds as folder
from shared.conditions.model import Leaf

# Words of the language whose data the profile service does not keep yet; a kind of that name replaces the refusal.
UNAVAILABLE = {
    "segment": "segments",
    "rfm": "RFM cells",
    "rfm_moved": "RFM cells",
    "value": "customer value (CLTV, CPV)",
}


@cache
def kinds() -> dict[str, type[Leaf]]:
    """The kinds by the key they have in a document."""
    found: dict[str, type[Leaf]] = {}
    for module_info in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{folder.__name__}.{module_info.name}")
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, Leaf) and thing.__module__ == module.__name__:
                if thing.name in found:
                    raise TypeError(f"two condition kinds are called {thing.name!r}")
                found[thing.name] = thing
    return dict(sorted(found.items()))


def unavailable() -> dict[str, str]:
    """Known words without a kind, and what they wait for."""
    return {word: what for word, what in UNAVAILABLE.items() if word not in kinds()}
