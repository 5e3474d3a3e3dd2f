"""What decisions are made from, read for a batch of messages: a constant number of statements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.dispatch import guard as guards
from services.dispatch.channels.base import Adapter
from services.dispatch.inputs import ConsentRow, OfferGuard, Suppression
from services.dispatch.policy import PURGE_SILENCE
from services.dispatch.store import looking
from services.dispatch.store.claims import Due
from services.dispatch.templates import Template
from shared.cdp import EventsQuestion, FactsQuestion, events_of, facts, purged_at
from shared.channels import ADDRESS_KIND
from shared.db import Tx
from shared.facts.model import EventFact, Facts
from shared.holidays import Holidays, read_holidays
from shared.ids import RandomBits, node_id
from shared.settings import Settings


@dataclass(frozen=True)
class Surroundings:
    """What gathering needs of the process: settings, adapters, secrets and chance."""

    settings: Settings
    adapters: dict[str, type[Adapter]]
    consents: dict[str, str]
    namespace: UUID
    secret: bytes
    bits: RandomBits


@dataclass(frozen=True)
class Base:
    """What does not depend on the person."""

    channels: list[looking.ChannelRow]
    rules: looking.Rules
    templates: dict[str, Template]
    offers: dict[str, looking.OfferRow]
    holidays: Holidays


@dataclass(frozen=True)
class People:
    """What does, in the order of the messages, or by node."""

    facts: list[Facts | None]
    events: list[list[EventFact]]
    addressed: dict[UUID, looking.AddressNode]
    consents: dict[UUID, list[ConsentRow]]
    suppressions: dict[tuple[UUID, str], Suppression]
    requests: dict[UUID, looking.Request]
    purged: dict[UUID, datetime]


def addressed_node(due: Due, namespace: UUID) -> UUID | None:
    """The node of the address that the message's run is about; None for a run that is about no address."""
    asked = due.intent.addressed
    if asked is None:
        return None
    return asked.node or node_id(namespace, ADDRESS_KIND.get(asked.channel, "email"), asked.address)


async def read_base(tx: Tx, due: Sequence[Due], now: datetime) -> Base:
    """Channels, policy, and the templates and offers that these messages name."""
    return Base(
        channels=await looking.read_channels(tx),
        rules=await looking.read_rules(tx, now),
        templates=await looking.read_templates(tx, [one.intent.template for one in due]),
        offers=await looking.read_offers(tx, [one.intent.offer for one in due if one.intent.offer]),
        holidays=await read_holidays(tx),
    )


async def read_people(tx: Tx, due: Sequence[Due], now: datetime, world: Surroundings, base: Base) -> People:
    """Facts, events since the decision, consents, suppressions and requests of everybody concerned."""
    parsed = [guards.read(one.intent.guard) for one in due]
    known = await facts(
        tx,
        [
            FactsQuestion(
                node=one.intent.origin,
                names=guard.needs.names,
                since=guards.look_back(one.intent.guard, guard, now),
                lines=guard.needs.lines
                or _shows_orders(base.templates.get(one.intent.template))
                or offer_guard_of(one, base) is not None,
                suppressions=guard.needs.suppressions,
            )
            for one, guard in zip(due, parsed, strict=True)
        ],
    )
    events: list[list[EventFact]] = [[] for _ in due]
    if any(guard.names for guard in parsed):
        events = await events_of(
            tx,
            [
                EventsQuestion(
                    nodes=one_facts.nodes if one_facts else [], names=guard.names, learned_after=one.intent.guard.since
                )
                for one, guard, one_facts in zip(due, parsed, known, strict=True)
            ],
        )
    addressed = [node for one in due if (node := addressed_node(one, world.namespace)) is not None]
    nodes = [*addressed, *(address.node for one in known if one for address in one.addresses)]
    entries = [UUID(one.intent.event["id"]) for one in due if one.intent.addressed and "id" in one.intent.event]
    return People(
        facts=known,
        events=events,
        addressed=await looking.read_address_nodes(tx, addressed),
        consents=await looking.read_consents(tx, nodes),
        suppressions=await looking.read_suppressions(tx, nodes),
        requests=await looking.read_requests(tx, [one.intent.origin for one in due if one.intent.addressed], entries),
        purged=await purged_at(tx, world.secret, addressed, PURGE_SILENCE, now) if addressed else {},
    )


def offer_guard_of(due: Due, base: Base) -> OfferGuard | None:
    """What the person must not have bought for the message's offer; None if there is no such thing."""
    offer = base.offers.get(due.intent.offer or "")
    return offer.guard if offer is not None else None


def _shows_orders(template: Template | None) -> bool:
    """Whether its texts may name goods of orders, which then must be read."""
    return template is not None and any("orders" in source for source in template.parts.values())
