"""What dispatch counts. Names, labels and meanings: `shared/metrics.py`."""

from __future__ import annotations

from shared import metrics

DECISIONS = metrics.DISPATCH_DECISIONS
CALLS = metrics.DISPATCH_CALLS
CALL_SECONDS = metrics.DISPATCH_CALL_SECONDS
UNKNOWN = metrics.DISPATCH_UNKNOWN
COST = metrics.DISPATCH_COST
OPT_OUT_SECONDS = metrics.DISPATCH_OPT_OUT_SECONDS
REPORTS = metrics.DISPATCH_REPORTS
CALLBACKS = metrics.DISPATCH_CALLBACKS
PAUSES = metrics.DISPATCH_PAUSES
AWAY = metrics.DISPATCH_AWAY
TESTS = metrics.DISPATCH_TESTS
LIMITED = metrics.DISPATCH_LIMITED
