"""Through which channel, or not at all? (design §6)

    net(c) = (reach(c) · act(c) − base) · value − cost(c) − erosion(c)

Pure: what is learned, the price of budgets, earlier attempts, rival messages and the random draw are inputs, each with a
neutral value. Money is Decimal roubles, probabilities are Decimals between 0 and 1.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

import msgspec

from services.dispatch.reasons import Reason, money

ZERO, ONE = Decimal(0), Decimal(1)
# What a prior is worth in observations.
PRIOR_OBSERVATIONS = 50
BASE_PRIOR = Decimal("0.01")
# How many unanswered messages' worth of future net one lost part of trust costs (half healed after 30 days).
EROSION_FACTOR = 4

Kind = Literal["marketing", "transactional"]


class Learned(msgspec.Struct, frozen=True, omit_defaults=True):
    """Closed outcomes, each weighted by one over the logged probability of its choice. Neutral: none."""

    successes: Decimal = ZERO
    observations: Decimal = ZERO


class Figures(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a channel. `reach`: share delivered or opened. `act`: prior of success once reached; `lost`: part
    of the person's trust that an unanswered message costs. `engagement` multiplies *act* for this person."""

    reach: Decimal
    act: Decimal
    lost: Decimal
    learned: Learned = Learned()
    engagement: Decimal = ONE

    def acting(self) -> Decimal:
        """Success once reached: the prior moved by what was learned, then by the person's engagement, at most 1."""
        return min(ONE, posterior(self.act, self.learned) * self.engagement)


class Option(msgspec.Struct, frozen=True, omit_defaults=True):
    """One channel as it stands for this message. `cost`: of the rendered text, None if it was not rendered.
    `blocked`: why it may not be used. `price`: λ of the channel's budget, 1 on plan."""

    channel: str
    figures: Figures
    cost: Decimal | None = None
    units: int = 1
    blocked: Reason | None = None
    price: Decimal = ONE


class Stakes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is at stake. `value`: what success is worth. `base`: prior of success without a message; `base_learned`: from
    the rule's ghosts. `explore`: share of choices left to chance; `rival`: the greatest net among other rules' messages
    that compete for this person."""

    kind: Kind
    value: Decimal = ZERO
    base: Decimal = BASE_PRIOR
    base_learned: Learned = Learned()
    explore: Decimal = ZERO
    rival: Decimal | None = None
    rival_name: str = ""


class Alternative(msgspec.Struct, frozen=True, omit_defaults=True):
    """One row of the table that is kept with the message. `effect` = reach · act − base; figures are None where the
    channel was out of the question for `reason`."""

    channel: str
    reach: Decimal | None = None
    act: Decimal | None = None
    base: Decimal | None = None
    effect: Decimal | None = None
    value: Decimal | None = None
    cost: Decimal | None = None
    units: int | None = None
    erosion: Decimal | None = None
    net: Decimal | None = None
    reason: Reason | None = None


class Choice(msgspec.Struct, frozen=True, omit_defaults=True):
    """`channel` None: silence, and `reason` says why. `probability` of this choice, for weighing its outcome later."""

    alternatives: list[Alternative]
    channel: str | None = None
    reason: Reason | None = None
    probability: Decimal = ONE
    explored: bool = False


def posterior(prior: Decimal, learned: Learned) -> Decimal:
    """Mean of the Beta posterior whose prior has mean `prior` and the weight of PRIOR_OBSERVATIONS."""
    return (prior * PRIOR_OBSERVATIONS + learned.successes) / (PRIOR_OBSERVATIONS + learned.observations)


def weigh(option: Option, stakes: Stakes) -> Alternative:
    """The option's row. A blocked one has its reason and, where its cost is known, its figures too."""
    if option.cost is None:
        return Alternative(channel=option.channel, reason=option.blocked)
    cost = option.cost * option.price
    if stakes.kind == "transactional":
        return Alternative(
            channel=option.channel, reach=option.figures.reach, cost=cost, units=option.units, reason=option.blocked
        )
    act = option.figures.acting()
    base = posterior(stakes.base, stakes.base_learned)
    effect = option.figures.reach * act - base
    gain = effect * stakes.value - cost
    erosion = option.figures.lost * EROSION_FACTOR * max(ZERO, gain)
    return Alternative(
        channel=option.channel,
        reach=option.figures.reach,
        act=act,
        base=base,
        effect=effect,
        value=stakes.value,
        cost=cost,
        units=option.units,
        erosion=erosion,
        net=gain - erosion,
        reason=option.blocked,
    )


