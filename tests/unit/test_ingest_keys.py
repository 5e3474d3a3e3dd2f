"""The cache of write keys, the gate, and the bound on rubbish."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from services.ingest.gate import PublicRates, RubbishAllowance
from services.ingest.sources import (
    KeyCache,
    KeysUnknown,
    KnownKey,
    Snapshot,
    key_hash,
    key_hint,
    new_key,
    new_signing_secret,
)
from shared.errors import is_transient
from shared.limits import UNREADABLE, Gate, outside_network
from shared.wake import Wake

SITE = UUID(int=1)
KEY = "c" + "a" * 24
NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)


class Owner:
    """What the database says, whether it is there, and both clocks."""

    def __init__(self, *keys: KnownKey) -> None:
        self.snapshot = Snapshot(1, list(keys))
        self.there = True
        self.looks = 0
        self.seconds = 1000.0
        self.now = NOW
        self.cache = KeyCache(self.load, self.version, lambda: self.now, Wake(), lambda: self.seconds)

    async def load(self) -> Snapshot:
        return self.snapshot

    async def version(self) -> int:
        self.looks += 1
        await asyncio.sleep(0)
        if not self.there:
            raise ConnectionRefusedError("no database")
        return self.snapshot.version

    def change(self, *keys: KnownKey) -> None:
        self.snapshot = Snapshot(self.snapshot.version + 1, list(keys))


def key(text: str = KEY, **more: object) -> KnownKey:
    return KnownKey(key_hash(text), SITE, "site", "public", **more)  # type: ignore[arg-type]


async def test_keys_are_usable_ten_minutes_without_the_database_and_no_longer() -> None:
    owner = Owner(key())
    await owner.cache.refresh()
    owner.there = False
    owner.seconds += 599
    assert owner.cache.find(KEY) is not None
    owner.seconds += 2
    with pytest.raises(KeysUnknown) as unknown:
        owner.cache.find(KEY)
    assert is_transient(unknown.value)
    with pytest.raises(KeysUnknown):
        await owner.cache.check()
    owner.there = True
    await owner.cache.refresh()
    assert owner.cache.find(KEY) is not None


async def test_an_unknown_key_is_looked_up_before_it_is_refused() -> None:
    owner = Owner()
    await owner.cache.refresh()
    owner.change(key())
    assert owner.cache.find(KEY) is None
    assert await owner.cache.find_fresh(KEY) is not None


async def test_unknown_keys_that_come_together_share_one_look_and_all_are_known_then() -> None:
    owner = Owner()
    await owner.cache.refresh()
    owner.change(key())
    looks = owner.looks
    found = await asyncio.gather(*(owner.cache.find_fresh(KEY) for _ in range(100)))
    assert all(found)
    assert owner.looks - looks == 1


async def test_strangers_cause_few_looks() -> None:
    owner = Owner()
    await owner.cache.refresh()
    looks = owner.looks
    assert await owner.cache.find_fresh("not a key") is None
    assert owner.looks == looks
    strangers = [new_key(random.Random(n).getrandbits) for n in range(50)]
    assert set(await asyncio.gather(*map(owner.cache.find_fresh, strangers))) == {None}
    assert owner.looks - looks == 1


async def test_an_unknown_key_is_not_refused_while_the_database_is_away() -> None:
    owner = Owner()
    await owner.cache.refresh()
    owner.there = False
    with pytest.raises(KeysUnknown):
        await owner.cache.find_fresh(KEY)
    owner.seconds += 1
    owner.there = True
    assert await owner.cache.find_fresh(KEY) is None


async def test_a_revoked_key_is_gone_with_the_next_look() -> None:
    owner = Owner(key())
    await owner.cache.refresh()
    owner.change()
    await owner.cache.refresh()
    assert owner.cache.find(KEY) is None


async def test_a_former_key_and_a_former_secret_count_until_their_time() -> None:
    soon = NOW + timedelta(hours=1)
    owner = Owner(
        key(valid_until=soon), key("c" + "b" * 24, signing_secret="new", former_secret="old", former_until=soon)
    )
    await owner.cache.refresh()

    def secrets() -> tuple[str, ...]:
        source = owner.cache.find("c" + "b" * 24)
        assert source is not None
        return source.signing_secrets

    assert owner.cache.find(KEY) is not None and secrets() == ("new", "old")
    owner.now = soon
    assert owner.cache.find(KEY) is None and secrets() == ("new",)


async def test_the_loop_hears_a_change_at_once() -> None:
    owner = Owner()
    wake = Wake()
    cache = KeyCache(owner.load, owner.version, lambda: NOW, wake, lambda: owner.seconds)
    task = asyncio.create_task(cache.loop())
    await asyncio.sleep(0)
    owner.change(key())
    wake.signal("ingest:keys")
    async with asyncio.timeout(0.9):  # less than the time after which it looks by itself
        while owner.looks == 0 or cache.find(KEY) is None:
            await asyncio.sleep(0.005)
    task.cancel()


def test_keys_have_the_form_that_all_clients_take() -> None:
    made = {new_key(random.Random(n).getrandbits) for n in range(500)}
    assert len(made) == 500
    assert all(len(one) == 25 and one[0] == "c" and one.isalnum() and one == one.lower() for one in made)
    assert set("".join(one[1:] for one in made)) == set("abcdefghijklmnopqrstuvwxyz0123456789")
    assert len(new_signing_secret(random.Random(1).getrandbits)) == 64
    assert key_hint(KEY) == "caaa…aaa"


def test_the_gate_counts_what_is_inside() -> None:
    gate = Gate(100)
    assert gate.enter(60)
    assert not gate.enter(41)
    assert gate.enter(40)
    gate.leave(60)
    assert gate.enter(60) and gate.in_flight == 100


def test_one_network_takes_no_more_of_the_gate_than_its_share() -> None:
    gate = Gate(100, share=40)
    assert gate.enter(30, "a") and not gate.enter(11, "a") and gate.enter(10, "a")
    assert gate.enter(40, "b"), "another network is not concerned"
    assert gate.enter(20, None) and not gate.enter(1, None), "who is known has no share, and the gate is full"
    gate.leave(30, "a")
    assert gate.enter(30, "a") and not gate.enter(1, "a")
    for network in ("a", "b"):
        gate.leave(40, network)
    gate.leave(20, None)
    assert gate.in_flight == 0 and not gate._shares, "a network that is gone costs no memory"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.7", "203.0.113.0/24"),
        ("::ffff:203.0.113.7", "203.0.113.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("127.0.0.1", None),
        ("::1", None),
        (None, None),
        ("unknown", UNREADABLE),
        ("9" * 10_000, UNREADABLE),
    ],
)
def test_the_network_that_shares_limits_is_what_one_party_is_given(address: str | None, network: str | None) -> None:
    assert outside_network(address) == network


def test_a_public_source_sends_so_many_events_and_one_network_of_it_fewer() -> None:
    time = [0.0]
    rates = PublicRates(source=1_000, network=200, now=lambda: time[0])
    assert [rates.take(SITE, "a", 2_500), rates.take(SITE, "a", 1_500)] == [None, None]
    assert rates.take(SITE, "a", 2_500) == ("network", 12.5), "a batch waits until there is room for all of it"
    assert rates.take(SITE, "b", 2_500) is None
    assert rates.take(UUID(int=2), "a", 2_500) is None, "another source is not concerned"
    time[0] = 12.5
    assert rates.take(SITE, "a", 2_500) is None
    time[0] = 1_000.0
    for network in range(8):
        assert rates.take(SITE, str(network), 2_500) is None
    assert rates.take(SITE, "c", 1) == ("source", 0.001), "all networks together used up what the source may send"


def test_zero_is_no_limit_for_public_sources() -> None:
    rates = PublicRates(source=0, network=0, now=lambda: 0.0)
    assert {rates.take(SITE, "a", 2_500) for _ in range(1_000)} == {None}


def test_rubbish_is_kept_up_to_a_rate_a_source() -> None:
    allowance = RubbishAllowance(burst=100, per_second=10)
    assert allowance.take(SITE, 100, now=0.0)
    assert not allowance.take(SITE, 1, now=0.0)
    assert allowance.take(UUID(int=2), 100, now=0.0)
    assert not allowance.take(SITE, 11, now=1.0)
    assert allowance.take(SITE, 10, now=1.0)
    assert allowance.take(SITE, 100, now=1_000.0) and not allowance.take(SITE, 1, now=1_000.0)
