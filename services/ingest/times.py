"""When an event occurred, by its own account and ours."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from services.ingest.refusal import Refusal
from shared.events import REMEMBERED

# Older live events are refused: their repeats are no longer remembered, and no rule may start on them.
OLDEST_LIVE = REMEMBERED
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


def read_time(value: Any, pointer: str) -> datetime | None:
    """An ISO 8601 time with zone, in UTC; None for null and "". Raises Refusal of kind `time`."""
    if value is None or value == "":
        return None
    if type(value) is not str or len(value) > 64:
        raise Refusal("time", "must be an ISO 8601 time such as 2026-11-23T10:00:00Z", pointer)
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise Refusal("time", "has no time zone: end it with Z or an offset such as +03:00", pointer)
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refusal("time", "is no ISO 8601 time between the years 1970 and 9999", pointer) from None
    if moment < _EARLIEST:
        raise Refusal("time", "lies before 1970", pointer)
    return moment


def occurred_at(timestamp: datetime | None, sent_at: datetime | None, received_at: datetime) -> datetime:
    """`received_at` without a timestamp; corrected by the sender's clock if `sent_at` is given; never in the future.

    The sender's clock is wrong by `received_at - sent_at` (the way of the request is counted in). Only public sources
    are corrected: what a server or a till dates explicitly, hours later, would be shifted.
    """
    if timestamp is None:
        return received_at
    if sent_at is not None:
        try:
            timestamp = received_at - (sent_at - timestamp)
        except OverflowError:
            return received_at
    return min(timestamp, received_at)


def refuse_too_old(occurred: datetime, received_at: datetime) -> None:
    """Raises Refusal for what only an import may send."""
    if received_at - occurred > OLDEST_LIVE:
        raise Refusal(
            "time",
            "is older than 13 months: send it from a secret source as history (context.dripline.history: true)",
            "/timestamp",
        )
