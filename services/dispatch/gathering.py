"""Gathers what a decision looks at, for a batch of messages within one transaction: a constant number of statements."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import phonenumbers

from services.dispatch import guard as guards
from services.dispatch.channels.base import Adapter
from services.dispatch.channels.registry import side_by_side, taking
from services.dispatch.choice import Figures
from services.dispatch.decision import draw_from
from services.dispatch.inputs import (
    Address,
    Channel,
    Contact,
    GuardVerdict,
    Inputs,
    OfferGuard,
    Purpose,
)
from services.dispatch.material import (
    Base,
    People,
    Surroundings,
    addressed_node,
    offer_guard_of,
    read_base,
    read_people,
)
from services.dispatch.offer_guard import bought_of, offer_reason
from services.dispatch.policy import LONGEST_WINDOW, REQUESTS_WINDOW
from services.dispatch.reasons import Reason
from services.dispatch.store import looking
from services.dispatch.store.claims import Due
from services.dispatch.templates import Template
from services.dispatch.view import Offer
from services.dispatch.worth import ASSUMED_ORDER, Worth, worth
from shared.channels import KNOWN
from shared.conditions import Moment
from shared.db import Tx
from shared.facts.model import EventFact, Facts

DRAW_BITS = 53


@dataclass
class Gathered:
    """A message with everything a decision and its texts need. `addresses`: node → address as it is written; `adapters`:
    of each channel, the most preferred first."""

    due: Due
    inputs: Inputs
    facts: Facts | None
    template: Template | None
    offer: Offer | None
    addresses: dict[UUID, str]
    adapters: dict[str, list[type[Adapter]]]
    network: str | None = None
    source: UUID | None = None


async def gather(tx: Tx, due: Sequence[Due], now: datetime, world: Surroundings, locked: set[UUID]) -> list[Gathered]:
    """Reads and puts together. Codes of offers are allotted here.

    :param locked: the nodes whose locks are held; a message whose person has others by now is left out
    """
    base = await read_base(tx, due, now)
    people = await read_people(tx, due, now, world, base)
    gathered = [_put_together(one, index, now, world, base, people) for index, one in enumerate(due)]
    gathered = [one for one in gathered if locked.issuperset(one.inputs.nodes)]
    await _allot(tx, gathered, base, now)
    return await with_contacts(tx, gathered, now)


def _put_together(one: Due, index: int, now: datetime, world: Surroundings, base: Base, people: People) -> Gathered:
    intent, known = one.intent, people.facts[index]
    template = base.templates.get(intent.template)
    purpose, problem = _purpose(one, template)
    shop_zone = ZoneInfo(world.settings.shop_timezone)
    topic = _topic(one)
    moment = Moment(at=now, entered_at=intent.entered_at, zone=shop_zone, topic=topic, entry_id=_entry_id(one))
    node = addressed_node(one, world.namespace)
    gone = known is None or (node is not None and node not in people.addressed)
    if intent.offer and intent.offer not in base.offers:
        problem = problem or Reason("no-offer", f"there is no offer {intent.offer}")
    value = _worth(one, known, base)
    adapters = _adapters(base.channels, world)
    if one.pinned is not None:
        adapters, doubt = _to_repeat(one, one.pinned, purpose, adapters)
        problem = problem or doubt
    inputs = Inputs(
        message=one.id,
        rule=intent.rule,
        rule_name=intent.rule_name,
        purpose=purpose,
        topic=topic,
        now=now,
        valid_until=intent.valid_until,
        zone=(moment.zone_of(known) if known else shop_zone).key,
        window=intent.window,
        draw=draw_from(world.bits(DRAW_BITS)),
        ghost=intent.ghost,
        known=not gone,
        profile=known.profile if known else None,
        nodes=known.nodes if known else [],
        guard=_verdict(one, known, people.events[index], replace(moment, holidays=base.holidays.at(now))),
        template=intent.template,
        template_version=template.version if template else None,
        problem=problem,
        offer_guard=_offer_guard(one, known, base),
        asked=[one.pinned] if one.pinned else intent.channels,
        addressed=node,
        channels=[
            _channel(row, adapters[row.name], one, known, people, world)
            for row in base.channels
            if row.name in adapters
        ],
        switches=base.rules.switches,
        caps=base.rules.policy.caps,
        purged_at=people.purged.get(node) if node else None,
        value=value.value,
        value_from=value.origin,
        base_version=base.rules.mean.version if base.rules.mean else None,
        explore=base.rules.policy.explore if purpose == "marketing" else base.rules.policy.explore * 0,
    )
    return _gathered(one, inputs, known, template, adapters, people.requests.get(_entry_id(one) or UUID(int=0)))


def _gathered(
    one: Due,
    inputs: Inputs,
    known: Facts | None,
    template: Template | None,
    adapters: dict[str, list[type[Adapter]]],
    request: looking.Request | None,
) -> Gathered:
    """:param request: what asked for a confirmation mail, which is limited by who asks"""
    confirmation = inputs.purpose == "confirmation"
    return Gathered(
        due=one,
        inputs=inputs,
        facts=known,
        template=template,
        offer=None,
        addresses=_written(one, inputs.addressed, known),
        adapters=adapters,
        network=network_of(request.ip if request else None) if confirmation else None,
        source=request.source if request and confirmation else None,
    )


def _verdict(one: Due, known: Facts | None, events: Sequence[EventFact], moment: Moment) -> GuardVerdict:
    """Whether the guard holds; nobody is left whom it could concern, it does."""
    if known is None:
        return GuardVerdict(holds=True)
    return guards.judge(one.intent.guard, guards.read(one.intent.guard), known, events, moment)


def _offer_guard(one: Due, known: Facts | None, base: Base) -> OfferGuard | None:
    """With what the person bought since, of that which the offer is for."""
    guarded = offer_guard_of(one, base)
    if guarded is None or known is None:
        return guarded
    return msgspec.structs.replace(guarded, bought=bought_of(guarded, known.orders))


def _worth(one: Due, known: Facts | None, base: Base) -> Worth:
    intent, rules = one.intent, base.rules
    mean = rules.mean.value if rules.mean else rules.policy.mean_order or ASSUMED_ORDER
    return worth(intent.value, known, intent.event.get("properties", {}), mean)


def _purpose(one: Due, template: Template | None) -> tuple[Purpose, Reason | None]:
    """What the message is for: the stricter of the rule's kind and the template's purpose."""
    intent = one.intent
    if template is None:
        return intent.kind, Reason("no-template", f"there is no template {intent.template}")
    if template.purpose == "confirmation":
        return "confirmation", None
    if intent.kind == "transactional" and template.purpose == "marketing":
        # It was decided without waiting for the watermark, and would be repeated when nobody knows what came of it.
        text = f"the rule is transactional and the template {intent.template} is marketing"
        return "marketing", Reason("no-template", text)
    if intent.kind == "marketing" and template.purpose == "transactional":
        text = f"the rule is marketing and the template {intent.template} is not: it need not have a way out"
        return "marketing", Reason("no-template", text)
    return template.purpose, None


def _topic(one: Due) -> str:
    """The consent topic: the rule's, or for a subscription one of those that were subscribed to."""
    asked = one.intent.addressed
    if asked is None or not asked.topics or one.intent.topic in asked.topics:
        return one.intent.topic
    return asked.topics[0]


