"""Forgetting: people who asked for it, and contacts that nobody confirmed.

*Contact Purged*: the address of somebody who asked for letters and never confirmed is erased.

Unless anybody ever confirmed or asserted it. What stays is a hash with the date, so that for 30 days no second confirmation
mail goes out; and an opt-out or a complaint stays one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from uuid import UUID

from services.profile.intake import Incoming
from services.profile.rearranging import lock_components, rearrange, refold
from services.profile.store import erasing, locking, reading, writing
from services.profile.typed_addresses import TypedAddresses
from shared.bus.base import Outgoing
from shared.clock import MICROSECOND
from shared.db import Tx
from shared.erasure import digest


def parts_between_purges(batch: list[Incoming]) -> Iterator[list[Incoming]]:
    """The batch in parts, so that what speaks of a purged address after the purge is applied after it."""
    part: list[Incoming] = []
    purged: set[UUID] = set()
    for one in batch:
        if purged and not purged.isdisjoint(one.nodes):
            yield part
            part, purged = [], set()
        part.append(one)
        if one.purges is not None:
            purged.add(one.purges)
    if part:
        yield part


async def purge(tx: Tx, secret: bytes, country: str, addresses: set[UUID], base: datetime) -> list[Outgoing]:
    """Erases these address nodes and what hangs on them; returns what to publish about people who changed by it.

    :param country: the shop's, for phones that were typed without one
    :param base: the earliest moment at which it may count as learned, and the date that is kept
    """
    nodes = await locking.read_nodes(tx, addresses)
    people = await lock_components(tx, [node.profile for node in nodes.values() if node.profile is not None])
    nodes = await locking.read_nodes(tx, addresses)
    gone = sorted(node.id for node in nodes.values() if node.asserted_at is None and node.confirmed_at is None)
    if not gone:
        return []
    others = sorted({node for person in people for node in person.nodes} - set(gone))
    await erasing.delete_links(tx, gone)
    await erasing.forget_addresses(tx, gone)
    await erasing.forget_typed(tx, gone, others, TypedAddresses((nodes[node] for node in gone), country))
    _, records = await rearrange(tx, people, base, without=gone)
    await erasing.delete_nodes(tx, gone)
    await erasing.note_purged(tx, [digest(secret, node) for node in gone], base)
    return records


async def erase_nodes(tx: Tx, nodes: Sequence[UUID], profiles: Sequence[UUID], at: datetime) -> int:
    """Takes everything away that is stored of these nodes of locked people, as of `at`, and the profiles that consist of them
    alone. Returns how many events that were.

    Orders that somebody else reported, too, stay theirs and are folded anew. The journal, telling the others, and folding
    people of whom other nodes stay are the caller's.
    """
    keys = await erasing.orders_of(tx, nodes)
    await locking.lock_orders(tx, keys)
    staying = await erasing.delete_reports(tx, nodes, keys)
    events = await erasing.delete_people(tx, nodes, profiles, at)
    book = await reading.read_orders(tx, staying)
    await writing.write_orders(tx, {key: book.folded(key) for key in staying}, await locking.lock_orders(tx, staying))
    owners = set((await locking.read_owners(tx, staying)).values())
    await refold(tx, await locking.lock_people(tx, owners), at)
    return events


async def erase_again(tx: Tx, nodes: Sequence[UUID], now: datetime) -> int:
    """After a restore: these nodes were erased after the backup. Returns how many events that were."""
    known = await locking.read_nodes(tx, nodes)
    people = await lock_components(tx, [node.profile for node in known.values() if node.profile is not None])
    gone = set(known)
    at = max([now, *(person.last + MICROSECOND for person in people)])
    whole = [person.id for person in people if set(person.nodes) <= gone]
    events = await erase_nodes(tx, sorted(gone), whole, at)
    left = [person for person in people if person.id not in whole]
    if any(gone & set(person.nodes) for person in left):
        await rearrange(tx, left, at, without=gone)
    return events
