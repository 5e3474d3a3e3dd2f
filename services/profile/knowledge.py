"""What is known of the people of a batch after each event. Pure.

Who they are is decided already (`placing.World`); here each event's rows change the facts of those it concerns, in order. A
person's state is taken as it is kept and changed by one row at a time; it is folded anew from rows only where people were
regrouped, and a cart where an operation came late.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

from services.profile.books import ConsentBook, OrderBook
from services.profile.people import KnownNode, Placed, Regrouping
from services.profile.person_facts import PersonFacts
from shared.cdp import state_of
from shared.cdp_rows import RowsOfPeople
from shared.facts.extract import NOTHING
from shared.facts.rows import CartOp, ConsentRow, OrderReport, RefundRow
from shared.facts.state import NodeRow, State, address_of


class Knowledge:
    """The facts of all people concerned.

    `people`: of everybody who is stored; `homes`: node → profile, before the batch; `rows`: node → its rows, for the nodes
    that `needed_rows` named.
    """

    def __init__(
        self,
        *,
        people: dict[UUID, PersonFacts],
        homes: Mapping[UUID, UUID],
        nodes: Mapping[UUID, KnownNode],
        orders: OrderBook,
        first_events: Mapping[str, UUID],
        consents: ConsentBook,
        rows: Mapping[UUID, RowsOfPeople],
    ) -> None:
        self._people, self._homes, self._nodes = people, dict(homes), nodes
        self.orders, self._consents, self._rows = orders, consents, rows
        self.first_events = dict(first_events)

    def facts(self, profile: UUID) -> PersonFacts:
        """What is known of this person up to the event that was applied last."""
        return self._people[profile]

    def changed(self) -> dict[UUID, PersonFacts]:
        """The people whose state is no longer the one that is kept."""
        return {profile: facts for profile, facts in self._people.items() if facts.changed}

    def apply(self, placed: Placed) -> bool:
        """Takes in one event. Returns whether it is the first report of its order by a source that may state money."""
        incoming, at = placed.incoming, placed.learned_at
        if incoming.found is NOTHING and placed.regrouping is None and not placed.renewed:
            return False
        if placed.regrouping is not None:
            self.regroup(placed.regrouping)
        for node in placed.renewed:
            self._readdress(node, at)
        found = incoming.found
        if found.traits:
            self.facts(placed.profile).take_traits(found.traits)
        if found.cart is not None:
            self._take_cart(placed, found.cart)
        if found.consents and found.address is not None:
            self._take_consents(found.address, found.consents)
        first = self._take_order(placed) if found.order_key is not None else False
        self._remember(placed)
        return first

    # ── one kind of row each ───────────────────────────────────────────────────────────────────────────────────────
    def _readdress(self, node: UUID, at: datetime) -> None:
        address = address_of(_row_of(self._nodes[node]), at)
        if address is not None:
            self.facts(self._homes[node]).set_address(address)

    def _take_cart(self, placed: Placed, op: CartOp) -> None:
        facts = self.facts(placed.profile)
        if not facts.cart.is_late(op):
            facts.take_cart(op, placed.learned_at)
        elif facts.cart.complete:
            facts.insert_in_cart(op, placed.learned_at)
        else:
            rows = [self._rows[node] for node in placed.nodes if node in self._rows]
            facts.refold_cart([old for row in rows for old in row.cart] + [op], placed.learned_at)

    def _take_consents(self, address: UUID, rows: list[ConsentRow]) -> None:
        self._consents.add(rows)
        folded = self._consents.folded(address, self._nodes[address].value)
        self.facts(self._homes[address]).set_consents(address, folded)

    def _take_order(self, placed: Placed) -> bool:
        found = placed.incoming.found
        entry = found.report or found.refund
        assert entry is not None
        key = entry.order_key
        before = self.orders.folded(key)
        self.orders.add(entry)
        after = self.orders.folded(key)
        for node in before.owners - after.owners:
            self.facts(self._homes[node]).drop_order(key)
        owners: dict[UUID, set[UUID]] = {}
        for node in after.owners:
            owners.setdefault(self._homes[node], set()).add(node)
        for profile, own in owners.items():
            self.facts(profile).set_order(key, after, own)
        report = found.report
        if report is None or not report.states_money or report.kind != "completed" or key in self.first_events:
            return False
        self.first_events[key] = report.event
        return True

    def _remember(self, placed: Placed) -> None:
        """Keeps the event's rows with those read, for whoever is folded anew later in the batch."""
        found, origin = placed.incoming.found, placed.incoming.origin
        if (rows := self._rows.get(origin)) is not None:
            rows.traits.extend(found.traits)
            if found.cart is not None:
                rows.cart.append(found.cart)
            if found.order_key is not None:
                rows.keys.add(found.order_key)
        if found.address is not None and (rows := self._rows.get(found.address)) is not None:
            rows.consents.extend(found.consents)

    # ── people who changed ─────────────────────────────────────────────────────────────────────────────────────────
    def regroup(self, regrouping: Regrouping) -> None:
        """Makes the facts of people who were merged or parted."""
        made = {profile: self._made_of(profile, nodes, regrouping) for profile, nodes in regrouping.after.items()}
        for profile in regrouping.before:
            self._people.pop(profile, None)
        self._people.update(made)
        for profile, nodes in regrouping.after.items():
            self._homes.update(dict.fromkeys(nodes, profile))

    def _made_of(self, profile: UUID, nodes: list[UUID], regrouping: Regrouping) -> PersonFacts:
        sources = sources_of(nodes, regrouping.before)
        if not sources:
            facts = PersonFacts(None)
            new = nodes
        elif is_whole(nodes, sources, regrouping.before):
            facts = self.facts(sources[0])
            new = [node for node in nodes if node not in self._homes]
        else:
            return PersonFacts.of(self._fold(nodes, regrouping.at))
        for node in new:
            address = address_of(_row_of(self._nodes[node]), regrouping.at)
            if address is not None:
                facts.set_address(address)
        facts.changed = True
        return facts

    def _fold(self, nodes: list[UUID], at: datetime) -> State:
        rows = [self._rows[node] for node in nodes if node in self._rows]
        keys = {key for row in rows for key in row.keys}
        reports: dict[str, list[OrderReport]] = {}
        refunds: dict[str, list[RefundRow]] = {}
        for row in rows:
            reports.update(row.reports)
            refunds.update(row.refunds)
        for key in keys:
            if key in self.orders.reports or key in self.orders.refunds:
                reports[key], refunds[key] = self.orders.reports.get(key, []), self.orders.refunds.get(key, [])
        united = RowsOfPeople(
            traits=[trait for row in rows for trait in row.traits],
            nodes=[_row_of(self._nodes[node]) for node in nodes],
            cart=[op for row in rows for op in row.cart],
            consents=[consent for row in rows for consent in row.consents],
            reports=reports,
            refunds=refunds,
            keys=keys,
        )
        return state_of(united, nodes, at)