def _entry_id(one: Due) -> UUID | None:
    found = one.intent.event.get("id")
    return UUID(found) if isinstance(found, str) else None


def _adapters(channels: Sequence[looking.ChannelRow], world: Surroundings) -> dict[str, list[type[Adapter]]]:
    found = (
        (row.name, side_by_side(world.adapters, row.name, row.adapter, world.settings, row.told)) for row in channels
    )
    return {name: adapters for name, adapters in found if adapters}


def _to_repeat(
    one: Due, channel: str, purpose: Purpose, adapters: dict[str, list[type[Adapter]]]
) -> tuple[dict[str, list[type[Adapter]]], Reason | None]:
    """The adapters of a message of which an earlier attempt may have arrived: the same one first, if it serves. Marketing goes
    to no other, and to the same one only as it was told then: whoever else gets it does not know the key by which the
    repeat is dropped. What people wait for goes to whoever serves now."""
    serving = adapters.get(channel, [])
    same = [kind for kind in serving if kind.name == one.doubted]
    if "marketing" not in (one.intent.kind, purpose):
        return {**adapters, channel: sorted(serving, key=lambda kind: kind not in same)} if same else adapters, None
    if same and not one.moved:
        return {**adapters, channel: same}, None
    why = "has been told other settings since" if same else f"does not serve {channel} any more"
    return adapters, Reason("unknown", f"only {one.doubted} could tell that it is a repeat, and it {why}")


def _channel(
    row: looking.ChannelRow,
    adapters: Sequence[type[Adapter]],
    one: Due,
    known: Facts | None,
    people: People,
    world: Surroundings,
) -> Channel:
    quiet = row.quiet
    if quiet is None:
        declared = KNOWN.get(row.name)
        quiet = world.settings.quiet_hours if declared is None or declared.quiet else ""
    return Channel(
        name=row.name,
        adapter=adapters[0].name,
        consent=world.consents.get(row.name, row.name),
        unit_cost=row.unit_cost,
        figures=Figures(row.reach, row.act, row.lost),
        enabled=row.enabled,
        quiet=quiet,
        caps=row.caps,
        countries=row.countries,
        ceiling=row.ceiling,
        addresses=_addresses(row, adapters, one, known, people, world),
    )


