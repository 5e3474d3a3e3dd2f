"""Every metric of the plumbing, in one place, with its meaning. Services declare their own beside their code."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECORDS = Counter(
    "dripline_records_total", "Records handled by a consumer, by what became of them", ["group", "topic", "result"]
)
BATCHES = Histogram(
    "dripline_batch_seconds",
    "Seconds from BEGIN to the end of publishing, by consumer group",
    ["group"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
RETRIES = Counter("dripline_batch_retries_total", "Batches tried again after a transient error", ["group", "error"])
FENCED = Counter(
    "dripline_fenced_total", "Batches dropped because the position had moved: somebody else was faster", ["group"]
)
DEAD_LETTERS = Counter("dripline_dead_letters_total", "Records put aside with their reason", ["service"])
LAST_POLL = Gauge(
    "dripline_last_poll_timestamp_seconds", "When a consumer last came back from its bus", ["group", "topic"]
)
STOPPED_PARTITIONS = Gauge(
    "dripline_stopped_partitions", "Partitions stopped because their position is out of range", ["group"]
)
LEASES_HELD = Gauge("dripline_leases_held", "Leases this process holds", ["pool"])
TAKEOVERS = Counter("dripline_lease_takeovers_total", "Expired leases taken over from a member that went silent")
OUTBOX_ROWS = Counter("dripline_outbox_rows_published_total", "Outbox rows published", ["schema"])
WATERMARK_AGE = Gauge("dripline_watermark_age_seconds", "How far the watermark is behind the clock (keeper only)")
LOOP_FAILURES = Counter(
    "dripline_loop_failures_total", "Loops that ended with an error and were started again", ["service", "loop"]
)
