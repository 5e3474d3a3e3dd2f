"""What a person does to profiles through the API: merge, unmerge, erase. Each is one transaction.

Like everything that profile writes without a record of `events`, it takes the lock "mark" before any row and is learned after
the latest mark.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from services.profile.identity import BY_HAND, Link, pair_of, partition, rank_of
from services.profile.people import KnownLink, KnownNode, Person
from services.profile.purging import erase_nodes
from services.profile.rearranging import lock_components, rearrange
from services.profile.store import locking, writing
from services.profile.wire import erased_record
from shared import wake
from shared.auth import Principal, log_change
from shared.bus.base import Outgoing
from shared.cdp import current_profiles
from shared.clock import MICROSECOND, pause
from shared.db import Tx
from shared.erasure import append_to_file
from shared.erasure import erase as write_journal
from shared.errors import Problem
from shared.ids import uuid7
from shared.marks import hold_mark
from shared.outbox import write_free
from shared.service import Context

T = TypeVar("T")
SCHEMA = "profile"
ATTEMPTS = 30
MOST_PAIRS = 10_000


class ByHand:
    """The operations, over a context. Each returns what the caller is shown and raises Problem for what cannot be done."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def merge(self, one: UUID, other: UUID, principal: Principal) -> UUID:
        """Makes two profiles one, whatever kept them apart. Returns the profile that stays."""

        async def change(tx: Tx, base: datetime) -> tuple[UUID, list[Outgoing]]:
            people = await self._locked(tx, [one, other])
            first, second = await self._named(tx, people, one), await self._named(tx, people, other)
            if first.id == second.id:
                return first.id, []
            nodes = await locking.read_nodes(tx, [*first.nodes, *second.nodes])
            await writing.delete_cannot(tx, first.nodes, second.nodes)
            await writing.write_links(tx, [self._link(_strongest(first, nodes), _strongest(second, nodes), base)])
            regrouping, records = await rearrange(tx, people, base)
            if regrouping is None:
                raise Problem(
                    409, "Not merged", "An identifier over its limit of links stands between the two profiles."
                )
            stays = next(profile for profile, members in regrouping.after.items() if first.nodes[0] in members)
            await self._log(
                tx, principal, "profile.merge", stays, {"profiles": [first.id, second.id]}, {"profile": stays}
            )
            return stays, records

        return await self._by_hand(change)

    async def unmerge(
        self, profile: UUID, nodes: Sequence[UUID], principal: Principal
    ) -> list[tuple[UUID, list[UUID]]]:
        """Parts these nodes from the others of the profile; no later observation joins them again. Returns both people:
        profile and nodes."""

        async def change(tx: Tx, base: datetime) -> tuple[list[tuple[UUID, list[UUID]]], list[Outgoing]]:
            people = await self._locked(tx, [profile])
            person = await self._named(tx, people, profile)
            leaving, staying = _parted(person, nodes)
            await writing.cut_links(tx, leaving, staying, BY_HAND, base)
            pairs = sorted(pair_of(a, b) for a in leaving for b in staying)
            await writing.write_cannot(tx, pairs, base, principal.name)
            known = await locking.read_nodes(tx, person.nodes)
            links = await locking.read_links(tx, person.nodes)
            for part in (leaving, staying):
                await writing.write_links(tx, self._bridges(part, known, links, base))
            regrouping, records = await rearrange(tx, people, base)
            assert regrouping is not None
            made = sorted((it, members) for it, members in regrouping.after.items() if set(members) & set(person.nodes))
            await self._log(
                tx, principal, "profile.unmerge", person.id, {"nodes": person.nodes}, {"people": dict(made)}
            )
            return made, records

        return await self._by_hand(change)

    async def erase(self, profile: UUID, principal: Principal) -> int:
        """Erases a person: rows gone, the journal written, the others told. Returns how many events that were.

        The file of the journal is written before the commit: an erasure that was answered is in it, whatever happens.
        """

        async def change(tx: Tx, base: datetime) -> tuple[int, list[Outgoing]]:
            people = await self._locked(tx, [profile])
            person = await self._named(tx, people, profile)
            at = max(base, *(one.last + MICROSECOND for one in people))
            await write_journal(tx, self._context.secret, person.nodes, at)
            events = await erase_nodes(tx, person.nodes, [person.id], at)
            await self._log(tx, principal, "profile.erase", person.id, {"nodes": len(person.nodes)}, {"events": events})
            await self._keep_outside(person.nodes, at)
            return events, [erased_record(person.id, person.nodes, at)]

        return await self._by_hand(change)

    async def _keep_outside(self, nodes: Sequence[UUID], at: datetime) -> None:
        file = self._context.settings.erasure_journal_file
        if file is None:
            return
        try:
            await asyncio.to_thread(append_to_file, file, self._context.secret, nodes, at)
        except OSError as problem:
            raise Problem(
                503,
                "The erasure journal cannot be written",
                f"{file}: {problem.strerror}. Nothing was erased; make the file writable (ERASURE_JOURNAL) and try again.",
                headers={"Retry-After": "60"},
            ) from problem

    async def _by_hand(self, change: Callable[[Tx, datetime], Awaitable[tuple[T, list[Outgoing]]]]) -> T:
        """One transaction under the lock "mark". It waits 100 ms for a lock at most, so it is tried again."""
        for attempt in range(ATTEMPTS):
            try:
                async with self._context.database.transaction() as tx:
                    now = self._context.clock.now()
                    base = max(now, await hold_mark(tx) + MICROSECOND)
                    result, records = await change(tx, base)
                    published = bool(records) and await write_free(tx, SCHEMA, UUID(records[0].key.decode()), records)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                await pause(0.02 * (1 + attempt % 5))
                continue
            if published:
                self._context.wake.signal(wake.outbox(SCHEMA))
            return result
        raise Problem(503, "Busy", "This profile is being written to; try again.", headers={"Retry-After": "1"})

    async def _locked(self, tx: Tx, profiles: Sequence[UUID]) -> list[Person]:
        return await lock_components(tx, (await current_profiles(tx, profiles)).values())

    async def _named(self, tx: Tx, people: Sequence[Person], profile: UUID) -> Person:
        current = (await current_profiles(tx, [profile]))[profile]
        for person in people:
            if person.id == current:
                return person
        raise Problem(404, "No such profile", f"There is no profile {profile}.")

    def _link(self, one: UUID, other: UUID, at: datetime) -> KnownLink:
        a, b = pair_of(one, other)
        return KnownLink(Link(a, b, BY_HAND, at, uuid7(at, self._context.bits)), None, 3, at)

    def _bridges(
        self, part: Sequence[UUID], nodes: dict[UUID, KnownNode], links: Sequence[Link], at: datetime
    ) -> list[KnownLink]:
        """Links by hand that keep a part together where only the other part connected it."""
        inside = {node: nodes[node] for node in part}
        own = [link for link in links if link.a in inside and link.b in inside]
        people = [sorted(group, key=lambda node: rank_of(nodes[node])) for group in partition(inside, own).people]
        first, *others = sorted(people, key=lambda group: rank_of(nodes[group[0]]))
        bridges = [self._link(first[0], group[0], at) for group in others]
        return sorted(bridges, key=lambda known: known.link.pair)

    async def _log(self, tx: Tx, principal: Principal, action: str, subject: UUID, before: Any, after: Any) -> None:
        await log_change(tx, principal, action, str(subject), before, after, self._context.clock.now())


