"""How much ingest takes on at once, and how much rubbish it keeps."""

from __future__ import annotations

from uuid import UUID


class Gate:
    """Counts the bytes of requests that are not answered yet."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0

    def enter(self, size: int) -> bool:
        """Takes on `size` bytes more, unless that passes the limit. Whoever entered must `leave` with the same size."""
        if self.in_flight + size > self.limit:
            return False
        self.in_flight += size
        return True

    def leave(self, size: int) -> None:
        self.in_flight -= size


class RubbishAllowance:
    """How many bytes of refused events of a public source are kept: `burst` at once, then `per_second`.

    A public key is known to everybody; without a bound anybody could fill the database with events that are refused.
    """

    def __init__(self, burst: int = 32 << 20, per_second: int = 256 << 10) -> None:
        self.burst, self.per_second = burst, per_second
        self._left: dict[UUID, tuple[float, float]] = {}

    def take(self, source: UUID, size: int, now: float) -> bool:
        """Whether `size` bytes may be kept at the monotonic moment `now`."""
        left, since = self._left.get(source, (float(self.burst), now))
        left = min(float(self.burst), left + (now - since) * self.per_second)
        enough = size <= left
        self._left[source] = (left - size if enough else left, now)
        return enough
