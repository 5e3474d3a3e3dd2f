"""Every metric of dispatch, in one place, with its meaning."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

DECISIONS = Counter(
    "dripline_dispatch_decisions_total",
    "Decisions about messages, by what was decided and why",
    ["act", "reason", "channel"],
)
CALLS = Counter(
    "dripline_dispatch_calls_total", "Exchanges with providers, by what came of them", ["adapter", "outcome"]
)
CALL_SECONDS = Histogram(
    "dripline_dispatch_call_seconds",
    "Seconds an exchange with a provider took",
    ["adapter"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
UNKNOWN = Counter("dripline_dispatch_unknown_total", "Calls whose outcome nobody knows", ["adapter", "then"])
COST = Counter("dripline_dispatch_cost_roubles_total", "What providers charged, in the shop's currency", ["channel"])
OPT_OUT_SECONDS = Histogram(
    "dripline_dispatch_opt_out_seconds",
    "Seconds from an opt-out's commit until no call of the address was open",
    [],
    buckets=(0.001, 0.01, 0.1, 0.5, 1, 5, 10, 30, 60),
)