def _strongest(person: Person, nodes: dict[UUID, KnownNode]) -> UUID:
    joining = [node for node in person.nodes if not nodes[node].over_limit] or person.nodes
    return min(joining, key=lambda node: rank_of(nodes[node]))


def _parted(person: Person, nodes: Sequence[UUID]) -> tuple[list[UUID], list[UUID]]:
    leaving = sorted(set(nodes) & set(person.nodes))
    staying = sorted(set(person.nodes) - set(leaving))
    if not leaving or len(leaving) < len(set(nodes)):
        strangers = sorted(set(nodes) - set(person.nodes))
        raise Problem(
            422,
            "Not this profile's nodes",
            f"Not of this profile: {', '.join(map(str, strangers))}." if strangers else "Name at least one node.",
            errors=[{"pointer": "#/nodes", "detail": "must be nodes of the profile"}],
        )
    if not staying:
        raise Problem(
            422,
            "Nothing would stay",
            "These are all nodes of the profile.",
            errors=[{"pointer": "#/nodes", "detail": "must leave at least one node to the profile"}],
        )
    if len(leaving) * len(staying) > MOST_PAIRS:
        raise Problem(422, "Too many nodes", f"At most {MOST_PAIRS} pairs of nodes can be kept apart at once.")
    return leaving, staying
