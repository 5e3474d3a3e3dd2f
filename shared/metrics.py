"""Every metric of Dripline, in one place: its name, its type, its labels and what it means.

`docs/METRICS.md` is written from this module (`scripts/generate_docs.py`), the dashboard and the alert rules are held
against it. A label's values are few and are never about a person: `LABELS` is the whole list of labels.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

LABELS = {
    "act": "what dispatch decided: send, withhold, wait …",
    "adapter": "one provider's way of serving a channel",
    "channel": "email, sms, push …; empty when none was chosen",
    "error": "the class of an error",
    "group": "who reads the bus: profile, triggers, dispatch",
    "how": "what a person had done with an item: retried, dropped",
    "kind": "of a refusal, of an identifier, or of a message (marketing, transactional)",
    "limit": "unproven, guesses, links, bytes, turns or presses: which limit of the public was passed",
    "loop": "one of a service's loops",
    "outcome": "what came of an exchange with a provider",
    "pool": "leases that one kind of worker shares",
    "reason": "a code of services/dispatch/reasons.py; empty when there is none",
    "result": "applied, repeated, conflicting, erased or dead",
    "rule": "the name that a marketer gave to a rule",
    "schema": "the service whose outbox it is",
    "service": "ingest, profile, triggers, dispatch; platform and keeper for what runs beside them",
    "status": "of an HTTP answer",
    "then": "what was done about an unknown outcome",
    "topic": "a bus topic",
    "trust": "of a source: public, signed, secret",
    "version": "of the program",
    "what": "what came of a decision: entered, finished, stopped …",
}

# ── reading and publishing ────────────────────────────────────────────────────────────────────────────────────────────
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
LOOP_FAILURES = Counter(
    "dripline_loop_failures_total", "Loops that ended with an error and were started again", ["service", "loop"]
)

# ── the deployment as a whole: read from the database, the same from every process, so take the maximum ───────────────
WATERMARK_AGE = Gauge("dripline_watermark_age_seconds", "How far the watermark is behind the clock")
MARK_AGE = Gauge("dripline_mark_age_seconds", "How long ago the keeper made its last mark")
LAG = Gauge("dripline_lag_records", "Records of a bus topic that a group has not handled yet", ["group", "topic"])
LAG_PARTITION = Gauge(
    "dripline_lag_partition", "The partition that is furthest behind; -1 while none is", ["group", "topic"]
)
OUTBOX_AGE = Gauge("dripline_outbox_oldest_seconds", "Age of the oldest row that waits to be published", ["schema"])
DEAD_LETTERS_OPEN = Gauge(
    "dripline_dead_letters_open", "Dead letters that nobody replayed or discarded; counted up to 10 000", ["service"]
)
OVERDUE = Gauge(
    "dripline_dispatch_overdue_seconds", "How long the first message of the queue has been due; 0 if none is", ["kind"]
)
HELD = Gauge("dripline_held", "1 while dispatch is held (after a restore, or by hand) and sends nothing")
DATABASE_BYTES = Gauge("dripline_database_bytes", "Size of the database on its server's disk")
DATABASE_CONNECTIONS = Gauge("dripline_database_connections", "Connections to the database server, of everybody")
DATABASE_CONNECTIONS_LIMIT = Gauge("dripline_database_connections_limit", "The server's max_connections")
SAMPLED = Gauge(
    "dripline_sampled_timestamp_seconds", "When this process last read the figures of the deployment from the database"
)

# ── this process ──────────────────────────────────────────────────────────────────────────────────────────────────────
DISK_FREE = Gauge("dripline_data_dir_free_bytes", "Free bytes on the disk of DATA_DIR")
BUILD = Gauge("dripline_build_info", "1; the version that this process runs", ["version"])

# ── ingest ────────────────────────────────────────────────────────────────────────────────────────────────────────────
INGEST_ACCEPTED = Counter("dripline_ingest_events_accepted_total", "Events answered with 200, by trust", ["trust"])
INGEST_REFUSED = Counter(
    "dripline_ingest_events_refused_total", "Events refused and kept, by what the refusal is about", ["kind"]
)
INGEST_ANSWERS = Counter("dripline_ingest_answers_total", "Answers of the collecting endpoints, by status", ["status"])
INGEST_BAD_IDENTIFIERS = Counter(
    "dripline_ingest_bad_identifiers_total",
    "Values in accepted events that cannot be identifiers of their kind",
    ["kind"],
)
INGEST_REMOVED = Counter("dripline_ingest_removed_total", "Foreign links and overlong names taken out of public events")
INGEST_BADLY_SIGNED = Counter(
    "dripline_ingest_badly_signed_total", "Events of public sources with a signature that is wrong"
)
INGEST_BYTES_IN_FLIGHT = Gauge("dripline_ingest_bytes_in_flight", "Bytes of requests that are not answered yet")
INGEST_SECONDS = Histogram(
    "dripline_ingest_seconds",
    "Seconds from the last byte of a request to the durable write of its events",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)

# ── triggers ──────────────────────────────────────────────────────────────────────────────────────────────────────────
TRIGGERS_DECISIONS = Counter("dripline_decisions_total", "Decisions about people, by what came of them", ["what"])
TRIGGERS_FAILED = Counter("dripline_rule_failures_total", "Rules that failed at run time for somebody", ["rule"])
TRIGGERS_CLAIMS = Histogram(
    "dripline_claim_seconds",
    "Seconds of a claim that found something due",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
TRIGGERS_PUT_ASIDE = Counter(
    "dripline_items_put_aside_total", "Items held because handling them failed for a reason outside their rule"
)
TRIGGERS_ASIDE_SETTLED = Counter(
    "dripline_items_settled_total", "Items put aside that a person had tried again or dropped", ["how"]
)

# ── dispatch ──────────────────────────────────────────────────────────────────────────────────────────────────────────
DISPATCH_DECISIONS = Counter(
    "dripline_dispatch_decisions_total",
    "Decisions about messages, by what was decided and why",
    ["act", "reason", "channel"],
)
DISPATCH_CALLS = Counter(
    "dripline_dispatch_calls_total", "Exchanges with providers, by what came of them", ["adapter", "outcome"]
)
DISPATCH_CALL_SECONDS = Histogram(
    "dripline_dispatch_call_seconds",
    "Seconds an exchange with a provider took",
    ["adapter"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
DISPATCH_UNKNOWN = Counter("dripline_dispatch_unknown_total", "Calls whose outcome nobody knows", ["adapter", "then"])
DISPATCH_COST = Counter(
    "dripline_dispatch_cost_roubles_total", "What providers charged, in the shop's currency", ["channel"]
)
DISPATCH_OPT_OUT_SECONDS = Histogram(
    "dripline_dispatch_opt_out_seconds",
    "Seconds from an opt-out's commit until no call of the address was open",
    [],
    buckets=(0.001, 0.01, 0.1, 0.5, 1, 5, 10, 30, 60),
)
DISPATCH_REPORTS = Counter(
    "dripline_dispatch_reports_total",
    "What providers told of messages later: applied, repeated, waiting for our own answer, stray",
    ["adapter", "result"],
)
DISPATCH_CALLBACKS = Counter(
    "dripline_dispatch_callbacks_total",
    "Providers' calls to /webhooks: taken, forged, unreadable, failed",
    ["adapter", "result"],
)
DISPATCH_LIMITED = Counter(
    "dripline_dispatch_limited_total",
    "Calls, links and pages that were answered 429 or 503, and pixels that were not counted, by the limit they passed",
    ["limit"],
)
DISPATCH_PAUSES = Counter(
    "dripline_dispatch_pauses_total", "Pauses of adapters that their providers asked for", ["adapter"]
)
DISPATCH_AWAY = Counter(
    "dripline_dispatch_away_total",
    "Exchanges that found the provider away, where none of their batch found it there",
    ["adapter"],
)
DISPATCH_TESTS = Counter("dripline_dispatch_tests_total", "Test messages by hand, by outcome", ["adapter", "outcome"])


@dataclass(frozen=True)
class Entry:
    """A metric as people meet it. `name`: as it stands in `/metrics` (histograms: without their suffixes);
    `kind`: counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def series(self) -> frozenset[str]:
        """The names that a query may use."""
        suffixes = ("_bucket", "_sum", "_count") if self.kind == "histogram" else ("",)
        return frozenset(self.name + suffix for suffix in suffixes)


def catalogue() -> list[Entry]:
    """Every metric of this module, in its order."""
    found = [value for value in globals().values() if isinstance(value, MetricWrapperBase)]
    return [_entry(metric) for metric in found]


def _entry(metric: MetricWrapperBase) -> Entry:
    [described] = metric.describe()
    name = described.name + ("_total" if described.type == "counter" else "")
    return Entry(name, described.type, tuple(metric._labelnames), described.documentation)