def _row_of(node: KnownNode) -> NodeRow:
    return NodeRow(
        id=node.id,
        kind=node.kind,
        value=node.value,
        first_seen=node.first_seen,
        asserted_at=node.asserted_at,
        confirmed_at=node.confirmed_at,
    )


def sources_of(nodes: Iterable[UUID], before: Mapping[UUID, list[UUID]]) -> list[UUID]:
    """The profiles that these nodes came from."""
    wanted = set(nodes)
    return [profile for profile, members in before.items() if not wanted.isdisjoint(members)]


def is_whole(nodes: Iterable[UUID], sources: list[UUID], before: Mapping[UUID, list[UUID]]) -> bool:
    """Whether the nodes are one former person and, at most, nodes that are new to the store: nothing to fold anew."""
    return len(sources) == 1 and set(before[sources[0]]) <= set(nodes)


def needed_rows(
    placed: Iterable[Placed], people: dict[UUID, PersonFacts], regroupings: Iterable[Regrouping]
) -> tuple[set[UUID], set[UUID]]:
    """The nodes whose rows are needed to apply these events: (all rows, only those of the cart).

    :param people: the facts of everybody who is stored, which are only looked at
    """
    everything: set[UUID] = set()
    for regrouping in regroupings:
        for nodes in regrouping.after.values():
            sources = sources_of(nodes, regrouping.before)
            if sources and not is_whole(nodes, sources, regrouping.before):
                everything.update(nodes)
    carts: set[UUID] = set()
    last: dict[UUID, tuple[datetime, UUID] | None] = {}

    def last_of(profile: UUID) -> tuple[datetime, UUID] | None:
        if profile not in last:
            last[profile] = people[profile].cart.last if profile in people else None
        return last[profile]

    for one in placed:
        if one.regrouping is not None:
            for profile, nodes in one.regrouping.after.items():
                known = [last_of(source) for source in sources_of(nodes, one.regrouping.before)]
                last[profile] = max((it for it in known if it is not None), default=None)
        op = one.incoming.found.cart
        if op is None:
            continue
        before, this = last_of(one.profile), (op.at, op.id)
        if before is not None and this <= before:
            carts.update(one.nodes)
        last[one.profile] = this if before is None else max(before, this)
    return everything, carts - everything
