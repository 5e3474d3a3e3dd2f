"""What ingest counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ACCEPTED = Counter("dripline_ingest_events_accepted_total", "Events answered with 200, by trust", ["trust"])
REFUSED = Counter(
    "dripline_ingest_events_refused_total", "Events refused and kept, by what the refusal is about", ["kind"]
)
ANSWERS = Counter("dripline_ingest_answers_total", "Answers of the collecting endpoints, by status", ["status"])
BAD_IDENTIFIERS = Counter(
    "dripline_ingest_bad_identifiers_total",
    "Values in accepted events that cannot be identifiers of their kind",
    ["kind"],
)
REMOVED = Counter("dripline_ingest_removed_total", "Foreign links and overlong names taken out of public events")
BADLY_SIGNED = Counter("dripline_ingest_badly_signed_total", "Events of public sources with a signature that is wrong")
BYTES_IN_FLIGHT = Gauge("dripline_ingest_bytes_in_flight", "Bytes of requests that are not answered yet")
SECONDS = Histogram(
    "dripline_ingest_seconds",
    "Seconds from the last byte of a request to the durable write of its events",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
