"""The read side of the CDP store for triggers and dispatch: the `cdp.*` views, and facts as of T with the same fold that
profile writes with.

Facts as of T are the rows with learned-at ≤ T under the membership of that moment. Every function takes a connection
inside the caller's transaction and works on batches: the number of statements does not depend on how many people. Answers
stand in the order of the questions.

Views (schema `cdp`): node, node_seen_before, membership, profile, profile_alias, trait, event, order_entity, order_report,
order_line, refund, cart_operation (an event a row), cart_op (a product a row), consent, purged(hmac, at): addresses whose
unconfirmed contact was purged; `purged_at` asks it. And dispatch's platform.suppression(node, channel, from_at, to_at).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from shared.cdp_rows import RowsOfPeople, read_rows
from shared.db import Tx
from shared.erasure import digest
from shared.facts.cart import CartFold
from shared.facts.consent import fold_consent
from shared.facts.model import EventFact, Facts, Order, Refund
from shared.facts.orders import take_back_alone
from shared.facts.state import State, decode_state, facts_of, fold_addresses, fold_traits
from shared.identifiers import BadIdentifier, identifier

TRUSTS = ("public", "signed", "secret", "internal")
ALL_NAMES = frozenset({"*"})


class Person(msgspec.Struct, frozen=True):
    """A profile at some moment; `nodes` sorted."""

    profile: UUID
    nodes: list[UUID]


class FactsQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Whose facts (the person who has `node` at `at`; None: now), with which events.

    `names`: the event names wanted, with `*` all, empty for none; `since`: only events that occurred after it. `lines`:
    whether orders come with their lines (conditions on goods and templates need them). `suppressions`: whether it is said
    which addresses must not be written to.
    """

    node: UUID
    at: datetime | None = None
    names: frozenset[str] = frozenset()
    since: datetime | None = None
    lines: bool = True
    suppressions: bool = False


class EventsQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Events of these names (with `*`: all) whose origin is one of these nodes, learned in (after, until]."""

    nodes: list[UUID]
    names: frozenset[str]
    learned_after: datetime | None = None
    learned_until: datetime | None = None


_OWN = """
    asked AS (SELECT * FROM unnest($1::int[], $2::uuid[], $3::timestamptz[]) AS a(i, node, at)),
    own AS (
        SELECT a.i, a.at, n.profile FROM asked a JOIN cdp.node n ON n.id = a.node WHERE a.at IS NULL
        UNION ALL
        SELECT a.i, a.at, m.profile FROM asked a
        JOIN cdp.membership m ON m.node = a.node AND m.from_at <= a.at AND (m.to_at IS NULL OR m.to_at > a.at)
    )"""
_NODES_AT = """
    CASE WHEN own.at IS NULL THEN p.nodes ELSE ARRAY(
        SELECT m.node FROM cdp.membership m
        WHERE m.profile = own.profile AND m.from_at <= own.at AND (m.to_at IS NULL OR m.to_at > own.at) ORDER BY m.node
    ) END"""


async def people_of(tx: Tx, asked: Sequence[tuple[UUID, datetime | None]]) -> list[Person | None]:
    """Whose the node was at that moment (None: now); None for a node that nobody had then."""
    rows = await tx.fetch(
        f"WITH {_OWN} SELECT own.i, own.profile, {_NODES_AT} AS nodes "
        "FROM own LEFT JOIN cdp.profile p ON p.id = own.profile AND own.at IS NULL",
        list(range(len(asked))),
        [node for node, _ in asked],
        [at for _, at in asked],
    )
    answers: list[Person | None] = [None] * len(asked)
    for row in rows:
        answers[row["i"]] = Person(row["profile"], row["nodes"])
    return answers


async def facts(tx: Tx, asked: Sequence[FactsQuestion]) -> list[Facts | None]:
    """Facts as of each question's moment; None where nobody had the node then.

    The person's present row serves if nothing was learned after the moment, else the rows are folded: the same result.
    """
    answers = await _from_present(tx, asked)
    past = [i for i, answer in enumerate(answers) if answer is None and asked[i].at is not None]
    if past:
        people = await people_of(tx, [(asked[i].node, asked[i].at) for i in past])
        await _fold_past(tx, asked, answers, [(i, person) for i, person in zip(past, people, strict=True) if person])
    await _add_lines(tx, asked, answers)
    await _add_events(tx, asked, answers)
    await _add_suppressions(tx, asked, answers)
    return answers


async def _from_present(tx: Tx, asked: Sequence[FactsQuestion]) -> list[Facts | None]:
    rows = await tx.fetch(
        """
        SELECT a.i, p.id, p.nodes, p.last_learned_at, p.first_seen, p.state
        FROM unnest($1::int[], $2::uuid[], $3::timestamptz[]) AS a(i, node, at)
        JOIN cdp.node n ON n.id = a.node
        JOIN cdp.profile p ON p.id = n.profile
        WHERE a.at IS NULL OR p.last_learned_at <= a.at
        """,
        list(range(len(asked))),
        [question.node for question in asked],
        [question.at for question in asked],
    )
    answers: list[Facts | None] = [None] * len(asked)
    for row in rows:
        at = asked[row["i"]].at
        answers[row["i"]] = facts_of(
            decode_state(row["state"]),
            profile=row["id"],
            nodes=row["nodes"],
            at=at or row["last_learned_at"],
            last_learned_at=row["last_learned_at"],
            first_seen=row["first_seen"],
            as_of=at,
        )
    return answers


async def _fold_past(
    tx: Tx, asked: Sequence[FactsQuestion], answers: list[Facts | None], people: Sequence[tuple[int, Person]]
) -> None:
    found = await read_rows(tx, [(person.nodes, asked[i].at) for i, person in people])
    for (i, person), rows in zip(people, found, strict=True):
        moment = asked[i].at
        assert moment is not None
        folded = answers[i] = fold(rows, person.profile, person.nodes, moment)
        things: list[Order | Refund] = [*folded.orders, *folded.refunds]
        for thing in things:
            thing.lines = []


def fold(rows: RowsOfPeople, profile: UUID, nodes: list[UUID], at: datetime) -> Facts:
    """The facts that these rows make at `at`."""
    return facts_of(
        state_of(rows, nodes, at),
        profile=profile,
        nodes=nodes,
        at=at,
        last_learned_at=rows.last_learned_at,
        first_seen=rows.first_seen,
        as_of=at,
    )


def state_of(rows: RowsOfPeople, nodes: Iterable[UUID], at: datetime) -> State:
    """The state that these rows of these nodes make at `at`. An order counts to the person of its winning report."""
    own = set(nodes)
    folded = [rows.order(key) for key in sorted(rows.keys)]
    return State(
        traits=fold_traits(rows.traits),
        cart=CartFold.of(rows.cart, at).state(at),
        orders=[one.order for one in folded if one.order is not None and one.order.node in own],
        refunds=[refund for one in folded for refund in one.refunds if refund.node in own],
        consents=fold_consent(rows.consents, {node.id: node.value for node in rows.nodes}),
        addresses=fold_addresses(rows.nodes, at),
    )


async def _add_lines(tx: Tx, asked: Sequence[FactsQuestion], answers: list[Facts | None]) -> None:
    """Puts the lines, as they were known at each moment, to the orders of those who asked for them."""
    wanted = [
        (i, answer)
        for i, answer in enumerate(answers)
        if answer is not None and asked[i].lines and (answer.orders or answer.refunds)
    ]
    if not wanted:
        return
    keys = [
        {*(order.key for order in answer.orders), *(refund.order_key for refund in answer.refunds)}
        for _, answer in wanted
    ]
    found = await read_rows(tx, [([], asked[i].at) for i, _ in wanted], keys=keys, only_orders=True)
    for (_, answer), rows in zip(wanted, found, strict=True):
        folded = [rows.order(key) for key in rows.keys]
        orders = {one.order.key: one.order for one in folded if one.order is not None}
        refunds = {(refund.order_key, refund.key): refund for one in folded for refund in one.refunds}
        # With READ COMMITTED somebody may have been erased since the statement before: what is gone has no lines.
        for order in answer.orders:
            order.lines = orders[order.key].lines if order.key in orders else []
        for refund in answer.refunds:
            there = refunds.get((refund.order_key, refund.key))
            refund.lines = there.lines if there is not None else []
        take_back_alone(answer.orders, answer.refunds)


async def _add_events(tx: Tx, asked: Sequence[FactsQuestion], answers: list[Facts | None]) -> None:
    wanted = [(i, answer) for i, answer in enumerate(answers) if answer is not None and asked[i].names]
    if not wanted:
        return
    questions = [
        EventsQuestion(nodes=answer.nodes, names=asked[i].names, learned_until=asked[i].at) for i, answer in wanted
    ]
    found = await _events(tx, questions, [asked[i].since for i, _ in wanted])
    for (_, answer), events in zip(wanted, found, strict=True):
        answer.events = events


async def _add_suppressions(tx: Tx, asked: Sequence[FactsQuestion], answers: list[Facts | None]) -> None:
    """Which addresses were suppressed at each moment, by the view that dispatch publishes. It says of a moment what nothing
    that is written later can change."""
    wanted = [
        (i, address.node)
        for i, answer in enumerate(answers)
        if answer is not None and asked[i].suppressions
        for address in answer.addresses
    ]
    if not wanted:
        return
    rows = await tx.fetch(
        """
        SELECT a.i, s.node, s.channel FROM unnest($1::int[], $2::uuid[], $3::timestamptz[]) AS a(i, node, at)
        JOIN platform.suppression s ON s.node = a.node
        WHERE CASE WHEN a.at IS NULL THEN s.to_at IS NULL
                   ELSE s.from_at <= a.at AND (s.to_at IS NULL OR s.to_at > a.at) END
        ORDER BY a.i, s.node, s.channel
        """,
        [i for i, _ in wanted],
        [node for _, node in wanted],
        [asked[i].at for i, _ in wanted],
    )
    for i, node, channel in rows:
        found = answers[i]
        assert found is not None
        found.suppressed = [*found.suppressed, (node, channel)]


async def events_of(tx: Tx, asked: Sequence[EventsQuestion]) -> list[list[EventFact]]:
    """The events of each question, live and history (each says which), ordered by (learned_at, id)."""
    return await _events(tx, asked, [None] * len(asked))


async def _events(
    tx: Tx, asked: Sequence[EventsQuestion], occurred_after: Sequence[datetime | None]
) -> list[list[EventFact]]:
    answers: list[list[EventFact]] = [[] for _ in asked]
    pairs = [(i, node) for i, question in enumerate(asked) for node in question.nodes]
    names = [(i, name) for i, question in enumerate(asked) for name in sorted(question.names)]
    if not pairs:
        return answers
    rows = await tx.fetch(
        """
        WITH own AS (SELECT * FROM unnest($1::int[], $2::uuid[]) AS o(i, node)),
             bound AS (SELECT * FROM unnest($3::int[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[])
                       AS b(i, after, until, occurred_after)),
             wanted AS (SELECT i, array_agg(name) AS names FROM unnest($7::int[], $8::text[]) AS w(i, name) GROUP BY i)
        SELECT own.i, e.id, e.node, e.name, e.occurred_at, e.learned_at, e.trust, e.history, e.properties, e.source,
               e.order_key, e.first, coalesce((e.rest ->> 'hops')::int, 0) AS hops
        FROM own JOIN bound USING (i) JOIN wanted USING (i)
        JOIN cdp.event e ON e.node = own.node
            AND e.learned_at > coalesce(bound.after, '-infinity') AND e.learned_at <= coalesce(bound.until, 'infinity')
        WHERE ('*' = ANY(wanted.names) OR e.name = ANY(wanted.names))
            AND (bound.occurred_after IS NULL OR e.occurred_at > bound.occurred_after)
        ORDER BY own.i, e.learned_at, e.id
        """,
        [i for i, _ in pairs],
        [node for _, node in pairs],
        list(range(len(asked))),
        [question.learned_after for question in asked],
        [question.learned_until for question in asked],
        list(occurred_after),
        [i for i, _ in names],
        [name for _, name in names],
    )
    for row in rows:
        answers[row["i"]].append(_event_fact(row))
    return answers


def _event_fact(row: Sequence[Any]) -> EventFact:
    _, event, node, name, occurred, learned, trust, history, properties, source, order_key, first, hops = row
    return EventFact(
        id=event,
        node=node,
        name=name,
        occurred_at=occurred,
        learned_at=learned,
        trust=TRUSTS[trust],
        history=history,
        properties=properties,
        source=source,
        order_key=order_key,
        first=first,
        hops=hops,
    )


async def together(tx: Tx, asked: Sequence[tuple[UUID, datetime, datetime]]) -> list[list[UUID]]:
    """All nodes that shared a profile with the node at any moment in [from, to], transitively; itself included, sorted."""
    rows = await tx.fetch(
        """
        WITH RECURSIVE asked AS (
            SELECT * FROM unnest($1::int[], $2::uuid[], $3::timestamptz[], $4::timestamptz[]) AS a(i, node, since, until)
        ), joined AS (
            SELECT i, node FROM asked
            UNION
            SELECT j.i, other.node
            FROM joined j
            JOIN asked a ON a.i = j.i
            JOIN cdp.membership own ON own.node = j.node
                AND own.from_at <= a.until AND (own.to_at IS NULL OR own.to_at > a.since)
            JOIN cdp.membership other ON other.profile = own.profile
                AND other.from_at <= a.until AND (other.to_at IS NULL OR other.to_at > a.since)
                AND (own.to_at IS NULL OR other.from_at < own.to_at) AND (other.to_at IS NULL OR own.from_at < other.to_at)
        )
        SELECT i, array_agg(node ORDER BY node) AS nodes FROM joined GROUP BY i
        """,
        list(range(len(asked))),
        [node for node, _, _ in asked],
        [since for _, since, _ in asked],
        [until for _, _, until in asked],
    )
    answers: list[list[UUID]] = [[] for _ in asked]
    for row in rows:
        answers[row["i"]] = row["nodes"]
    return answers


async def current_profiles(tx: Tx, profiles: Sequence[UUID]) -> dict[UUID, UUID]:
    """What each profile is called now, after the merges since; itself if it was not merged."""
    rows = await tx.fetch(
        """
        WITH RECURSIVE chain AS (
            SELECT p AS asked, p AS profile, 0 AS steps FROM unnest($1::uuid[]) AS u(p)
            UNION ALL
            SELECT c.asked, a.new, c.steps + 1 FROM chain c JOIN cdp.profile_alias a ON a.old = c.profile
        )
        SELECT DISTINCT ON (asked) asked, profile FROM chain ORDER BY asked, steps DESC
        """,
        list(set(profiles)),
    )
    return {row["asked"]: row["profile"] for row in rows}


async def nodes_by_identifier(
    tx: Tx, namespace: UUID, country: str, asked: Sequence[tuple[str, str]]
) -> list[UUID | None]:
    """The node of each (kind, value as a person writes it), if anybody was ever seen with it; None else, or if it cannot be
    such an identifier. `namespace`: the deployment's; `country`: the shop's, for phones."""
    wanted: list[UUID | None] = []
    for kind, value in asked:
        try:
            wanted.append(identifier(namespace, kind, value, country).node)
        except BadIdentifier:
            wanted.append(None)
    known = await tx.fetch("SELECT id FROM cdp.node WHERE id = ANY($1::uuid[])", [node for node in wanted if node])
    there = {row["id"] for row in known}
    return [node if node in there else None for node in wanted]


async def purged_at(
    tx: Tx, secret: bytes, nodes: Sequence[UUID], since: timedelta, now: datetime
) -> dict[UUID, datetime]:
    """Those of these address nodes that were purged within `since` before `now`, and when: no second confirmation mail
    goes to them in that time. `secret`: the deployment's."""
    by_digest = {digest(secret, node): node for node in nodes}
    rows = await tx.fetch(
        "SELECT hmac, at FROM cdp.purged WHERE hmac = ANY($1::bytea[]) AND at > $2", list(by_digest), now - since
    )
    return {by_digest[row["hmac"]]: row["at"] for row in rows}
