"""Token buckets: a burst goes through, then as many as flow in; everybody has a bucket of their own."""

from __future__ import annotations

from shared.limits import MOST_KNOWN, RateLimit, network_of


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_goes_through_and_then_as_many_as_flow_in() -> None:
    time = Time()
    limit = RateLimit(rate=2, burst=5, now=time)
    assert [limit.take("a") for _ in range(5)] == [0] * 5
    assert limit.take("a") == 0.5
    time.now = 0.5
    assert limit.take("a") == 0
    assert limit.take("a") == 0.5
    time.now = 100
    assert [limit.take("a") for _ in range(6)] == [0] * 5 + [0.5], "no more than a burst is saved up"


def test_one_who_asks_too_often_does_not_keep_the_others_out() -> None:
    limit = RateLimit(rate=1, burst=1, now=Time())
    assert [limit.take("a"), limit.take("a"), limit.take("b")] == [0, 1, 0]


def test_several_at_once_go_through_together_or_not_at_all() -> None:
    time = Time()
    limit = RateLimit(rate=2, burst=5, now=time)
    assert [limit.take("a", 4), limit.take("a", 4), limit.take("a", 1)] == [0, 1.5, 0]


def test_memory_is_bounded_whoever_asks() -> None:
    limit = RateLimit(rate=1, burst=1, now=Time())
    for number in range(MOST_KNOWN + 10):
        limit.take(number)
    assert len(limit._buckets) == MOST_KNOWN


def test_a_network_of_ipv6_is_its_64_bits_and_a_mapped_address_is_the_ipv4_one() -> None:
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:db8:1:2::1") == "2001:db8:1:2::/64"
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of(None) == ""


def test_what_turned_out_not_to_count_is_given_back_and_never_more_than_a_burst() -> None:
    limit = RateLimit(rate=1, burst=2, now=Time())
    assert [limit.take("a"), limit.take("a"), limit.take("a")] == [0, 0, 1]
    limit.give_back("a")
    assert [limit.take("a"), limit.take("a")] == [0, 1]
    limit.give_back("a", 10)
    limit.give_back("nobody known")
    assert [limit.take("a") for _ in range(3)] == [0, 0, 1]
