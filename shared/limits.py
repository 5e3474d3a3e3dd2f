"""How often somebody may ask (token buckets), and how much at once; in the memory of one process, so n processes allow n times
as much."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache

MOST_KNOWN = 10_000  # buckets; the one that was not used for longest goes first
LONGEST_ADDRESS = 45  # characters of an IPv6 address with an IPv4 one in it
UNREADABLE = "unreadable"


class RateLimit:
    """`rate`: requests a second in the long run; `burst`: at once. `now`: monotonic seconds."""

    def __init__(self, rate: float, burst: int, now: Callable[[], float]) -> None:
        self._rate, self._burst, self._now = rate, burst, now
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, who: Hashable, count: int = 1) -> float:
        """Takes so many requests, all or none; at most a burst can ever go. Returns 0 if they may go on, else the seconds
        after which they may."""
        now = self._now()
        left, at = self._buckets.pop(who, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._rate)
        allowed = left >= count
        self._buckets[who] = (left - count if allowed else left, now)
        if len(self._buckets) > MOST_KNOWN:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (count - left) / self._rate

    def give_back(self, who: Hashable, count: int = 1) -> None:
        """What was taken for requests that turned out not to count."""
        if (bucket := self._buckets.get(who)) is not None:
            left, at = bucket
            self._buckets[who] = (min(self._burst, left + count), at)


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


def network_of(host: str | None) -> str:
    """Whom an address belongs to: itself, or the /64 of an IPv6 address, of which everybody has as many as they like."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


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