def _addresses(
    row: looking.ChannelRow,
    adapters: Sequence[type[Adapter]],
    one: Due,
    known: Facts | None,
    people: People,
    world: Surroundings,
) -> list[Address]:
    """The person's addresses on the channel that one of its adapters accepts; of a subscription's run only the one it is
    about."""
    if one.intent.addressed is not None:
        node = addressed_node(one, world.namespace)
        asked = people.addressed.get(node) if node else None
        if node is None or asked is None or row.name != one.intent.addressed.channel:
            return []
        return [_address(node, asked.value, asked.status, row, people, world)]
    return [
        _address(address.node, address.value, address.status, row, people, world)
        for address in (known.addresses if known else [])
        if address.kind == adapters[0].address_kind and taking(adapters, address.value) is not None
    ]


def _address(
    node: UUID,
    value: str,
    status: str,
    row: looking.ChannelRow,
    people: People,
    world: Surroundings,
) -> Address:
    suppression = people.suppressions.get((node, "*")) or people.suppressions.get((node, row.name))
    consent = world.consents.get(row.name, row.name)
    return Address(
        node=node,
        status=status,
        consents=[one for one in people.consents.get(node, []) if one.channel == consent],
        suppression=suppression,
        country=country_of(value) if row.countries else None,
    )


def country_of(address: str) -> str | None:
    """The ISO 3166 country of a phone number; None for what is no number, or of no one country."""
    try:
        return phonenumbers.region_code_for_number(phonenumbers.parse(address))
    except phonenumbers.NumberParseException:
        return None


def _written(one: Due, node: UUID | None, known: Facts | None) -> dict[UUID, str]:
    written = {address.node: address.value for address in (known.addresses if known else [])}
    if node is not None and one.intent.addressed is not None:
        written[node] = one.intent.addressed.address
    return written


async def _allot(tx: Tx, gathered: Sequence[Gathered], base: Base, now: datetime) -> None:
    """One code an offer and person, the same on a second claim. Ghosts are shown one and given none."""
    wanting = [g for g in gathered if g.due.intent.offer and g.due.intent.offer in base.offers and g.inputs.known]
    if not wanting:
        return
    given = await looking.read_allotments(tx, [node for g in wanting for node in g.inputs.nodes], now)
    new: list[tuple[UUID, UUID, Offer]] = []
    for g in wanting:
        name, intent = g.due.intent.offer or "", g.due.intent
        held = (given.get((node, name)) for node in g.inputs.nodes)
        g.offer = next((offer for offer in held if offer is not None), None)
        if g.offer is None:
            form = intent.addressed.form if intent.addressed else None
            g.offer = base.offers[name].for_form(form, now)
            wrong = not g.inputs.guard.holds or offer_reason(g.inputs.offer_guard, now) is not None
            if not intent.ghost and not wrong:
                new.append((intent.origin, g.due.id, g.offer))
                given[intent.origin, name] = g.offer
    if new:
        await looking.write_allotments(tx, new, now)


async def with_contacts(tx: Tx, gathered: Sequence[Gathered], now: datetime) -> list[Gathered]:
    """The same with what counts against caps now, read anew; to be called under the locks of the people and requests."""
    asked = [looking.Asked(g.inputs.nodes, [a.node for c in g.inputs.channels for a in c.addresses]) for g in gathered]
    contacts = await looking.read_contacts(tx, asked, now - LONGEST_WINDOW)
    networks = [g.network for g in gathered if g.network]
    sources = [g.source for g in gathered if g.source]
    by_network: dict[str, int] = {}
    by_source: dict[UUID, int] = {}
    if networks or sources:
        by_network, by_source = await looking.count_confirmations(
            tx, networks, sources, now - REQUESTS_WINDOW, now - REQUESTS_WINDOW
        )
    for g, rows in zip(gathered, contacts, strict=True):
        own = set(g.inputs.nodes)
        g.inputs = msgspec.structs.replace(
            g.inputs,
            now=now,
            contacts=[Contact(r.message, r.at, r.channel, r.purpose, r.address, r.origin in own) for r in rows],
            network_count=by_network.get(g.network or "", 0),
            source_count=by_source.get(g.source, 0) if g.source else 0,
        )
    return list(gathered)


def network_of(ip: str | None) -> str | None:
    """The network that counts as one: /24 of IPv4, /48 of IPv6; None for what is no address."""
    if not ip:
        return None
    try:
        address = ipaddress.ip_address(ip.strip())
    except ValueError:
        return None
    length = 24 if address.version == 4 else 48
    return str(ipaddress.ip_network((address, length), strict=False))
