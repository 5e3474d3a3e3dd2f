"""How many events of a public source ingest takes, and how much rubbish it keeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from services.ingest.reading import MAX_EVENTS
from shared.limits import RateLimit

SECONDS_AT_ONCE = 20  # of its rate may come in one burst


class PublicRates:
    """Events a second that a public source may post, and one network of it; 0 is no limit. A public key is known to
    everybody. `now`: monotonic seconds."""

    def __init__(self, source: float, network: float, now: Callable[[], float] = time.monotonic) -> None:
        self._source, self._network = _rate(source, now), _rate(network, now)

    def take(self, source: UUID, network: str | None, events: int) -> tuple[str, float] | None:
        """Takes so many events, all or none. Returns None if they may go on, else who posts too much (`network` or
        `source`), and the seconds after which they may."""
        # The network first: what it has too much of does not use up what the source may send.
        if self._network and network is not None and (seconds := self._network.take((source, network), events)):
            return "network", seconds
        if self._source and (seconds := self._source.take(source, events)):
            return "source", seconds
        return None


def _rate(events: float, now: Callable[[], float]) -> RateLimit | None:
    """A full batch must fit, or it would never go."""
    return RateLimit(events, max(MAX_EVENTS, int(events * SECONDS_AT_ONCE)), now) if events else None


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
