"""May we? What stands between an intent and the person, in pure functions over stored inputs (design §3, Messages)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from services.dispatch.consents import standing
from services.dispatch.inputs import Address, Cap, Channel, Contact, Inputs
from services.dispatch.offer_guard import offer_reason
from services.dispatch.reasons import Reason
from shared.durations import parse_duration
from shared.windows import Window

# A dead contact that was erased is not asked again for this long.
PURGE_SILENCE = timedelta(days=30)
# Marketing waits while the watermark is further behind the clock than this.
FRESH = timedelta(seconds=5)

# Documented in docs/OPERATIONS.md; changed at /v1/caps. A person hears from us at most twice a day and four times a week.
DEFAULT_CAPS = [
    Cap(scope="person", limit=2, per="day"),
    Cap(scope="person", limit=4, per="7d"),
    Cap(scope="address", limit=2, per="day"),
    # Against rules that run wild: nobody needs more receipts than this.
    Cap(scope="address", limit=30, per="day", purpose="transactional"),
    # List bombing: whoever types somebody else's address, again and again, from one network, or through one key.
    Cap(scope="address", limit=2, per="1d", purpose="confirmation"),
    Cap(scope="address", limit=4, per="30d", purpose="confirmation"),
    Cap(scope="network", limit=20, per="1h", purpose="confirmation"),
    Cap(scope="source", limit=1000, per="1h", purpose="confirmation"),
]
# The longest window above, and what a channel's caps may use at most: contacts older than this are not looked at.
LONGEST_WINDOW = timedelta(days=31)
# Over which the scopes network and source count.
REQUESTS_WINDOW = timedelta(hours=1)
# Reasons that only put off: the same message may go at another hour.
OF_THE_HOUR = frozenset({"quiet-hours", "outside-window"})
_HOURS_LOOKED_AT = 10


def message_reason(inputs: Inputs) -> Reason | None:
    """Why the message may not be sent at all, whatever the channel; None if it may."""
    for switch in inputs.switches:
        if switch.scope == "all" or (switch.scope == "rule" and switch.name in (inputs.rule_name, str(inputs.rule))):
            what = "everything" if switch.scope == "all" else f"the rule {inputs.rule_name}"
            return Reason(
                "switched-off", f"somebody switched off {what}" + (f": {switch.reason}" if switch.reason else "")
            )
    if inputs.now > inputs.valid_until:
        return Reason("late", f"it was valid until {_moment(inputs.valid_until)}")
    if not inputs.known:
        return Reason("gone", "the person is no longer known: erased or purged")
    if not inputs.guard.holds:
        return inputs.guard.reason or Reason("guard", "what made the message right no longer holds")
    return inputs.problem or offer_reason(inputs.offer_guard, inputs.now) or _confirmation_reason(inputs)


def channel_reason(inputs: Inputs, channel: Channel) -> tuple[Reason | None, Address | None]:
    """Why the channel may not be used for this message now, and the address that it would be sent to."""
    if inputs.asked is not None and channel.name not in inputs.asked:
        return Reason("not-asked", f"the rule names only {', '.join(inputs.asked)}"), None
    if not channel.enabled:
        return Reason("switched-off", "the channel is not enabled"), None
    for switch in inputs.switches:
        if switch.scope == "channel" and switch.name == channel.name:
            return Reason("switched-off", "somebody switched the channel off"), None
    if not channel.addresses:
        return Reason(
            "no-address", "no address" if inputs.addressed is None else "the request names another address"
        ), None
    judged = [(address_reason(inputs, channel, address), address) for address in by_preference(channel.addresses)]
    reason, address = next((pair for pair in judged if pair[0] is None), judged[0])
    if reason is None and channel.name in inputs.tried:
        reason = Reason("tried", "tried before for this message, without an effect")
    if reason is None and channel.text is not None:
        reason = channel.text.reason
    if reason is None:
        reason = _ceiling_reason(channel)
    return reason or _hour_reason(inputs, channel), address


def _hour_reason(inputs: Inputs, channel: Channel) -> Reason | None:
    """Why this is not the hour for it; None if it is."""
    zone = ZoneInfo(inputs.zone)
    if inputs.window is not None and (opens := _window(inputs.window).opens(inputs.now, zone)) > inputs.now:
        return Reason("outside-window", f"the rule's window is closed until {_moment(opens)}")
    if until := quiet_until(inputs.now, zone, channel.quiet):
        return Reason("quiet-hours", f"quiet hours until {_moment(until)}")
    return None


def awake_at(inputs: Inputs, channel: Channel) -> datetime:
    """The first moment from now on that lies in the rule's window and not in the channel's quiet hours. Where the two never
    agree: a moment some days ahead, at which it is looked at again while the message is valid."""
    zone, moment = ZoneInfo(inputs.zone), inputs.now
    for _ in range(_HOURS_LOOKED_AT):
        later = _window(inputs.window).opens(moment, zone) if inputs.window is not None else moment
        later = quiet_until(later, zone, channel.quiet) or later
        if later == moment:
            break
        moment = later
    return moment


def _window(document: dict[str, Any]) -> Window:
    return Window.model_validate(document)


def address_reason(inputs: Inputs, channel: Channel, address: Address) -> Reason | None:
    """Why nothing may go to this address now; None if it may."""
    if address.suppression is not None:
        return Reason("suppressed", f"suppressed since {_moment(address.suppression.at)}: {address.suppression.why}")
    if address.status == "claimed" and inputs.purpose != "confirmation":
        return Reason("claimed", "the address was typed by someone and never confirmed")
    state = standing(address.consents, channel.consent, inputs.topic)
    if inputs.purpose == "confirmation" and state.complained:
        return Reason("opted-out", f"complained at {_moment(state.at)}")
    if channel.countries and address.country not in channel.countries:
        where = address.country or "an unknown country"
        return Reason("country", f"the channel writes to {', '.join(channel.countries)} only, not to {where}")
    if inputs.purpose == "marketing" and not state.may_write:
        if state.opted_out:
            what = "complained" if state.complained else "unsubscribed"
            return Reason("opted-out", f"{what} at {_moment(state.at)}")
        return Reason("no-consent", f"no consent for the topic {inputs.topic}")
    return _cap_reason(inputs, channel, address)


def _ceiling_reason(channel: Channel) -> Reason | None:
    """Why the text costs more than the channel may still spend; None if it does not."""
    left, cost = channel.left, channel.text.cost if channel.text is not None else None
    if left is None or cost is None or cost <= left.amount:
        return None
    what = f"it costs {cost:f} and {max(left.amount, Decimal(0)):f} of {left.ceiling:f} a {left.per} are left"
    return Reason("spend-ceiling", f"the channel has spent what it may: {what}")


def by_preference(addresses: Sequence[Address]) -> list[Address]:
    """Confirmed before asserted before claimed; then the one that the person agreed to last, as a new device is."""
    rank = {"confirmed": 0, "asserted": 1}

    def place(address: Address) -> tuple[int, float, UUID]:
        agreed = max((one.at.timestamp() for one in address.consents), default=0.0)
        return rank.get(address.status, 2), -agreed, address.node

    return sorted(addresses, key=place)


def _cap_reason(inputs: Inputs, channel: Channel, address: Address) -> Reason | None:
    for cap in (*inputs.caps, *channel.caps):
        if cap.purpose not in (None, inputs.purpose) or cap.channel not in (None, channel.name):
            continue
        count = _counted(cap, inputs, channel, address)
        if count >= cap.limit:
            over = f" by {channel.name}" if cap.channel or cap in channel.caps else ""
            code = "limit" if inputs.purpose == "confirmation" else "cap"
            what = {"person": "this person", "address": "this address"}.get(cap.scope, f"this {cap.scope}")
            per = "a day" if cap.per == "day" else f"in {cap.per}"
            return Reason(
                code, f"{what} has had {count} of at most {cap.limit} {cap.purpose or ''} messages{over} {per}"
            )
    return None


def _counted(cap: Cap, inputs: Inputs, channel: Channel, address: Address) -> int:
    if cap.scope == "network":
        return inputs.network_count
    if cap.scope == "source":
        return inputs.source_count
    since = window_start(cap.per, inputs.now, ZoneInfo(inputs.zone))
    limited_to = channel.name if cap.channel or cap in channel.caps else None
    return sum(
        1 for contact in inputs.contacts if _counts(contact, cap, since, limited_to, address.node, inputs.message)
    )


def _counts(contact: Contact, cap: Cap, since: datetime, channel: str | None, node: UUID, message: UUID) -> bool:
    if contact.message == message or contact.at < since:
        return False
    if cap.purpose not in (None, contact.purpose) or channel not in (None, contact.channel):
        return False
    return contact.mine if cap.scope == "person" else contact.node == node


def _confirmation_reason(inputs: Inputs) -> Reason | None:
    if inputs.purpose != "confirmation":
        return None
    if inputs.addressed is None:
        return Reason("no-address", "a confirmation mail goes to the address of a request, and there is none")
    if inputs.purged_at is not None and inputs.now < inputs.purged_at + PURGE_SILENCE:
        text = (
            f"the address was purged at {_moment(inputs.purged_at)} and is left in peace for {PURGE_SILENCE.days} days"
        )
        return Reason("limit", text)
    return None


def window_start(per: str, now: datetime, zone: ZoneInfo) -> datetime:
    """Where the window of a cap begins: local midnight for "day", else a duration ago."""
    if per == "day":
        return datetime.combine(now.astimezone(zone).date(), time(0), tzinfo=zone).astimezone(now.tzinfo)
    return now - parse_duration(per)


def quiet_until(now: datetime, zone: ZoneInfo, hours: str) -> datetime | None:
    """When the quiet hours end in which `now` lies; None if it lies in none. `hours`: "21:00-09:00", or "" for none."""
    if not hours:
        return None
    begin, end = (time.fromisoformat(part) for part in hours.split("-"))
    local = now.astimezone(zone)
    clock = local.time()
    over_midnight = begin > end
    inside = (clock >= begin or clock < end) if over_midnight else begin <= clock < end
    if not inside:
        return None
    day = local.date() + timedelta(days=1) if over_midnight and clock >= begin else local.date()
    until = datetime.combine(day, end, tzinfo=zone).astimezone(now.tzinfo)
    # On the night the clocks go back an hour may come twice; the end is then the second one's.
    return until if until > now else datetime.combine(day, end, tzinfo=zone).replace(fold=1).astimezone(now.tzinfo)


def _moment(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC") if at else "an unknown time"
