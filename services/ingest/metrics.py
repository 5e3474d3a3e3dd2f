"""What ingest counts. Names, labels and meanings: `shared/metrics.py`."""

from __future__ import annotations

from shared import metrics

ACCEPTED = metrics.INGEST_ACCEPTED
REFUSED = metrics.INGEST_REFUSED
ANSWERS = metrics.INGEST_ANSWERS
BAD_IDENTIFIERS = metrics.INGEST_BAD_IDENTIFIERS
REMOVED = metrics.INGEST_REMOVED
BADLY_SIGNED = metrics.INGEST_BADLY_SIGNED
BYTES_IN_FLIGHT = metrics.INGEST_BYTES_IN_FLIGHT
SECONDS = metrics.INGEST_SECONDS
