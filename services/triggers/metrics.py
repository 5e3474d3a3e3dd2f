"""Every metric of triggers, with its meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram

if TYPE_CHECKING:
    from services.triggers.deciding import Changes

DECISIONS = Counter("dripline_decisions_total", "Decisions about people, by what came of them", ["what"])
FAILED = Counter("dripline_rule_failures_total", "Rules that failed at run time for somebody", ["rule"])
CLAIMS = Histogram(
    "dripline_claim_seconds",
    "Seconds of a claim that found something due",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
PUT_ASIDE = Counter(
    "dripline_items_put_aside_total", "Items held because handling them failed for a reason outside their rule"
)


def count(changes: Changes) -> None:
    """Counts decisions once their transaction is about to commit."""
    for decision in changes.decisions:
        DECISIONS.labels(decision.what).inc()
        if decision.what == "failed":
            FAILED.labels(decision.version.name).inc()
