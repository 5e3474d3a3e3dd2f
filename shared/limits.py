"""How often somebody may ask: token buckets, in the memory of one process (so n processes allow n times as much)."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Hashable

MOST_KNOWN = 10_000  # buckets; the one that was not used for longest goes first


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
