"""The words in which decisions tell why, for a marketer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from shared.durations import format_duration


def failure(error: Exception) -> str:
    """What the rule made of facts that it cannot deal with."""
    return f"the rule failed: {type(error).__name__}: {error}"[:500]


def unmet(seen: Sequence[Mapping[str, Any]]) -> str:
    """The leaves that did not hold, with what they saw."""
    parts = [f"{_words(one['condition'])} (it was {_words(one['looked_at'])})" for one in seen if not one.get("holds")]
    return "; ".join(parts[:3]) or "a part under `not` holds"


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(item)}" for key, item in value.items()) or "nothing"
    return str(value)


def clock(moment: datetime) -> str:
    """A moment (UTC) to the second."""
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def span(duration: timedelta) -> str:
    """A duration without the fraction of its last second."""
    return format_duration(timedelta(seconds=int(duration.total_seconds())))
