"""What triggers counts. Names, labels and meanings: `shared/metrics.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared import metrics

if TYPE_CHECKING:
    from services.triggers.changes import Changes

DECISIONS = metrics.TRIGGERS_DECISIONS
FAILED = metrics.TRIGGERS_FAILED
CLAIMS = metrics.TRIGGERS_CLAIMS
PUT_ASIDE = metrics.TRIGGERS_PUT_ASIDE
ASIDE_SETTLED = metrics.TRIGGERS_ASIDE_SETTLED


def count(changes: Changes) -> None:
    """Counts decisions once their transaction is about to commit."""
    for decision in changes.decisions:
        DECISIONS.labels(decision.what).inc()
        if decision.what == "failed":
            FAILED.labels(decision.version.name).inc()
