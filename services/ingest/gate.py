"""How much ingest takes on at once, how many events of a public source, and how much rubbish it keeps."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from functools import lru_cache
from uuid import UUID

from services.ingest.reading import MAX_EVENTS
from shared.limits import RateLimit

SECONDS_AT_ONCE = 20  # of its rate may come in one burst
LONGEST_ADDRESS = 45  # characters of an IPv6 address with an IPv4 one in it
UNREADABLE = "unreadable"


class Gate:
    """Counts the bytes of requests that are not answered yet. `share`: how many of `limit` one network may hold."""

    def __init__(self, limit: int, share: int | None = None) -> None:
        self.limit, self.share = limit, share or limit
        self.in_flight = 0
        self._shares: dict[str, int] = {}

    def enter(self, size: int, network: str | None = None) -> bool:
        """Takes on `size` bytes more, unless that passes the limit, or the share of `network` if one is named. Whoever
        entered must `leave` with the same size and network."""
        if self.in_flight + size > self.limit:
            return False
        if network is not None and size:
            held = self._shares.get(network, 0) + size
            if held > self.share:
                return False
            self._shares[network] = held
        self.in_flight += size
        return True

    def leave(self, size: int, network: str | None = None) -> None:
        self.in_flight -= size
        if network is not None and size:
            held = self._shares[network] - size
            if held:
                self._shares[network] = held
            else:
                del self._shares[network]


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


def outside_network(address: str | None) -> str | None:
    """The network that is one party for limits: /24, of IPv6 /48, which is what a subscriber or a small provider is
    given. None for this machine itself."""
    if address is None:
        return None
    # What is remembered is bounded, whatever a proxy says.
    return _network(address) if len(address) <= LONGEST_ADDRESS else UNREADABLE


@lru_cache(maxsize=4096)
def _network(address: str) -> str | None:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return UNREADABLE
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.is_loopback:
        return None
    return str(ipaddress.ip_network((ip.packed, 24 if ip.version == 4 else 48), strict=False))


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