def choose(options: list[Option], stakes: Stakes, draw: Decimal) -> Choice:
    """The choice among `options`. `draw` in [0, 1) decides only what `stakes.explore` leaves to chance."""
    rows = sorted((weigh(option, stakes) for option in options), key=lambda row: row.channel)
    open_rows = [row for row in rows if row.reason is None and row.cost is not None]
    if not open_rows:
        return Choice(alternatives=rows, reason=_nothing_open(rows))
    if stakes.kind == "transactional":
        cheapest = min(open_rows, key=lambda row: (row.cost, -(row.reach or ZERO), row.channel))
        return Choice(alternatives=rows, channel=cheapest.channel)
    return _worthiest(rows, open_rows, stakes, draw)


def _worthiest(rows: list[Alternative], open_rows: list[Alternative], stakes: Stakes, draw: Decimal) -> Choice:
    worth = sorted(
        (row for row in open_rows if row.net is not None and row.net > 0),
        key=lambda row: (-(row.net or ZERO), row.cost, row.channel),
    )
    if not worth:
        best = max(open_rows, key=lambda row: row.net or ZERO)
        text = f"the best channel, {best.channel}, would bring {money(best.net or ZERO)}: not worth a message"
        return Choice(alternatives=rows, reason=Reason("not-worth-it", text))
    if stakes.rival is not None and stakes.rival > (worth[0].net or ZERO):
        text = f"{stakes.rival_name or 'another message'} is worth {money(stakes.rival)}, this one {money(worth[0].net or ZERO)}"
        return Choice(alternatives=rows, reason=Reason("outbid", text))
    best_probability = ONE - stakes.explore * len(worth) / (len(worth) + 1)
    if draw >= stakes.explore:
        return Choice(alternatives=rows, channel=worth[0].channel, probability=best_probability)
    # Left to chance: each channel that is worth it, and silence, are equally likely.
    place = int(draw * (len(worth) + 1) / stakes.explore)
    other = stakes.explore / (len(worth) + 1)
    if place == len(worth):
        reason = Reason("not-worth-it", "silence by chance, to learn what a message costs in trust")
        return Choice(alternatives=rows, reason=reason, probability=other, explored=True)
    probability = best_probability if place == 0 else other
    return Choice(alternatives=rows, channel=worth[place].channel, probability=probability, explored=True)


# Which of several channels' reasons tells most about why nothing could be sent: the last obstacle that was left.
_TELLING = (
    "cap", "limit", "spend-ceiling", "country", "opted-out", "suppressed", "no-consent", "claimed", "missing-variable",
    "bad-text", "switched-off", "no-template", "tried", "no-address", "not-asked", "quiet-hours",
    "outside-window",
)  # fmt: skip


def _nothing_open(rows: list[Alternative]) -> Reason:
    reasons = [(row.channel, row.reason) for row in rows if row.reason is not None]
    if not reasons:
        return Reason("no-address", "no channel is configured")
    order = {code: place for place, code in enumerate(_TELLING)}
    _, first = min(reasons, key=lambda pair: order.get(pair[1].code, len(order)))
    by_text: dict[str, list[str]] = {}
    for channel, reason in reasons:
        if reason.code == first.code:
            by_text.setdefault(reason.text, []).append(channel)
    return Reason(first.code, "; ".join(f"{', '.join(channels)}: {text}" for text, channels in by_text.items()))
