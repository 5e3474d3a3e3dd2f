"""The control group: which people a rule leaves alone, by hash and not by chance, so that it can be computed again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

from services.triggers.run import Known
from shared.ids import SEPARATOR

_DENOMINATOR = 1 << 64


def draw(*parts: object) -> Decimal:
    """A number in [0, 1) that depends on the parts alone, evenly spread."""
    digest = hashlib.blake2b(SEPARATOR.join(str(part) for part in parts).encode(), digest_size=8).digest()
    # Twelve digits are exact in every store it travels through; rounding down keeps it below 1.
    return Decimal(int.from_bytes(digest, "big") * 10**12 // _DENOMINATOR).scaleb(-12)


def arm(rule: UUID, origin: UUID, share: Decimal, known: Sequence[Known]) -> tuple[bool, Decimal]:
    """Whether a new run is a ghost, and the draw.

    A person who has a run of this rule on any present node stays in that run's arm (the earliest's).

    :param known: runs of this rule on the person's present nodes
    :param share: of those who enter, the part to be held out
    """
    drawn = draw("holdout", rule, origin)
    if known:
        return min(known, key=lambda run: (run.entered_at, run.id)).ghost, drawn
    return drawn < share, drawn
