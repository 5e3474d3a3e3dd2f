"""May we, and through which channel: the whole decision about one message, computed from its inputs and nothing else."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from services.dispatch.choice import Alternative, Choice, Option, Stakes, choose, weigh
from services.dispatch.inputs import Address, Channel, Decision, Inputs
from services.dispatch.policy import OF_THE_HOUR, awake_at, channel_reason, message_reason
from services.dispatch.reasons import Reason


def worth_rendering(inputs: Inputs) -> list[str]:
    """Channels whose text is needed for the decision: nothing forbids the message and there is an address. A channel
    without consent is among them, so that its row in the table of alternatives tells what it would have brought."""
    if message_reason(inputs) is not None:
        return []
    hopeless = ("not-asked", "switched-off", "no-address")
    judged = ((channel, channel_reason(inputs, channel)[0]) for channel in inputs.channels)
    return [channel.name for channel, reason in judged if reason is None or reason.code not in hopeless]


def decide(inputs: Inputs) -> Decision:
    """The decision. A channel whose `text` is None counts as one without a text (see `worth_rendering`)."""
    if (reason := message_reason(inputs)) is not None:
        return Decision(act="withhold", reason=reason, alternatives=_had_it_been_right(inputs, reason))
    judged = {channel.name: (channel, *channel_reason(inputs, channel)) for channel in inputs.channels}
    stakes = _stakes(inputs)
    options = [_option(channel, reason) for channel, reason, _ in judged.values()]
    choice = choose(options, stakes, inputs.draw)
    if choice.channel is None:
        return _without_channel(inputs, judged, stakes, choice)
    channel, _, address = judged[choice.channel]
    assert address is not None and channel.text is not None and channel.text.cost is not None
    return Decision(
        act="withhold" if inputs.ghost else "send",
        reason=Reason("ghost", f"control group: would have gone by {channel.name}") if inputs.ghost else None,
        channel=channel.name,
        address=address.node,
        alternatives=choice.alternatives,
        cost=channel.text.cost,
        probability=choice.probability,
        explored=choice.explored,
    )


def _stakes(inputs: Inputs) -> Stakes:
    return Stakes(
        kind="marketing" if inputs.purpose == "marketing" else "transactional",
        value=inputs.value,
        base_learned=inputs.base_learned,
        explore=inputs.explore,
        rival=inputs.rival,
        rival_name=inputs.rival_name,
    )


def _had_it_been_right(inputs: Inputs, reason: Reason) -> list[Alternative]:
    """The table of a message that may not be sent at all: what each channel would have brought, or what stood against it
    besides. No text was made for it, so its cost is the channel's price of one unit, and `units` are not told. About
    somebody who is no longer known there is nothing to tell."""
    if not inputs.known:
        return []
    rows = []
    for channel in sorted(inputs.channels, key=lambda one: one.name):
        own, _ = channel_reason(inputs, channel)
        blocked = reason if own is None or own.code in OF_THE_HOUR else own
        option = Option(channel.name, channel.figures, channel.unit_cost, blocked=blocked, price=channel.price)
        rows.append(msgspec.structs.replace(weigh(option, _stakes(inputs)), units=None))
    return rows


def _option(channel: Channel, reason: Reason | None) -> Option:
    cost = channel.text.cost if channel.text is not None else None
    return Option(
        channel=channel.name,
        figures=channel.figures,
        cost=cost,
        units=channel.text.units if channel.text is not None else 1,
        blocked=reason if reason is not None or cost is not None else Reason("no-template", "there is no text for it"),
        price=channel.price,
    )


def _without_channel(
    inputs: Inputs,
    judged: dict[str, tuple[Channel, Reason | None, Address | None]],
    stakes: Stakes,
    choice: Choice,
) -> Decision:
    """Silence; unless a channel that only waits for its hour is worth it: then the same again at that hour."""
    sleeping = [channel for channel, reason, _ in judged.values() if reason is not None and reason.code in OF_THE_HOUR]
    awake = choose([_option(channel, None) for channel in sleeping], stakes, inputs.draw) if sleeping else None
    if awake is None or awake.channel is None:
        only_night = awake is not None and choice.reason is not None and choice.reason.code in OF_THE_HOUR
        return Decision(
            act="withhold",
            reason=awake.reason if awake is not None and only_night else choice.reason,
            alternatives=choice.alternatives,
            probability=choice.probability,
            explored=choice.explored,
        )
    until, first = min((awake_at(inputs, channel), channel.name) for channel in sleeping)
    if until > inputs.valid_until:
        text = f"it may go at {until:%Y-%m-%d %H:%M} UTC, after it was valid ({inputs.valid_until:%Y-%m-%d %H:%M} UTC)"
        return Decision(act="withhold", reason=Reason("late", text), alternatives=choice.alternatives)
    hour = judged[first][1]
    assert hour is not None
    text = f"waits for {until:%Y-%m-%d %H:%M} UTC: {choice.reason.text if choice.reason else ''}"
    reason = Reason(hour.code, text)
    return Decision(act="postpone", reason=reason, until=until, alternatives=choice.alternatives)


def with_texts(inputs: Inputs, texts: dict[str, Channel]) -> Inputs:
    """The inputs with these channels in place of those of the same name."""
    return msgspec.structs.replace(inputs, channels=[texts.get(channel.name, channel) for channel in inputs.channels])


def draw_from(bits: int) -> Decimal:
    """A draw in [0, 1) from 53 random bits, exact in 16 decimals."""
    return (Decimal(bits) / Decimal(1 << 53)).quantize(Decimal("1e-16"))
