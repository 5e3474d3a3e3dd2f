"""From the queue to a choice: take, render, choose. Two short transactions, and between them nothing is held."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from services.dispatch.channels.registry import taking
from services.dispatch.decision import decide, worth_rendering
from services.dispatch.gathering import Gathered, gather, with_contacts
from services.dispatch.inputs import Contact, Decision, Inputs, Text
from services.dispatch.links import Signer
from services.dispatch.material import Surroundings, addressed_node
from services.dispatch.measures import DECISIONS
from services.dispatch.policy import FRESH
from services.dispatch.rendered import Rendered
from services.dispatch.rendering import Renderer
from services.dispatch.store import adapters, claims, spending
from services.dispatch.store.adapters import Pause
from services.dispatch.store.claims import Due, Stored
from services.dispatch.store.looking import read_stops
from services.dispatch.templates import TemplateFault
from services.dispatch.view import Shop, view
from shared.cdp import people_of
from shared.db import Tx
from shared.ids import uuid7
from shared.marks import BEGINNING
from shared.service import Context
from shared.wake import SENDER_DUE

BATCH = 32  # a batch is put together without a pause: more would hold the loop too long
# More than this many choices of one adapter do not wait for their calls; what is over looks again after JAM.
MOST_WAITING = 100
JAM = timedelta(seconds=5)
MOST_DOUBLINGS = 4
# How many wait while one exchange at a time looks whether the provider is back.
DOUBTFUL_WAITING = 4


@dataclass
class Taken:
    """Messages of one claim, and the locks their people stand under. `more`: others were due and could not be taken yet."""

    claim: UUID
    gathered: list[Gathered] = field(default_factory=list)
    locks: set[tuple[str, UUID | str]] = field(default_factory=set)
    decided: int = 0
    more: bool = False


class Claimer:
    """Decides about messages that are due. Any number of them work side by side, in any number of processes."""

    def __init__(self, context: Context, world: Surroundings, signer: Signer, shop: Shop, batch: int = BATCH) -> None:
        self._context, self._world, self._signer, self._shop, self._batch = context, world, signer, shop, batch
        self._renderer = Renderer(signer, shop.hosts)

    async def claim(self, kind: str) -> int:
        """Decides about one batch of messages of this kind; returns how many (0: nothing is due, or not yet)."""
        taken = await self._take(kind)
        if not taken.gathered:
            return taken.decided + (1 if taken.more else 0)
        await self._context.hooks.reach("dispatch.taken")
        rendered = [await self._render(one) for one in taken.gathered]
        await self._choose(taken, rendered)
        return taken.decided + len(taken.gathered)

    async def _take(self, kind: str) -> Taken:
        """First half: people locked, everything read in one view; what may not go at all is decided at once."""
        now = self._context.clock.now()
        taken = Taken(uuid7(now, self._context.bits))
        async with self._context.database.transaction() as tx:
            stops = await read_stops(tx)
            if stops.held:
                return taken
            if kind == "marketing" and now - (stops.watermark or BEGINNING) >= FRESH:
                return taken  # dispatch must not outrun profile: the message stays where it is
            due = await claims.due_messages(tx, kind, now, self._batch)
            if not due:
                return taken
            locked = await self._lock_people(tx, due, taken)
            # Whose person has grown meanwhile is left for the next claim: locks that come later would be out of order.
            gathered = await gather(tx, due, now, self._world, locked)
            taken.more = len(gathered) < len(due)
            await claims.uncount_abandoned(tx, [g.due for g in gathered])
            hopeless = [g for g in gathered if not worth_rendering(g.inputs)]
            await claims.store_decisions(tx, [_stored(g, decide(g.inputs), {}) for g in hopeless], now)
            taken.decided = len(hopeless)
            taken.gathered = [g for g in gathered if worth_rendering(g.inputs)]
            if taken.gathered:
                await claims.claim(tx, taken.claim, [g.due for g in taken.gathered])
        _count([decide(g.inputs) for g in hopeless])
        return taken

    async def _lock_people(self, tx: Tx, due: Sequence[Due], taken: Taken) -> set[UUID]:
        """Locks the nodes of all people concerned, and returns them."""
        nodes = {node for of_one in await self._nodes(tx, due) for node in of_one}
        taken.locks = {("node", node) for node in nodes}
        await claims.lock(tx, taken.locks)
        return nodes

    async def _nodes(self, tx: Tx, due: Sequence[Due]) -> list[set[UUID]]:
        people = await people_of(tx, [(one.intent.origin, None) for one in due])
        found = []
        for one, person in zip(due, people, strict=True):
            nodes = {one.intent.origin, *(person.nodes if person else [])}
            if (node := addressed_node(one, self._world.namespace)) is not None:
                nodes.add(node)
            found.append(nodes)
        return found

    async def _render(self, one: Gathered) -> dict[str, Rendered]:
        """The texts of all channels in question; their prices, or why there is none, go into the inputs."""
        texts: dict[str, Rendered] = {}
        priced = []
        wanted = set(worth_rendering(one.inputs))
        variables = self._variables(one)
        for channel in one.inputs.channels:
            if channel.name in wanted and one.template is not None:
                adapter = one.adapters[channel.name][0]
                try:
                    text = await self._renderer.render(one.template, adapter.part, variables, one.due.id)
                    price = adapter.price(text, channel.unit_cost)
                    texts[channel.name] = text
                    channel = msgspec.structs.replace(channel, text=Text(cost=price.cost, units=price.units))
                except TemplateFault as fault:
                    channel = msgspec.structs.replace(channel, text=Text(reason=fault.reason))
            priced.append(channel)
        one.inputs = msgspec.structs.replace(one.inputs, channels=priced)
        await asyncio.sleep(0)  # a batch must not hold the loop
        return texts

    def _variables(self, one: Gathered) -> dict[str, object]:
        intent, message = one.due.intent, one.due.id
        links = {
            "unsubscribe": self._signer.url("unsubscribe", message),
            "preferences": self._signer.url("unsubscribe", message),
        }
        if one.inputs.purpose == "confirmation":
            links = {"confirm": self._signer.url("confirm", message)}
        return view(
            facts=one.facts,
            event=intent.event.get("properties", {}),
            offer=one.offer,
            links=links,
            shop=self._shop,
            run={
                "id": str(intent.run),
                "rule": intent.rule_name,
                "step": intent.step,
                "entered_at": intent.entered_at,
                "event": intent.event.get("name", ""),
            },
            now=one.inputs.now,
            zone=ZoneInfo(one.inputs.zone),
        )

    async def _choose(self, taken: Taken, rendered: list[dict[str, Rendered]]) -> None:
        """Second half: caps counted again under the locks, then the choice, and everything about it stored."""
        now = self._context.clock.now()
        locks = taken.locks | {("network", g.network) for g in taken.gathered if g.network}
        locks |= {("source", g.source) for g in taken.gathered if g.source}
        # What a channel with a ceiling may still spend is spent by one choice at a time.
        locks |= {("spending", c.name) for g in taken.gathered for c in g.inputs.channels if c.ceiling}
        stored: list[Stored] = []
        async with self._context.database.transaction() as tx:
            ours = await claims.still_ours(tx, taken.claim, [g.due.id for g in taken.gathered])
            await claims.lock(tx, locks)
            pairs = [(g, texts) for g, texts in zip(taken.gathered, rendered, strict=True) if g.due.id in ours]
            nodes = await self._nodes(tx, [g.due for g, _ in pairs])
            grown = [
                g.due.id
                for (g, _), found in zip(pairs, nodes, strict=True)
                if not {("node", n) for n in found} <= locks
            ]
            if grown:
                await claims.give_back(tx, grown)
                pairs = [(g, texts) for g, texts in pairs if g.due.id not in grown]
            await with_contacts(tx, [g for g, _ in pairs], now)
            if any(channel.ceiling for g, _ in pairs for channel in g.inputs.channels):
                await self._with_spending(tx, [g for g, _ in pairs], now)
            waiting, pauses = await claims.waiting_for_call(tx), await adapters.read_pauses(tx)
            stored, put_off = self._with_room(_decide_in_turn(pairs), waiting, pauses, now)
            if put_off:
                await claims.put_off(tx, put_off)
            await claims.store_decisions(tx, stored, now)
        _count([s.decision for s in stored])
        if any(s.decision.act == "send" for s in stored):
            self._context.wake.signal(SENDER_DUE)

    async def _with_spending(self, tx: Tx, gathered: Sequence[Gathered], now: datetime) -> None:
        """What the channels may still spend goes into the inputs; under the locks of those that have a ceiling."""
        left = await spending.read_left(tx, spending.day_of(now, self._context.settings.shop_timezone))
        for g in gathered:
            channels = [msgspec.structs.replace(c, left=left.get(c.name)) for c in g.inputs.channels]
            g.inputs = msgspec.structs.replace(g.inputs, channels=channels)

    def _with_room(
        self, stored: list[Stored], waiting: dict[str, int], pauses: dict[str, Pause], now: datetime
    ) -> tuple[list[Stored], dict[UUID, datetime]]:
        """What is going to be called, and what waits in the queue instead, until when.

        A provider that is slower than what is chosen for it would let choices grow old, and one that is away would have
        them made again and again: both keep their messages out of the way of the others'. What waits longest for room is
        looked at less and less often. In virtual time nothing may wait for the clock.
        """
        kept: list[Stored] = []
        put_off: dict[UUID, datetime] = {}
        for one in stored:
            if one.decision.act == "send" and one.adapter is not None:
                pause = pauses.get(one.adapter)
                if pause is not None and pause.until is not None and pause.holds(now):
                    put_off[one.due.id] = pause.until
                    continue
                waiting[one.adapter] = waiting.get(one.adapter, 0) + 1
                if not self._context.clock.virtual and waiting[one.adapter] > self._room(one, pause):
                    put_off[one.due.id] = now + JAM * 2 ** min(one.due.jams, MOST_DOUBLINGS)
                    continue
            kept.append(one)
        return kept, put_off

    def _room(self, one: Stored, pause: Pause | None) -> int:
        """How many choices of the adapter may wait for their calls. What people ask for themselves has room beyond what
        marketing may fill."""
        if pause is not None and pause.doubtful:
            return DOUBTFUL_WAITING
        assert one.adapter is not None
        room = max(MOST_WAITING, 4 * self._world.adapters[one.adapter].sessions)
        return room if one.due.intent.kind == "marketing" else 2 * room


def _decide_in_turn(pairs: Sequence[tuple[Gathered, dict[str, Rendered]]]) -> list[Stored]:
    """One after the other, so that of two messages to one person the second counts the first."""
    stored: list[Stored] = []
    for index, (one, texts) in enumerate(pairs):
        decision = decide(one.inputs)
        stored.append(_stored(one, decision, texts))
        if decision.act == "send":
            for later, _ in pairs[index + 1 :]:
                later.inputs = _after(later, one, decision)
    return stored


def _after(later: Gathered, one: Gathered, decision: Decision) -> Inputs:
    """The inputs of a later message of the same batch, once `one` is going to be sent."""
    assert decision.channel is not None and decision.address is not None
    inputs = later.inputs
    mine = one.due.intent.origin in inputs.nodes
    theirs = any(address.node == decision.address for channel in inputs.channels for address in channel.addresses)
    changes: dict[str, object] = {}
    if mine or theirs:
        contact = Contact(one.due.id, one.inputs.now, decision.channel, one.inputs.purpose, decision.address, mine)
        changes["contacts"] = [*inputs.contacts, contact]
    if one.network is not None and one.network == later.network:
        changes["network_count"] = inputs.network_count + 1
    if one.source is not None and one.source == later.source:
        changes["source_count"] = inputs.source_count + 1
    if decision.cost and any(c.left is not None and c.name == decision.channel for c in inputs.channels):
        changes["channels"] = [
            msgspec.structs.replace(c, left=c.left.less(decision.cost)) if c.left and c.name == decision.channel else c
            for c in inputs.channels
        ]
    return msgspec.structs.replace(inputs, **changes) if changes else inputs


def _stored(one: Gathered, decision: Decision, texts: dict[str, Rendered]) -> Stored:
    channel = next((c for c in one.inputs.channels if c.name == decision.channel), None)
    address = one.addresses.get(decision.address) if decision.address else None
    adapter = taking(one.adapters[channel.name], address) if channel and address else None
    return Stored(
        due=one.due,
        inputs=one.inputs,
        decision=decision,
        adapter=adapter.name if adapter else channel.adapter if channel else None,
        address=address,
        units=channel.text.units if channel and channel.text else 1,
        rendered=texts.get(decision.channel) if decision.channel else None,
        network=one.network,
        source=one.source,
    )


def _count(decisions: Sequence[Decision]) -> None:
    for decision in decisions:
        DECISIONS.labels(decision.act, decision.reason.code if decision.reason else "", decision.channel or "").inc()
