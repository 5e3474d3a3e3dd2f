"""What a message does to a person: the hidden truth of the simulation, which the product can only learn from events.

Each person has, for each channel, a chance of reading a message (`reach`) and of acting on it once read (`act`), and a
trust that falls with every message that is not answered and heals with time and with answers. Nothing here is taken
from the product's own assumptions: people differ from each other and from any prior.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

What = Literal["ignored", "read", "confirmed", "acted", "unsubscribed"]

HALF_HEALED = timedelta(days=21)
# What an unanswered message costs in trust.
_LOST = {"email": 0.05, "push": 0.07, "sms": 0.14, "messenger": 0.08, "call": 0.3}
# Minutes until a message is looked at, in the median.
_DELAY = {"email": 95.0, "push": 12.0, "sms": 6.0, "messenger": 15.0, "call": 2.0}
_AWAKE_FROM, _AWAKE_TO = 8, 23


@dataclass
class Truth:
    """One person's response. All values are chances; `lively`: how much the hour of delay varies (sigma of its log)."""

    reach: dict[str, float]
    act: dict[str, float]
    confirms: float
    annoyed: float
    lively: float = 0.9
    trust: dict[str, float] = field(default_factory=dict)
    touched: dict[str, datetime] = field(default_factory=dict)

    def trust_in(self, channel: str, at: datetime) -> float:
        """Trust as of `at`: what was lost is half healed after `HALF_HEALED`."""
        known = self.trust.get(channel, 1.0)
        if channel not in self.touched:
            return known
        return 1.0 - (1.0 - known) * 0.5 ** ((at - self.touched[channel]) / HALF_HEALED)

    def answered(self, channel: str, at: datetime) -> None:
        self._set(channel, at, min(1.0, self.trust_in(channel, at) + 0.3))

    def unanswered(self, channel: str, at: datetime, share: float = 1.0) -> None:
        self._set(channel, at, self.trust_in(channel, at) * (1.0 - share * _LOST.get(channel, 0.1)))

    def _set(self, channel: str, at: datetime, trust: float) -> None:
        self.trust[channel], self.touched[channel] = trust, at


@dataclass(frozen=True)
class Reaction:
    """What a person does with one message, `after` which time. `unsubscribes`: after having read it, too."""

    what: What
    after: timedelta


def make_truth(chance: random.Random) -> Truth:
    return Truth(
        reach={
            "email": chance.betavariate(4, 5),
            "push": chance.betavariate(5, 5),
            "sms": chance.betavariate(40, 2),
            "messenger": chance.betavariate(8, 3),
            "call": chance.betavariate(6, 4),
        },
        act={
            "email": chance.betavariate(2.5, 14),
            "push": chance.betavariate(1.5, 20),
            "sms": chance.betavariate(2, 22),
            "messenger": chance.betavariate(2, 16),
            "call": chance.betavariate(2, 12),
        },
        confirms=chance.betavariate(7, 3),
        annoyed=chance.betavariate(1.2, 60),
    )


def react(truth: Truth, channel: str, at: datetime, *, asks: bool, relevance: float, chance: random.Random) -> Reaction:
    """What a message that arrived at `at` makes of somebody, and moves their trust.

    `asks`: it asks to confirm a subscription that this person has just made. `relevance`: 1 for an ordinary message,
    more for one about what the person has in mind (their own full cart).
    """
    trust = truth.trust_in(channel, at)
    delay = timedelta(minutes=_DELAY.get(channel, 60.0) * chance.lognormvariate(0, truth.lively))
    after = _awake(at + delay, chance) - at
    # Somebody who has just asked for the letter looks for it.
    reads = max(truth.reach.get(channel, 0.0), 0.9) if asks else truth.reach.get(channel, 0.0) * (0.4 + 0.6 * trust)
    if chance.random() >= reads:
        truth.unanswered(channel, at)
        return Reaction("ignored", after)
    if asks:
        if chance.random() < truth.confirms:
            truth.answered(channel, at)
            return Reaction("confirmed", after)
        return Reaction("read", after)
    if chance.random() < truth.annoyed * (1 + 6 * (1 - trust)):
        return Reaction("unsubscribed", after)
    if chance.random() < min(0.9, truth.act.get(channel, 0.0) * relevance * (0.3 + 0.7 * trust)):
        truth.answered(channel, at)
        return Reaction("acted", after)
    truth.unanswered(channel, at, share=0.5)
    return Reaction("read", after)


def _awake(moment: datetime, chance: random.Random) -> datetime:
    """The moment itself by day; a moment of the night waits until after breakfast."""
    if _AWAKE_FROM <= moment.hour < _AWAKE_TO:
        return moment
    morning = moment.replace(hour=_AWAKE_FROM, minute=0, second=0, microsecond=0)
    if moment.hour >= _AWAKE_TO:
        morning += timedelta(days=1)
    return morning + timedelta(minutes=chance.uniform(0, 120))
